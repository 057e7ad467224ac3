"""Capture tried for real before it is relied on.

A child process (`ebpf.trial`) does it in a namespace, cgroup and BPF file system of its own, so that nothing
is left behind however it ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ebpf import bytecode

_PREFIX: Final = "ambientlite-selftest-"
_TIMEOUT: Final = 20.0


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """Whether the variant works, and what was seen. One line."""

    works: bool
    reason: str


def run(collection: bytecode.Collection, cgroup: Path | None, pin_dir: Path) -> SelfTestResult:
    """Test the byte code on this kernel: variant B below the cgroup, variant C without one. Some 0.2 s."""
    own_cgroup = cgroup / f"{_PREFIX}{os.getpid()}" if cgroup is not None else None
    command = [
        sys.executable,
        "-m",
        "ebpf.trial",
        str(_existing(pin_dir)),
        *([str(own_cgroup)] if own_cgroup else []),
    ]
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command,
            input=bytecode.encode(collection),
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return SelfTestResult(False, f"self-test did not finish: {error}")
    finally:
        if own_cgroup is not None:
            with contextlib.suppress(OSError):
                own_cgroup.rmdir()
    if done.returncode == 0:
        return SelfTestResult(True, "connections were captured in a private namespace")
    told = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return SelfTestResult(False, told[-1])


def remove_leftovers(cgroup: Path) -> list[str]:
    """Remove cgroups of self-tests that were killed together with their agent."""
    removed: list[str] = []
    for directory in cgroup.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            directory.rmdir()
            removed.append(str(directory))
    return removed


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())
