"""Secret files: written whole, never readable by others, created by one process only."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class DataError(Exception):
    """The data directory cannot be used; the text is one line and says what to do."""


def write_atomically(path: Path, data: bytes, mode: int) -> None:
    """Replaces `path` by a file that is complete and has `mode` from the start."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def locked_directory(path: Path) -> Iterator[None]:
    """Makes the directory (0700) if needed and holds its lock, so that two processes that start together
    create one root and not two. Raises DataError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; choose a writable --data directory") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
