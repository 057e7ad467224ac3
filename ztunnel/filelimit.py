"""How many descriptors the agent may have open: each connection it carries takes two, each pod about ten."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Final

__all__ = ["FEW", "WANTED", "raise_file_limit"]

WANTED: Final = 1 << 20
"""The kernel's usual ceiling (`fs.nr_open`) for one process."""
FEW: Final = 1 << 16
"""A limit that a busy node may reach; what needs more is refused."""


def raise_file_limit() -> int:
    """Raise the soft limit as far as it goes, the hard one as well where the process may (CAP_SYS_RESOURCE)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(hard, min(WANTED, _ceiling(hard)))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard
    return highest


def _ceiling(unknown: int) -> int:
    try:
        return int(Path("/proc/sys/fs/nr_open").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return unknown
