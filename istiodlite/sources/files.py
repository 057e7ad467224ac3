"""Watches a folder of manifests.

inotify only says *when* to look; *what* changed is found by comparing (mtime, ctime, size, inode) of every file.
So events may be merged, lost or overflow without harm, idle costs nothing, and a change is seen within
a millisecond instead of half a polling interval. A slow poll covers file systems without events.
"""

import os
from collections.abc import AsyncGenerator
from pathlib import Path

import trio

from istiodlite.sources.folder import Batch, Folder
from istiodlite.sources.inotify import drain, open_watch

POLL_SECONDS = 2.0


async def watch(folder: Folder) -> AsyncGenerator[Batch, None]:
    """Yields a batch for every scan that changed objects or errors. Endless; cancel to stop."""
    reported: tuple[object, ...] | None = None
    watch = _Watch(folder.path)
    try:
        while True:
            # One scan at a time, in a thread: reading a large folder must not delay status answers.
            batch = await trio.to_thread.run_sync(folder.scan)
            if batch.changes or batch.errors != reported:
                reported = batch.errors
                yield batch
            await watch.wait()
    finally:
        watch.close()


class _Watch:
    """An inotify watch that follows the folder if another one takes its place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._inode = 0
        self._renew()

    def _renew(self) -> None:
        try:
            inode = self._path.stat().st_ino
        except OSError:
            inode = 0
        if inode == self._inode and self._descriptor is not None:
            return
        self.close()
        self._inode = inode
        self._descriptor = open_watch(self._path) if inode else None

    async def wait(self) -> None:
        """Returns when something may have changed."""
        with trio.move_on_after(POLL_SECONDS):
            if self._descriptor is None:
                await trio.sleep_forever()
            else:
                await trio.lowlevel.wait_readable(self._descriptor)
                drain(self._descriptor)
        self._renew()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
