"""TCP sockets of a network namespace as the kernel lists them (sock_diag), and their forced end.

Call under `netns.inside`. OSError as the kernel answers: ENOENT where it has no inet_diag. Source:
include/uapi/linux/inet_diag.h.
"""

from __future__ import annotations

import enum
import errno
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from ebpf.marks import AGENT_MARK, LOOP_MARK
from ebpf.netlink import Netlink, parse_attributes
from ebpf.pairs import Endpoint

Address = IPv4Address | IPv6Address

_SOCK_DIAG: Final = 4
_BY_FAMILY, _DESTROY = 20, 21
_MESSAGE: Final = struct.Struct("=4B")
_ID: Final = struct.Struct("!HH16s16s")
_ID_AT, _ID_SIZE, _REST_AT, _ATTRIBUTES_AT = 4, 48, 52, 72
_INFO, _MARK = 2, 15
_ACKED_AT, _RECEIVED_AT = 120, 128


class State(enum.IntEnum):
    """TCP states (include/net/tcp_states.h)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11


LIVE: Final = frozenset(State) - {State.LISTEN, State.CLOSE, State.TIME_WAIT}
_UNSENT: Final = frozenset({State.FIN_WAIT1, State.CLOSING, State.LAST_ACK})


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """`inode` is 0 when no process holds it. `sent` and `received`: bytes acknowledged by the other end and
    received, with what SYN and FIN add (see `payload_sent`, for a socket that connected). `identity` names it
    to the kernel."""

    family: int
    state: State
    local: Endpoint
    remote: Endpoint
    inode: int
    mark: int
    sent: int
    received: int
    identity: bytes

    @property
    def cookie(self) -> int:
        """The kernel's number for the socket, never used twice."""
        low, high = struct.unpack_from("=II", self.identity, 40)
        return int(low | high << 32)

    @property
    def payload_sent(self) -> int:
        """Bytes of the application that arrived: SYN and an acknowledged FIN count as one each."""
        return max(0, self.sent - 1 - (self.state == State.FIN_WAIT2))

    @property
    def payload_received(self) -> int:
        """Bytes of the application that came."""
        return max(0, self.received - (self.state in (State.CLOSE_WAIT, State.LAST_ACK, State.CLOSING)))


def listed(states: Collection[State] = LIVE) -> Iterator[TcpSocket]:
    """All TCP sockets of this thread's namespace in these states."""
    mask = sum(1 << state for state in states)
    with Netlink(_SOCK_DIAG) as link:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 1 << (_INFO - 1), mask) + bytes(48)
            for body in link.dump(_BY_FAMILY, request):
                yield _parse(body)


def identity(local: Endpoint, remote: Endpoint, cookie: int) -> bytes:
    """How the kernel is told of one socket (struct inet_diag_sockid)."""
    words = struct.pack("=III", 0, cookie & 0xFFFFFFFF, cookie >> 32)
    source, destination = (end.ip.packed.ljust(16, b"\0") for end in (local, remote))
    return _ID.pack(local.port, remote.port, source, destination) + words


def destroy(victim: bytes) -> bool:
    """End a connection, by its `identity`: its owner gets ECONNABORTED, the other end a reset. False if it was
    gone."""
    family = socket.AF_INET if victim[8:20] == bytes(12) else socket.AF_INET6
    request = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, 0xFFFF) + victim
    with Netlink(_SOCK_DIAG) as link:
        try:
            link.change(_DESTROY, request)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise
    return True


def relayed(own: Collection[Address]) -> bool:
    """Whether the agent relays a connection of this thread's namespace that needs the loop to `lo`."""
    return next(relayed_pairs(own), None) is not None


def relayed_pairs(own: Collection[Address]) -> Iterator[tuple[Endpoint, Endpoint]]:
    """The connections that the agent relays and that need the loop to `lo`, as the application has them: its own
    end, the other end.

    Such a one is a pair of sockets here: the application's, and the agent's with a local address that is not
    the pod's (the original destination, or the client's address). When the application has closed its own
    and all it sent has arrived, the pair needs no way any more.
    """
    sockets = {(each.local, each.remote): each for each in listed()}
    for each in sockets.values():
        if not each.mark & (LOOP_MARK | AGENT_MARK) or each.local.ip in own or each.local.ip.is_loopback:
            continue
        application = sockets.get((each.remote, each.local))
        if application is not None and (application.inode or application.state in _UNSENT):
            yield application.local, application.remote


def _parse(body: bytes) -> TcpSocket:
    family, state, _, _ = _MESSAGE.unpack_from(body)
    source_port, port, source, destination = _ID.unpack_from(body, _ID_AT)
    _, _, _, _, inode = struct.unpack_from("=5I", body, _REST_AT)
    found = parse_attributes(body[_ATTRIBUTES_AT:])
    info, mark = found.get(_INFO, b""), found.get(_MARK, bytes(4))
    sent = received = 0
    if len(info) >= _RECEIVED_AT + 8:
        sent, received = (
            struct.unpack_from("=Q", info, _ACKED_AT)[0],
            struct.unpack_from("=Q", info, _RECEIVED_AT)[0],
        )
    return TcpSocket(
        family,
        State(state),
        Endpoint(_address(family, source), source_port),
        Endpoint(_address(family, destination), port),
        inode,
        struct.unpack("=I", mark)[0],
        sent,
        received,
        body[_ID_AT : _ID_AT + _ID_SIZE],
    )


def _address(family: int, raw: bytes) -> Address:
    if family == socket.AF_INET:
        return IPv4Address(raw[:4])
    address = ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
