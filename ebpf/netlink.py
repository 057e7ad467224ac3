"""Netlink, as far as capture needs it: policy rules, routes, addresses, links up; sock_diag in `sockets`.

A socket belongs to the namespace it was opened in: open it under `netns.inside`. Sources: rtnetlink(7),
include/uapi/linux/{rtnetlink,fib_rules,if_addr}.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Final, Self

_ALIGN: Final = 4
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERROR: Final = 2
_DONE: Final = 3
_REQUEST, _ACK, _REPLACE, _EXCLUSIVE, _DUMP, _CREATE = 0x1, 0x4, 0x100, 0x200, 0x300, 0x400

NEW_LINK: Final = 16
NEW_ADDRESS: Final = 20
GET_ADDRESS: Final = 22
NEW_ROUTE: Final = 24
DELETE_ROUTE: Final = 25
GET_ROUTE: Final = 26
NEW_RULE: Final = 32
DELETE_RULE: Final = 33
GET_RULE: Final = 34

_IFA_ADDRESS, _IFA_LOCAL = 1, 2


def _aligned(length: int) -> int:
    return (length + _ALIGN - 1) & ~(_ALIGN - 1)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    raw = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    return raw.ljust(_aligned(len(raw)), b"\0")


def attributes(values: Mapping[int, bytes | int]) -> bytes:
    """Several attributes; integers as u32."""
    return b"".join(
        attribute(kind, struct.pack("=I", value) if isinstance(value, int) else value)
        for kind, value in values.items()
    )


def parse_attributes(raw: bytes) -> dict[int, bytes]:
    """Attributes by kind (the last wins)."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = raw[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return found


class Netlink:
    """One netlink socket; route netlink unless `protocol` says otherwise."""

    def __init__(self, protocol: int = 0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def create(self, message: int, body: bytes) -> None:
        """Add an object; FileExistsError if it is there."""
        self._request(message, _ACK | _CREATE | _EXCLUSIVE, body)

    def replace(self, message: int, body: bytes) -> None:
        """Add an object, or put it in place of the one that is there."""
        self._request(message, _ACK | _CREATE | _REPLACE, body)

    def change(self, message: int, body: bytes) -> None:
        """Delete or change an object; OSError as the kernel answers."""
        self._request(message, _ACK, body)

    def dump(self, message: int, body: bytes) -> list[bytes]:
        """All objects of a kind: message bodies."""
        return list(self._request(message, _DUMP, body))

    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """All addresses of global scope, IPv4 first."""
        found: list[IPv4Address | IPv6Address] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            for body in self.dump(GET_ADDRESS, struct.pack("=BBBBI", family, 0, 0, 0, 0)):
                its_family, _, _, scope, _ = struct.unpack_from("=BBBBI", body)
                if scope != 0 or its_family != family:
                    continue
                values = parse_attributes(body[8:])
                raw = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
                if raw:
                    found.append(IPv4Address(raw) if family == socket.AF_INET else IPv6Address(raw))
        return tuple(found)

    def _request(self, message: int, flags: int, body: bytes) -> list[bytes]:
        self._sequence += 1
        length = _HEADER.size + len(body)
        self._socket.send(_HEADER.pack(length, message, flags | _REQUEST, self._sequence, 0) + body)
        answer: list[bytes] = []
        while True:
            for kind, content in self._receive():
                if kind == _DONE:
                    return answer
                if kind == _ERROR:
                    (code,) = struct.unpack_from("=i", content)
                    if code:
                        raise OSError(-code, f"netlink: {os.strerror(-code)}")
                    return answer
                answer.append(content)

    def _receive(self) -> Iterator[tuple[int, bytes]]:
        raw = self._socket.recv(1 << 20)
        offset = 0
        while offset + _HEADER.size <= len(raw):
            length, kind, _, sequence, _ = _HEADER.unpack_from(raw, offset)
            if sequence == self._sequence:
                yield kind, raw[offset + _HEADER.size : offset + length]
            offset += _aligned(length)
