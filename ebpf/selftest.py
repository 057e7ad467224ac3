"""Capture tried for real before it is relied on.

A child process (`ebpf.trial`) does it in a namespace, cgroup and BPF file system of its own, so that nothing
is left behind however it ends.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ebpf import bytecode, child

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
    arguments = [str(_existing(pin_dir)), *([str(own_cgroup)] if own_cgroup else [])]
    problem = child.run("ebpf.trial", arguments, collection, seconds=_TIMEOUT, cgroup=own_cgroup)
    return SelfTestResult(not problem, problem or "connections were captured in a private namespace")


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
