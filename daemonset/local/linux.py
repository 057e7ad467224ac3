"""System calls for namespaces and mounts that Python 3.11 has no names for.

setns(2) and unshare(2) act on the calling thread. Everything here is synchronous, so that no other work
of the thread can come between entering a namespace and leaving it.
"""

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MNT_DETACH = 2


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


@contextlib.contextmanager
def inside(netns: Path | None) -> Iterator[None]:
    """Runs the block in the network namespace (None: stay). The process ends if the way back fails."""
    if netns is None:
        yield
        return
    with _opened("/proc/thread-self/ns/net") as home, _opened(str(netns)) as target:
        _check(_libc.setns(target, CLONE_NEWNET), f"enter {netns}")
        try:
            yield
        finally:
            if _libc.setns(home, CLONE_NEWNET):
                os._exit(70)  # going on in a foreign namespace would do harm


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def make_netns(path: Path) -> None:
    """Makes a network namespace that is held by its name under /run/netns (as `ip netns add`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    with _opened("/proc/thread-self/ns/net") as home:
        _check(_libc.unshare(CLONE_NEWNET), "make a network namespace")
        try:
            mount("/proc/thread-self/ns/net", path, "none", MS_BIND)
        finally:
            if _libc.setns(home, CLONE_NEWNET):
                os._exit(70)


def remove_netns(path: Path) -> None:
    """Takes the name away; the namespace dies with its last process. No error if it is not there."""
    unmount(path)
    path.unlink(missing_ok=True)


def mount(source: str, target: Path, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(result, f"mount {source} on {target}")


def unmount(target: Path) -> bool:
    """Detaches every mount on `target`; whether there was one."""
    found = False
    while _libc.umount2(os.fsencode(target), MNT_DETACH) == 0:
        found = True
    if ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        _check(-1, f"unmount {target}")
    return found


def mounts_below(folder: Path, table: str) -> list[Path]:
    """Mount points inside `folder` according to the text of /proc/self/mounts, innermost first."""
    points = [Path(line.split(" ")[1].replace("\\040", " ")) for line in table.splitlines() if line]
    return sorted((p for p in points if folder in p.parents), reverse=True)


def leave_for_new_netns() -> None:
    """Moves the calling thread into a nameless network namespace for good."""
    _check(_libc.unshare(CLONE_NEWNET), "make a network namespace")
