"""Compiles the C parts (load generator, splice relay) on demand into build/bench/bin."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "native"
PROGRAMS = {
    "load": ("load.c", "common.c", "serve.c", "bulk.c", "exchange.c", "check.c"),
    "relay": ("relay.c",),
}
FLAGS = ("-O2", "-g", "-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Werror")


class BuildError(Exception):
    """The compiler is missing or refused; the text says what to do."""


def build(directory: Path) -> Path:
    """Brings all programs in `directory` up to date and returns it."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BuildError("no C compiler: install gcc")
    directory.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in SOURCE.iterdir())
    for program, sources in PROGRAMS.items():
        target = directory / program
        if target.exists() and target.stat().st_mtime >= newest:
            continue
        command = [compiler, *FLAGS, "-o", str(target), *(str(SOURCE / source) for source in sources)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"{program}: {done.stderr.strip()}")
    return directory
