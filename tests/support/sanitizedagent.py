"""The node agent with an engine that was built with a sanitizer: `python -m tests.support.sanitizedagent KIND REPORTS ARGS`.

ARGS are those of `ztunnel`. It starts itself once more under the sanitizer's library, which has to be the first of a
process; programs that the agent starts are without it. Findings go into files of the folder REPORTS, since nobody reads
the standard error of an agent of a mesh; with `address` its end looks for memory that nobody can reach any more.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from pathlib import Path

from tests.support import sanitized

AGAIN = "AMBIENT_SANITIZED_AGENT"
OURS = (AGAIN, "LD_PRELOAD", "PYTHONMALLOC", "AMBIENT_ENGINE_EXTENSION", "AMBIENT_SANITIZE")


def start_again(kind: str, reports: Path) -> None:
    """This program in the same process, under the sanitizer's library."""
    os.environ["AMBIENT_SANITIZE"] = kind
    environment = sanitized.environment(reports=reports) | {AGAIN: "1"}
    words = [sys.executable, "-m", "tests.support.sanitizedagent", *sys.argv[1:]]
    os.execve(words[0], words, environment)  # noqa: S606 - there is no shell to be had


def look_for_leaks() -> None:
    """Before the interpreter takes itself down: what its objects hold can still be reached."""
    gc.collect()
    sanitized.unreachable()


def main() -> int:
    """The exit status of `ztunnel`."""
    kind, reports, *arguments = sys.argv[1:]
    if AGAIN not in os.environ:
        start_again(kind, Path(reports))
    sanitized.load()
    for name in OURS:
        os.environ.pop(name, None)
    if kind == "address":
        atexit.register(look_for_leaks)
    from ztunnel.__main__ import main as ztunnel

    return ztunnel(arguments)


if __name__ == "__main__":
    sys.exit(main())
