"""A self-test as a process of its own, so that nothing is left behind however it ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ebpf import bytecode

__all__ = ["run"]


def run(
    module: str,
    arguments: Sequence[str],
    collection: bytecode.Collection,
    *,
    seconds: float,
    cgroup: Path | None = None,
) -> str:
    """Runs `python -m MODULE ARGUMENTS` with the byte code as its input, for so long at most. What was wrong, one line; empty
    if nothing. `cgroup`: one that the child makes, removed here if it could not."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            input=bytecode.encode(collection),
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"did not finish: {error}"
    finally:
        if cgroup is not None:
            with contextlib.suppress(OSError):
                cgroup.rmdir()
    if not done.returncode:
        return ""
    told = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return told[-1]
