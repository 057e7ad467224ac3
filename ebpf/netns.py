"""Network namespaces: work inside one, its cookie, its addresses, finding it again by inode."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from ebpf import netlink

_CLONE_NEWNET: Final = 0x40000000
_SO_NETNS_COOKIE: Final = 71
_EXIT_LOST: Final = 70
_libc = ctypes.CDLL(None, use_errno=True)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):  # os.setns exists only from Python 3.12
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def unshare() -> None:
    """Put this thread into a new network namespace. OSError without CAP_SYS_ADMIN."""
    if _libc.unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")


@contextlib.contextmanager
def inside(netns_fd: int) -> Iterator[None]:
    """Run the body of `with` in a network namespace; this thread only, so the body must not await.

    OSError if the descriptor is no namespace. If the way back fails the process ends at once: going on in a
    stranger's namespace would be worse.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(netns_fd)
        try:
            yield
        finally:
            try:
                _setns(home)
            except OSError:
                os._exit(_EXIT_LOST)
    finally:
        os.close(home)


def cookie_here() -> int:
    """The kernel's number for this thread's namespace; never used twice until reboot."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return cookie_of(probe)


def cookie_of(opened: socket.socket) -> int:
    """`cookie_here` of the namespace in which a socket was opened."""
    raw: bytes = opened.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    return int(struct.unpack("=Q", raw)[0])


def cookie(netns_fd: int) -> int:
    """`cookie_here` of another namespace."""
    with inside(netns_fd):
        return cookie_here()


def addresses(netns_fd: int) -> tuple[IPv4Address | IPv6Address, ...]:
    """All addresses of global scope, in the kernel's order, IPv4 first."""
    with inside(netns_fd), netlink.Netlink() as link:
        return link.addresses()


def inode(netns_fd: int) -> int:
    """The namespace's number as `ls -l /proc/PID/ns` and link information show it."""
    return os.fstat(netns_fd).st_ino


def find(wanted_inode: int, wanted_cookie: int) -> int | None:
    """Open a namespace that some process runs in or that has a name under /run/netns; None if out of reach.

    An inode may be used again for another namespace: the cookie decides.
    """
    for path in _candidates():
        with contextlib.suppress(OSError):
            if path.stat().st_ino != wanted_inode:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if cookie(fd) == wanted_cookie:
                    return fd
            except OSError:
                pass
            os.close(fd)
    return None


def _candidates() -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from Path("/run/netns").iterdir()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            yield process / "ns" / "net"
