"""Just enough inotify: a descriptor that becomes readable when a folder's files change."""

import contextlib
import ctypes
import os
from pathlib import Path

_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO = 0x8, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
# Not IN_MODIFY: a file that is being written is read when it is complete. IN_CREATE is for links.
_MASK = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF


def open_watch(path: Path) -> int | None:
    """A non-blocking descriptor, or None where inotify is not to be had (limits, odd file systems)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        return None
    if libc.inotify_add_watch(descriptor, os.fsencode(path), _MASK) < 0:
        os.close(descriptor)
        return None
    return descriptor


def drain(descriptor: int) -> None:
    """Discards the waiting events: what changed is found by looking, so none can be missed."""
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, 65536):
            pass
