"""The sockets through which an agent answers what a pod asks of its name servers.

Questions arrive at `udp` and `tcp` with the address asked as their destination; neither socket is reachable
otherwise. An answer to a datagram has to come from that address and port 53, and port 53 of the pod may be
in use by an application: so answers are written as whole packets, and no port is taken.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from ebpf import netns
from ebpf.datagram import udp_packet
from ebpf.errors import CaptureError, CaptureReason
from ebpf.listeners import is_ours, open_listener
from ebpf.maps import Kind
from ebpf.marks import ASIDE_MARK

Address = IPv4Address | IPv6Address

DNS_PORT: Final = 53
PORT: Final = 15053
"""Istio's; it only shows in `ss`."""

_LARGEST: Final = 65535
_IP_RECVORIGDSTADDR: Final = 20
_IPV6_RECVORIGDSTADDR: Final = 74
_CONTROL: Final = 256


@dataclass(frozen=True, slots=True)
class Question:
    """A datagram: from whom, to which name server's address and port."""

    data: bytes
    client: tuple[Address, int]
    asked: tuple[Address, int]


@dataclass(frozen=True, slots=True)
class DnsSockets:
    """One pod's. `udp` and `tcp` are non-blocking and dual stack; `raw` writes packets, by IP version."""

    udp: socket.socket
    tcp: socket.socket
    raw: dict[int, socket.socket]

    def of(self, kind: Kind) -> socket.socket:
        """By kind."""
        return {Kind.DNS_UDP: self.udp, Kind.DNS_TCP: self.tcp}[kind]

    def next(self) -> Question | None:
        """The datagram that has waited longest, which goes on waiting until `done`: what an agent that is killed has not
        answered is there for the next one. None if it does not say where it was sent. BlockingIOError if there is none."""
        data, control, _, client = self.udp.recvmsg(_LARGEST, _CONTROL, socket.MSG_PEEK)
        for level, kind, raw in control:
            if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR):
                return Question(data, _end(client), (_plain(IPv6Address(raw[8:24])), _port(raw)))
            if (level, kind) == (socket.SOL_IP, _IP_RECVORIGDSTADDR):
                return Question(data, _end(client), (IPv4Address(raw[4:8]), _port(raw)))
        return None

    def done(self) -> None:
        """Take off what `next` gave."""
        with contextlib.suppress(OSError):
            self.udp.recv(1)

    def answer(self, question: Question, data: bytes) -> bool:
        """Answer as the address that was asked. Whether the kernel took it: it may have no room."""
        (ip, port) = question.client
        try:
            packet = udp_packet(question.asked, (ip, port), data)
            self.raw[ip.version].sendto(packet, (str(ip), 0))
        except (OSError, KeyError, ValueError):
            return False
        return True

    def copy(self) -> DnsSockets:
        """The same sockets under descriptors of their own."""
        raw = {version: each.dup() for version, each in self.raw.items()}
        return DnsSockets(self.udp.dup(), self.tcp.dup(), raw)

    def are_open(self) -> bool:
        """Whether none has been closed."""
        return all(each.fileno() >= 0 for each in self._all())

    def descriptors(self) -> list[int]:
        """Of the sockets at which questions wait; for `adopt_dns`."""
        return [self.udp.fileno(), self.tcp.fileno()]

    def close(self) -> None:
        """Close all."""
        close_all(self._all())

    def _all(self) -> tuple[socket.socket, ...]:
        return (self.udp, self.tcp, *self.raw.values())


def close_all(sockets: Iterable[socket.socket]) -> None:
    """Each of them."""
    for each in sockets:
        each.close()


def adopt_dns(fds: Sequence[int], cookie: int) -> tuple[socket.socket, socket.socket] | None:
    """Another agent's `descriptors`, if they are such sockets of the namespace of this cookie; else they are closed."""
    sockets = [socket.socket(fileno=fd) for fd in fds]
    kinds = [each.type for each in sockets]
    if kinds == [socket.SOCK_DGRAM, socket.SOCK_STREAM] and all(is_ours(each, cookie) for each in sockets):
        for each in sockets:
            each.setblocking(False)
        return sockets[0], sockets[1]
    close_all(sockets)
    return None


def open_dns(netns_fd: int, left: tuple[socket.socket, socket.socket] | None = None) -> DnsSockets:
    """Open all in a pod's namespace; `left`: what `adopt_dns` found, to be used. CaptureError."""
    with contextlib.ExitStack() as opened:
        with netns.inside(netns_fd):
            if left is None:
                udp = opened.enter_context(open_listener(PORT, socket.SOCK_DGRAM))
                tcp = opened.enter_context(open_listener(PORT, socket.SOCK_STREAM))
            else:
                udp, tcp = left
                opened.callback(close_all, left)
            raw: dict[int, socket.socket] = {}
            for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
                with _explained(version):
                    raw[version] = opened.enter_context(
                        socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
                    )
        udp.setsockopt(socket.SOL_IP, _IP_RECVORIGDSTADDR, 1)
        if udp.family == socket.AF_INET6:
            udp.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR, 1)
        opened.pop_all()
    return DnsSockets(udp, tcp, raw)


def open_upstream(netns_fd: int | None, version: int, kind: socket.SocketKind) -> socket.socket:
    """A non-blocking socket whose questions are not captured, in a pod's namespace or (None) in this
    thread's. OSError."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with netns.inside(netns_fd) if netns_fd is not None else contextlib.nullcontext():
        opened = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if kind == socket.SOCK_DGRAM:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, ASIDE_MARK)
    return opened


def original_destination(local: tuple[str, int] | tuple[str, int, int, int]) -> tuple[Address, int]:
    """Which name server a TCP connection was made to, from the accepted socket's getsockname()."""
    return _end(local)


@contextlib.contextmanager
def _explained(version: int) -> Iterator[None]:
    """A kernel without IPv6 has nothing to answer there."""
    try:
        yield
    except OSError as error:
        if version == 6 and error.errno == errno.EAFNOSUPPORT:
            return
        advice = "grant NET_RAW" if error.errno == errno.EPERM else "check the pod's limits"
        raise CaptureError(
            CaptureReason.LISTEN_FAILED, f"raw socket in the pod: {error.strerror}", advice
        ) from error


def _end(address: tuple[str, int] | tuple[str, int, int, int]) -> tuple[Address, int]:
    return _plain(ip_address(address[0].partition("%")[0])), address[1]


def _plain(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _port(sockaddr: bytes) -> int:
    return int(struct.unpack_from("!H", sockaddr, 2)[0])
