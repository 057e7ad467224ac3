"""Command line of the benchmarks; see `tests.bench`."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.bench.capture.cases import capture_cases
from tests.bench.capture.group import run_capture
from tests.bench.capture.variants import capture_variants
from tests.bench.cases import hbone_cases
from tests.bench.control.group import run_control
from tests.bench.enrol.group import run_enrol
from tests.bench.handshake.group import run_handshake
from tests.bench.hbone import run_hbone, run_one, run_openssl35
from tests.bench.mesh import mesh_cases, run_mesh
from tests.bench.native import BuildError
from tests.bench.openssl import wheel_absent
from tests.bench.results import problems
from tests.bench.rounds import Plan, say
from tests.bench.tables import text
from tests.bench.upgrade.group import run_upgrade
from tests.bench.variants import DEFAULT, known

GROUPS = {
    "hbone": run_hbone,
    "hbone-one": run_one,
    "hbone-openssl35": run_openssl35,
    "handshake": run_handshake,
    "capture": run_capture,
    "mesh": run_mesh,
    "control": run_control,
    "upgrade": run_upgrade,
    "enrol": run_enrol,
}
OPEN_FILES = 1 << 18
ROOT = Path(__file__).parents[2]


def parser() -> argparse.ArgumentParser:
    """The options of `python -m tests.bench`."""
    made = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measures variants against each other, interleaved; writes build/bench/GROUP.json and prints "
        "tables, ratios first. Needs root (network namespaces).",
    )
    made.add_argument("--only", help=f"comma-separated groups of {', '.join(GROUPS)}; default: all")
    made.add_argument("--rounds", type=int, default=3, help="figures for each row and variant (default 3)")
    made.add_argument("--seconds", type=float, default=2.0, help="length of one figure (default 2)")
    made.add_argument(
        "--quick", action="store_true", help="one round of half a second: shows that it works, not how fast"
    )
    made.add_argument("--cases", help="comma-separated rows; default: all of the group")
    made.add_argument("--variants", help=f"comma-separated variants; default: {','.join(DEFAULT)}")
    made.add_argument(
        "--pin",
        default="auto",
        help="CPU that all processes share in request and connection rows; 'none': no pinning; "
        "'auto' (default): the last CPU on machines with less than 4, else none",
    )
    made.add_argument(
        "--first",
        action="store_true",
        help="groups capture and enrol: at real-time priority, for figures on a machine that has other work to do",
    )
    made.add_argument(
        "--libssl",
        help="directory with another libssl.so.3 and libcrypto.so.3 for the engine, or 'wheel': those of the "
        "installed package psycopg2-binary",
    )
    made.add_argument(
        "--out", type=Path, default=ROOT / "build" / "bench", help="where results go (build/bench)"
    )
    made.add_argument("--list", action="store_true", help="list groups, rows and variants, measure nothing")
    return made


def pinned_cpu(choice: str, cores: int) -> int | None:
    """What `--pin` means on a machine with `cores` CPUs."""
    if choice == "none" or (choice == "auto" and cores >= 4):
        return None
    return cores - 1 if choice == "auto" else int(choice)


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """One benchmark at a time: two of them would measure each other."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("bench: waits for another benchmark to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def more_open_files() -> None:
    """Raises the limit for this process and those it starts, above the hard limit where that is allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (max(OPEN_FILES, hard), hard):
        with suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return


def _chosen(options: argparse.Namespace) -> list[str]:
    names = options.only.split(",") if options.only else list(GROUPS)
    if not options.only and not options.libssl and (reason := wheel_absent()):
        say(f"bench: without hbone-openssl35: {reason}")
        names.remove("hbone-openssl35")
    if unknown := [name for name in names if name not in GROUPS]:
        raise BuildError(f"no group {unknown[0]}: there are {', '.join(GROUPS)}")
    return names


def _run_group(name: str, options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    result = GROUPS[name](ROOT, options, plan)
    if wrong := problems(result):
        say(f"bench: the result of {name} is not as it should be: {wrong[0]}")
    path: Path = options.out / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"== {name} ({path})\n\n{text(result)}")
    return result


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.list:
        for name, group in GROUPS.items():
            print(f"{name}: {group.__doc__}")
        rows = (row.case for case in hbone_cases() for row in case.rows)
        print(f"rows of hbone: {', '.join(rows)}")
        print(f"rows of mesh: {', '.join(case.name for case in mesh_cases())}")
        print(f"rows of capture: {', '.join(case.name for case in capture_cases())}")
        print(f"variants of hbone: {', '.join(known())}")
        print(f"variants of capture: {', '.join(capture_variants())}")
        return 0
    if os.geteuid() != 0:
        say("bench: needs root to make network namespaces: run it with sudo")
        return 1
    rounds, seconds = (1, 0.5) if options.quick else (options.rounds, options.seconds)
    plan = Plan(rounds, seconds, pinned_cpu(options.pin, os.cpu_count() or 1))
    try:
        names = _chosen(options)
        more_open_files()
        # What was started is stopped, and namespaces are removed, on the way out.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        with exclusive(options.out):
            for name in names:
                _run_group(name, options, plan)
    except BuildError as error:
        say(f"bench: {error}")
        return 1
    except subprocess.CalledProcessError as error:
        say(f"bench: {' '.join(map(str, error.cmd))}: {(error.stderr or b'').decode().strip()}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
