"""Settings under /proc/sys that are whole numbers. Those of the network are the ones of this thread's namespace."""

from __future__ import annotations

import os
from pathlib import Path

from ebpf.errors import CaptureError, CaptureReason


def read(path: Path) -> int:
    """OSError; FileNotFoundError if this kernel does not have it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 32))
    finally:
        os.close(fd)


def write(path: Path, value: int) -> None:
    """OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"%d" % value)
    finally:
        os.close(fd)


def ensure(path: Path, wanted: int) -> None:
    """Write it unless it is so. CaptureError where /proc/sys cannot be written; FileNotFoundError."""
    try:
        if read(path) != wanted:
            write(path, wanted)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CaptureError(
            CaptureReason.SYSCTL_FAILED,
            f"{path}: {error.strerror}",
            "run the agent with a writable /proc/sys (privileged)",
        ) from error
