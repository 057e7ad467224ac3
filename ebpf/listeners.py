"""Listening sockets inside a pod, for the steering program to hand connections to.

They are bound to random addresses out of 240.0.0.0/4 (reserved, RFC 1112), which IP_TRANSPARENT allows: the
program may hand over any connection whatever the listener's address, nothing else can reach it, and two
generations of the agent do not collide. The address is written as IPv4-mapped, since a socket bound to a real
IPv6 address would be IPv6 only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ebpf import netns
from ebpf.errors import CaptureError, CaptureReason
from ebpf.maps import Kind

PORTS: Final = {Kind.OUTBOUND: 15001, Kind.INBOUND: 15006, Kind.HBONE: 15008}
"""Istio's; they only show in `ss`, and connections come in with their own destination port."""

BACKLOG: Final = 4096
_EMPTYING: Final = 0.25
_QUEUED_AT: Final = 24  # tcpi_unacked, which for a listener is the length of its accept queue
_IPV6_TRANSPARENT: Final = 75
_IP_TRANSPARENT: Final = 19
_SO_COOKIE: Final = 57


@dataclass(frozen=True, slots=True)
class Listeners:
    """One socket for each kind, open and listening."""

    outbound: socket.socket
    inbound: socket.socket
    hbone: socket.socket

    def of(self, kind: Kind) -> socket.socket:
        """By kind; KeyError for DNS (see `ebpf.dns`)."""
        return {Kind.OUTBOUND: self.outbound, Kind.INBOUND: self.inbound, Kind.HBONE: self.hbone}[kind]

    def mark(self, mark: int) -> None:
        """Set the mark of what they and their connections send. CaptureError."""
        try:
            for each in (self.outbound, self.inbound, self.hbone):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        except OSError as error:
            raise CaptureError(
                CaptureReason.LISTEN_FAILED, f"SO_MARK: {error.strerror}", "grant NET_ADMIN"
            ) from error

    def close(self) -> None:
        """Close this process's descriptors; a copy held elsewhere goes on listening."""
        for each in (self.outbound, self.inbound, self.hbone):
            each.close()

    def await_accepted(self) -> None:
        """Wait a moment (at most 0.25 s) for connections in the accept queues: closing would reset them."""
        deadline = time.monotonic() + _EMPTYING
        sockets = [each for each in (self.outbound, self.inbound, self.hbone) if each.fileno() >= 0]
        while any(_queued(each) for each in sockets) and time.monotonic() < deadline:
            time.sleep(0.005)

    def cookies(self) -> dict[Kind, int]:
        """The kernel's number of each socket, never used twice."""
        return {kind: self.cookie(kind) for kind in PORTS}

    def cookie(self, kind: Kind) -> int:
        """The number of one of them."""
        return _cookie(self.of(kind))

    def descriptors(self) -> list[int]:
        """In the order of the kinds; for `adopt`."""
        return [self.of(kind).fileno() for kind in PORTS]

    def are_open(self) -> bool:
        """Whether none has been closed."""
        return all(each.fileno() >= 0 for each in (self.outbound, self.inbound, self.hbone))


def _cookie(opened: socket.socket) -> int:
    raw: bytes = opened.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
    return int(struct.unpack("=Q", raw)[0])


def adopt(fds: Sequence[int], cookie: int) -> Listeners | None:
    """Another agent's `descriptors`, if they listen in the namespace of this cookie; else they are closed."""
    sockets = [socket.socket(fileno=fd) for fd in fds]
    if len(sockets) == len(PORTS) and all(_listens(each, cookie) for each in sockets):
        for each in sockets:
            each.setblocking(False)
        return Listeners(*sockets)
    for each in sockets:
        each.close()
    return None


def _listens(opened: socket.socket, cookie: int) -> bool:
    return is_ours(opened, cookie) and bool(opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def is_ours(opened: socket.socket, cookie: int) -> bool:
    """Whether an agent opened it, in the namespace of this cookie."""
    return (
        opened.family in (socket.AF_INET, socket.AF_INET6)
        and bool(opened.getsockopt(socket.SOL_IP, _IP_TRANSPARENT))
        and netns.cookie_of(opened) == cookie
    )


def _queued(listener: socket.socket) -> int:
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUED_AT + 4)
    return int(struct.unpack_from("=I", info, _QUEUED_AT)[0])


def open_listeners(netns_fd: int) -> Listeners:
    """Open all in a pod's namespace. CaptureError."""
    with contextlib.ExitStack() as opened:
        with netns.inside(netns_fd):
            sockets = [opened.enter_context(open_listener(PORTS[kind])) for kind in PORTS]
        opened.pop_all()
    return Listeners(*sockets)


def open_listener(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """In this thread's namespace, on the port, or on any other if the application has a wildcard listener
    there. CaptureError."""
    for attempt in (port, port, 0):
        try:
            return _try(attempt, kind)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and attempt:
                continue
            advice = "grant NET_ADMIN" if error.errno == errno.EPERM else "check the pod's limits"
            raise CaptureError(
                CaptureReason.LISTEN_FAILED, f"port {attempt} in the pod: {error.strerror}", advice
            ) from error
    raise AssertionError


def _try(port: int, kind: socket.SocketKind) -> socket.socket:
    """Dual stack; IPv4 alone on a kernel without IPv6."""
    address = f"240.{'.'.join(map(str, os.urandom(3)))}"
    try:
        opened = socket.socket(socket.AF_INET6, kind)
        address = f"::ffff:{address}"
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        opened = socket.socket(socket.AF_INET, kind)
    try:
        opened.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
        if opened.family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        opened.setblocking(False)
        opened.bind((address, port))
        if kind == socket.SOCK_STREAM:
            opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened
