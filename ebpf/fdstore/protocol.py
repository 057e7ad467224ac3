"""Packets between the agent and the fd store, one each (SOCK_SEQPACKET): a verb and a namespace's cookie.

KEEP and HERE carry the pod's sockets as file descriptors: outbound, inbound, hbone, and where its questions to name
servers are captured, DNS over UDP and TCP. Pure but for the ancillary data of sendmsg and recvmsg.
"""

from __future__ import annotations

import array
import enum
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

LISTENERS: Final = 3
COUNTS: Final = (LISTENERS, LISTENERS + 2)
_PACKET: Final = struct.Struct("=BQ")
_MOST: Final = 16


class Verb(enum.IntEnum):
    """What is asked, and what is answered to TAKE and CLEAR."""

    KEEP = 1
    FORGET = 2
    TAKE = 3
    CLEAR = 4
    HERE = 5
    NOTHING = 6


class ProtocolError(Exception):
    """The other end does not speak as agreed."""


def encode(verb: Verb, cookie: int = 0) -> bytes:
    """One packet."""
    return _PACKET.pack(verb, cookie)


def decode(packet: bytes, count: int) -> tuple[Verb, int]:
    """A packet that came with `count` descriptors. ProtocolError."""
    try:
        number, cookie = _PACKET.unpack(packet)
        verb = Verb(number)
    except (struct.error, ValueError):
        raise ProtocolError("a packet cannot be read") from None
    if count not in (COUNTS if verb in (Verb.KEEP, Verb.HERE) else (0,)):
        raise ProtocolError(f"{verb.name} came with {count} descriptors")
    return verb, int(cookie)


def send(sock: socket.socket, packet: bytes, fds: Sequence[int] = ()) -> None:
    """OSError."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([packet], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """A packet and its descriptors (close-on-exec, the caller's); an empty packet at the end. OSError."""
    fds = array.array("i")
    space = socket.CMSG_SPACE(_MOST * fds.itemsize)
    packet, ancillary, flags, _ = sock.recvmsg(_PACKET.size + 1, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close(fds)
        raise ProtocolError("a packet is too large")
    return packet, list(fds)


def close(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def is_own(sock: socket.socket) -> bool:
    """Whether the process at the other end runs as this one's user (SO_PEERCRED)."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("=iII", raw)
    return bool(uid == os.geteuid())
