"""The engine under a sanitizer: `AMBIENT_SANITIZE=address` (or `thread`) for any test run.

Engine hosts (`enginehost.py`) and the node agents of the tests that need root (`sanitizedagent.py`) then load an
extension built with that sanitizer. Limits on CPU time and memory do not hold in such a run; what counts is that no
report is printed and no process ends. With `address`, a process that leaked says so at its end; what the interpreter and
the dynamic linker keep for themselves is left out (lsan.supp). Reports of agents fail the whole run, at its end.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
ENGINE = PROJECT / "hbone" / "engine"
KINDS = {"address": "address,undefined", "thread": "thread"}
REPORTS = "AMBIENT_SANITIZE_REPORTS"
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}


def kind() -> str:
    """The sanitizer asked for; "" for none."""
    return os.environ.get("AMBIENT_SANITIZE", "")


def extension(wanted: str) -> Path:
    """Build `hbone._engine` with the sanitizer unless it is there and newer than its sources."""
    return _build(f"sanitize-{wanted}", wanted)


def wrapped() -> Path:
    """The same with `h2_control` wrapped by wrapped.c."""
    return _build(f"wrapped-{kind() or 'plain'}", kind(), Path(__file__).with_name("wrapped.c"))


def _build(name: str, wanted: str, wrapper: Path | None = None) -> Path:
    out = PROJECT / "build" / name / "_engine.so"
    sources = [*sorted(ENGINE.glob("*.c")), *([wrapper] if wrapper else [])]
    newest = max(path.stat().st_mtime for path in [*sources, *ENGINE.glob("*.h")])
    if not out.exists() or out.stat().st_mtime < newest:
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh = out.with_suffix(f".{os.getpid()}")  # another process of the run may be at it, too
        flags = [
            "-std=gnu11",
            "-D_GNU_SOURCE",
            "-g",
            "-O1" if wanted else "-O0",
            "-fno-omit-frame-pointer",
            "-fPIC",
            "-shared",
            "-pthread",
            *([f"-fsanitize={KINDS[wanted]}"] if wanted else []),
            *(["-Wl,--wrap=h2_control"] if wrapper else []),
        ]
        include = [f"-I{sysconfig.get_paths()['include']}", f"-I{ENGINE}"]
        command = ["gcc", *flags, *include, *map(str, sources), "-o", str(fresh)]
        subprocess.run([*command, "-lssl", "-lcrypto"], check=True)
        fresh.replace(out)
    return out


def environment(built: str = "", *, reports: Path | None = None) -> dict[str, str]:
    """The environment of a process that is to load it, or the extension that was built. Findings are printed, or
    become files of the folder `reports`."""
    wanted = kind()
    if not wanted:
        return {**os.environ, **({"AMBIENT_ENGINE_EXTENSION": built} if built else {})}
    name = LIBRARIES[wanted]
    library = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    to = f":log_path={reports / wanted}" if reports else ""
    return {
        **os.environ,
        "AMBIENT_ENGINE_EXTENSION": built or str(extension(wanted)),
        "LD_PRELOAD": library.stdout.strip(),
        # two frames: a suppression that names the interpreter must not hold for what the interpreter called
        "ASAN_OPTIONS": f"detect_leaks=1:leak_check_at_exit=0:abort_on_error=1:malloc_context_size=2{to}",
        "LSAN_OPTIONS": f"suppressions={Path(__file__).with_name('lsan.supp')}:print_suppressions=0",
        "UBSAN_OPTIONS": f"print_stacktrace=1:halt_on_error=1{to}",
        "TSAN_OPTIONS": f"halt_on_error=1:exitcode=66{to}",
        "PYTHONMALLOC": "malloc",
    }


def leaks() -> bool:
    """In an engine host: whether something was allocated that nobody can reach any more."""
    return kind() == "address" and unreachable()


def unreachable() -> bool:
    """The same in any process under AddressSanitizer; it reports what it finds."""
    return bool(ctypes.CDLL(None).__lsan_do_recoverable_leak_check())


@functools.cache
def reports() -> Path:
    """Where the agents of this run leave theirs: one place for all processes that pytest runs in."""
    found = os.environ.get(REPORTS) or tempfile.mkdtemp(prefix="ambient-sanitize-")
    os.environ[REPORTS] = found
    return Path(found)


def agent_command() -> list[str]:
    """What starts `ztunnel`, without its arguments."""
    if not kind():
        return [sys.executable, "-m", "ztunnel"]
    extension(kind())  # not while somebody waits for the agent
    return [sys.executable, "-m", "tests.support.sanitizedagent", kind(), str(reports())]


def findings() -> dict[str, str]:
    """What agents have reported so far, by the name of the file."""
    return (
        {path.name: path.read_text(errors="replace") for path in sorted(reports().iterdir())}
        if kind()
        else {}
    )


def load() -> None:
    """In that process, before `hbone.engine` is imported."""
    import importlib.util
    import sys

    path = os.environ.get("AMBIENT_ENGINE_EXTENSION")
    if not path:
        return
    import hbone

    spec = importlib.util.spec_from_file_location("hbone._engine", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hbone._engine"] = module
    spec.loader.exec_module(module)
    hbone._engine = module  # type: ignore[attr-defined]
