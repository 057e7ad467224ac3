"""The file with certificate revocation lists: watched, and handed to the engine.

Data in: CRL_PATH, usually a key of a mounted ConfigMap, whose symlinks Kubernetes swaps. Data out: the file's
bytes, to `Engine.set_crls`. The file is looked at each second through its links; what changed is read once it has
been the same for SETTLED seconds. A missing file at the start means no lists. Later, a file that vanishes or
cannot be used leaves the lists before it in force: nobody becomes valid again by a mistake.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import trio

from ztunnel.logs import fields

__all__ = ["LOOK", "SETTLED", "CrlFile"]

_log = logging.getLogger("ztunnel.crl")

LOOK = 1.0
"""Seconds between two looks."""
SETTLED = 2.0
"""Seconds without a change before a file is read (ztunnel's debounce)."""

Version: TypeAlias = tuple[int, int, int, int] | None


class Judge(Protocol):
    """What takes the lists: the engine."""

    def set_crls(self, files: Sequence[bytes]) -> None:
        """Replace all lists; ValueError leaves the old ones in force."""


def _version(path: Path) -> Version:
    """What distinguishes one content from another; None when there is no file."""
    try:
        found = os.stat(path)  # through symlinks: a swap shows as another inode
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


class CrlFile:
    """Watches one file; `usable` is false while a file is there that has never been readable."""

    def __init__(
        self, path: Path, judge: Judge, *, monotonic: Callable[[], float] = trio.current_time
    ) -> None:
        self._path, self._judge, self._monotonic = path, judge, monotonic
        self._loaded: Version = None
        self.usable = True
        self._in_force = False

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load what is there, report started, and follow the file."""
        seen = _version(self._path)
        if seen is not None:
            await self._load(seen)
        else:
            _log.info("no revocation lists yet", extra=fields(path=str(self._path)))
        task_status.started()
        since = self._monotonic()
        while True:
            await trio.sleep(LOOK)
            now, found = self._monotonic(), _version(self._path)
            if found != seen:
                seen, since = found, now
            elif found != self._loaded and now - since >= SETTLED:
                await self._load(found)

    async def _load(self, version: Version) -> None:
        self._loaded = version
        try:
            content = await trio.to_thread.run_sync(self._path.read_bytes)
            await trio.to_thread.run_sync(self._judge.set_crls, [content])
        except (OSError, ValueError) as error:
            self.usable = self._in_force or version is None
            kept = "the lists before stay in force" if self._in_force else "repair the file to become ready"
            _log.error(
                f"revocation lists not loaded, {kept}", extra=fields(path=str(self._path), error=str(error))
            )
            return
        self._in_force = self.usable = True
        _log.info("revocation lists loaded", extra=fields(path=str(self._path), bytes=len(content)))
