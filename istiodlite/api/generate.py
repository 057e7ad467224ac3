"""Generates the protobuf code beside the .proto files, or checks that it is fresh.

Run as `python -m istiodlite.api.generate [--check]`. Needs grpcio-tools (extra `test`); the version is
pinned there because the generated text depends on it.
"""

import argparse
import sys
import tempfile
from pathlib import Path

API = Path(__file__).resolve().parent
ROOT = API.parent.parent


def generate(out: Path) -> list[Path]:
    """Writes *_pb2.py and *_pb2.pyi of every .proto under `out`; returns the files written."""
    from grpc_tools import protoc

    sources = sorted(str(p.relative_to(ROOT)) for p in API.glob("*.proto"))
    well_known = Path(protoc.__file__).parent / "_proto"
    arguments = [
        "protoc",
        f"-I{ROOT}",
        f"-I{well_known}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("generate: protoc failed (see above)")
    return sorted((out / "istiodlite" / "api").glob("*_pb2.py*"))


def stale(out: Path) -> list[str]:
    """Names of generated files that differ from a fresh generation, are missing, or have no source."""
    fresh = {p.name: p.read_bytes() for p in generate(out)}
    kept = {p.name: p.read_bytes() for p in API.glob("*_pb2.py*")}
    return sorted(name for name in fresh.keys() | kept.keys() if fresh.get(name) != kept.get(name))


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit status 1 when `--check` finds stale files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if anything is stale")
    if not parser.parse_args(argv).check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        names = stale(Path(scratch))
    if names:
        print(f"stale generated code: {', '.join(names)}; run `make generate`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
