"""From C to byte code: BCC in a short-lived child process, a cache on disk, and shipped byte code.

BCC brings LLVM (some 100 MB) into a process, so it only ever runs in a child. Kernel headers are not needed:
`programs/stubs` stands in for them. Compiling needs root, since BCC creates the maps while it compiles.

`python -m ebpf.compiler --write` renews `programs/capture.json`; `--check` says whether it is fresh.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from ebpf import bytecode
from ebpf.bytecode import Collection
from ebpf.errors import CaptureError, CaptureReason
from ebpf.kinds import AttachType, MapInfo, ProgramType

PROGRAMS_DIR: Final = Path(__file__).parent / "programs"
SOURCES: Final = tuple(
    PROGRAMS_DIR / name for name in ("common.h", "pairs.h", "turbo.h", "direct.h", "redirect.h", "capture.c")
)
SHIPPED: Final = PROGRAMS_DIR / "capture.json"
STUBS: Final = PROGRAMS_DIR / "stubs"
CACHE_DIR: Final = Path("/var/cache/ambientlite/ebpf")
FLAGS: Final = ("-Wall", "-Wno-unused-value", "-Wno-macro-redefined", "-Wno-address-of-packed-member")
HOLES: Final = {
    "slot": 0x5107A61C,
    "write_seq": 0x5107A61D,
    "copied_seq": 0x5107A61E,
    "rmem_alloc": 0x5107A61F,
    "bytes_received": 0x5107A620,
    "rcvbuf": 0x5107A621,
}
ENTRY_POINTS: Final = {
    "connect4": (ProgramType.CGROUP_SOCK_ADDR, AttachType.CONNECT4),
    "connect6": (ProgramType.CGROUP_SOCK_ADDR, AttachType.CONNECT6),
    "steer": (ProgramType.SK_LOOKUP, AttachType.SK_LOOKUP),
    "direct": (ProgramType.SOCK_OPS, AttachType.SOCK_OPS),
    "peer4": (ProgramType.CGROUP_SOCK_ADDR, AttachType.PEER4),
    "peer6": (ProgramType.CGROUP_SOCK_ADDR, AttachType.PEER6),
    "turbo_joins": (ProgramType.SOCK_OPS, AttachType.SOCK_OPS),
    "turbo": (ProgramType.SK_MSG, AttachType.SK_MSG_VERDICT),
    "redirect": (ProgramType.SCHED_CLS, AttachType.TCX_INGRESS),
}
_TIMEOUT: Final = 60.0

log = logging.getLogger(__name__)


def source_text() -> str:
    """The C that is compiled, as one text."""
    return "\n".join(path.read_text() for path in SOURCES)


def source_digest() -> str:
    """SHA-256 over source and flags: byte code that carries it was made from what is installed."""
    digest = hashlib.sha256(source_text().encode())
    for flag in FLAGS:
        digest.update(flag.encode() + b"\0")
    return digest.hexdigest()


def bcc_version() -> str | None:
    """Version of the BCC that this interpreter would import, without importing it; None if there is none."""
    spec = importlib.util.find_spec("bcc")
    if spec is None or spec.origin is None:
        return None
    with contextlib.suppress(OSError):
        found = re.search(r"""['"]([^'"]+)['"]""", (Path(spec.origin).parent / "version.py").read_text())
        if found:
            return found[1]
    return None


def shipped() -> Collection:
    """The byte code that came with the package."""
    try:
        return bytecode.decode(SHIPPED.read_text())
    except (OSError, ValueError) as error:
        raise CaptureError(
            CaptureReason.BYTE_CODE_MISSING,
            f"{SHIPPED}: {error}",
            "reinstall, or run `python -m ebpf.compiler --write`",
        ) from error


def obtain(cache_dir: Path = CACHE_DIR) -> Collection:
    """Byte code for the installed source: from the cache, else compiled, else as shipped."""
    version = bcc_version()
    if version is None:
        return shipped()
    digest = source_digest()
    entry = cache_dir / f"capture-{digest[:16]}-bcc-{version}.json"
    with contextlib.suppress(OSError, ValueError):
        cached = bytecode.decode(entry.read_text())
        if cached.source == digest:
            return cached
    try:
        compiled = compile_in_child()
    except CaptureError as error:
        log.warning("using shipped byte code: %s", error)
        return shipped()
    _store(entry, bytecode.encode(compiled))
    return compiled


def compile_in_child() -> Collection:
    """Compile in a process of its own; CaptureError with the compiler's words."""
    command = [sys.executable, "-m", "ebpf.compiler", "--emit"]
    environment = {**os.environ, "BCC_KERNEL_SOURCE": str(STUBS)}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(PROGRAMS_DIR.parents[1]), os.environ.get("PYTHONPATH")))
    )
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
        if done.returncode == 0:
            return bytecode.decode(done.stdout)
        told = " | ".join(done.stderr.strip().splitlines()[-3:])
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        told = str(error)
    raise CaptureError(CaptureReason.COMPILE_FAILED, told, "install BCC (python3-bpfcc) and run as root")


def is_fresh(kept: Collection, compiled: Collection) -> bool:
    """Whether kept byte code is of the source that was compiled now.

    Another release of the compiler gives other instructions for the same source: then the source, the maps and the
    programs' names have to agree.
    """
    if kept.compiler == compiled.compiler:
        return kept == compiled
    return (kept.source, kept.maps, kept.programs.keys()) == (
        compiled.source,
        compiled.maps,
        compiled.programs.keys(),
    )


def _store(entry: Path, text: str) -> None:
    """Best effort: without a cache the next start compiles again."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=entry.parent, suffix=".tmp", delete=False) as file:
            file.write(text)
        Path(file.name).replace(entry)
    except OSError as error:
        log.info("byte code is not cached: %s", error)


def _compile_here() -> Collection:
    """In the child: let BCC compile and dump."""
    import bcc

    version = bcc_version()
    module = bcc.BPF(text=source_text(), cflags=list(FLAGS))
    maps, names = _tables(bcc.lib, module.module)
    programs = {
        name: bytecode.from_compiled(kind, attach, module.dump_func(name.encode()), names, HOLES)
        for name, (kind, attach) in ENTRY_POINTS.items()
    }
    return Collection(source_digest(), f"bcc {version}", maps, programs)


def _tables(lib: object, module: object) -> tuple[dict[str, MapInfo], dict[int, str]]:
    """Definitions by name, names by descriptor. BCC's own table classes refuse some map types."""
    import ctypes

    def function(name: str, result: type, *arguments: type) -> ctypes._NamedFuncPointer:
        found: ctypes._NamedFuncPointer = getattr(lib, name)
        found.restype, found.argtypes = result, [ctypes.c_void_p, *arguments]
        return found

    index = ctypes.c_size_t
    number = function("bpf_num_tables", ctypes.c_size_t)
    name_of = function("bpf_table_name", ctypes.c_char_p, index)
    descriptor = function("bpf_table_fd_id", ctypes.c_int, index)
    fields = (
        function("bpf_table_type_id", ctypes.c_int, index),
        function("bpf_table_key_size_id", ctypes.c_size_t, index),
        function("bpf_table_leaf_size_id", ctypes.c_size_t, index),
        function("bpf_table_max_entries_id", ctypes.c_size_t, index),
        function("bpf_table_flags_id", ctypes.c_int, index),
    )
    maps: dict[str, MapInfo] = {}
    names: dict[int, str] = {}
    for table in range(number(module)):
        name = name_of(module, table).decode()
        maps[name] = MapInfo(*(field(module, table) for field in fields))
        names[descriptor(module, table)] = name
    return maps, names


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 if done (or fresh)."""
    parser = argparse.ArgumentParser(prog="python -m ebpf.compiler", description=__doc__.splitlines()[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help=f"compile and write {SHIPPED.name}")
    action.add_argument("--check", action="store_true", help=f"compile and compare with {SHIPPED.name}")
    action.add_argument("--emit", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.emit:
        sys.stdout.write(bytecode.encode(_compile_here()))
        return 0
    try:
        compiled = compile_in_child()
        if options.write:
            SHIPPED.write_text(bytecode.encode(compiled))
        elif not is_fresh(shipped(), compiled):
            sys.stderr.write(f"{SHIPPED} is stale; run `python -m ebpf.compiler --write` as root\n")
            return 1
    except CaptureError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
