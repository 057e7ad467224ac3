"""Netlink, as far as capture needs it: policy rules, routes, addresses, links up; sock_diag in `sockets`.

A socket belongs to the namespace it was opened in: open it under `netns.inside`. Sources: rtnetlink(7),
include/uapi/linux/{rtnetlink,fib_rules,if_addr}.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
GET_LINK: Final = 18
NEW_ADDRESS: Final = 20
GET_ADDRESS: Final = 22
NEW_ROUTE: Final = 24
DELETE_ROUTE: Final = 25
GET_ROUTE: Final = 26
NEW_RULE: Final = 32
DELETE_RULE: Final = 33
GET_RULE: Final = 34
GET_NSID: Final = 90

_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _TYPE_AT, _RTN_LOCAL = 1, 7, 2
_LARGEST: Final = 1 << 16  # the kernel sends at most half of it in one datagram
_AT_ONCE: Final = 64  # complaints about so many requests fit the socket's receive buffer
_GONE: Final = frozenset({errno.ENOENT, errno.ESRCH, errno.EAFNOSUPPORT, errno.EOPNOTSUPP})


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


@dataclass(frozen=True, slots=True)
class Request:
    """One change: the kind of message, its body, NLM_F_* flags."""

    message: int
    body: bytes
    flags: int = 0


def creation(message: int, body: bytes) -> Request:
    """Add an object; FileExistsError if it is there."""
    return Request(message, body, _CREATE | _EXCLUSIVE)


def replacement(message: int, body: bytes) -> Request:
    """Add an object, or put it in place of the one that is there."""
    return Request(message, body, _CREATE | _REPLACE)


def is_gone(error: OSError | None) -> bool:
    """Whether a removal failed because there was nothing to remove, or no such address family."""
    return error is not None and error.errno in _GONE


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
        self._buffer = memoryview(bytearray(_LARGEST))

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
        self._expect(creation(message, body))

    def change(self, message: int, body: bytes) -> None:
        """Delete or change an object; OSError as the kernel answers."""
        self._expect(Request(message, body))

    def batch(self, requests: Sequence[Request]) -> list[OSError | None]:
        """Send changes together; the kernel makes them in this order and goes on after one that fails. What became
        of each."""
        outcome: list[OSError | None] = []
        for first in range(0, len(requests), _AT_ONCE):
            outcome += self._batch(requests[first : first + _AT_ONCE])
        return outcome

    def remove(self, requests: Sequence[Request]) -> None:
        """A `batch` of removals; what is gone already is fine. OSError for the first that failed otherwise."""
        for error in self.batch(requests):
            if error is not None and not is_gone(error):
                raise error

    def dump(self, message: int, body: bytes) -> list[bytes]:
        """All objects of a kind: message bodies."""
        return list(self._request(message, _DUMP, body))

    def get(self, message: int, body: bytes) -> bytes:
        """One object: the body of the answer. OSError as the kernel answers."""
        (answer, *_) = self._request(message, _ACK, body)
        return answer

    def is_local(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether packets to it would be delivered here. OSError if they would go nowhere."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        wanted = struct.pack("=8BI", family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
        wanted += attribute(_RTA_DST, address.packed)
        route = self.get(GET_ROUTE, wanted)
        return route[_TYPE_AT] == _RTN_LOCAL

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

    def _expect(self, request: Request) -> None:
        (error,) = self.batch([request])
        if error is not None:
            raise error

    def _batch(self, requests: Sequence[Request]) -> list[OSError | None]:
        first, last = self._sequence + 1, self._sequence + len(requests)
        packed = [
            self._pack(each.message, each.flags | (_ACK if number == last else 0), each.body, number)
            for number, each in enumerate(requests, first)
        ]
        self._sequence = last
        self._socket.send(b"".join(packed))
        outcome: list[OSError | None] = [None] * len(requests)
        while True:
            for kind, sequence, content in self._receive():
                if kind != _ERROR or not first <= sequence <= last:
                    continue
                outcome[sequence - first] = _error(content)
                if sequence == last:
                    return outcome

    def _request(self, message: int, flags: int, body: bytes) -> list[bytes]:
        self._sequence += 1
        self._socket.send(self._pack(message, flags, body, self._sequence))
        answer: list[bytes] = []
        while True:
            for kind, sequence, content in self._receive():
                if sequence != self._sequence:
                    continue
                if kind == _DONE:
                    return answer
                if kind == _ERROR:
                    if error := _error(content):
                        raise error
                    return answer
                answer.append(content)

    @staticmethod
    def _pack(message: int, flags: int, body: bytes, sequence: int) -> bytes:
        raw = _HEADER.pack(_HEADER.size + len(body), message, flags | _REQUEST, sequence, 0) + body
        return raw.ljust(_aligned(len(raw)), b"\0")

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        """Messages of one datagram: kind, sequence number, body."""
        size = self._socket.recv_into(self._buffer, 0, socket.MSG_TRUNC)
        if size > _LARGEST:
            raise OSError(errno.EMSGSIZE, "netlink: an answer was cut off")
        offset = 0
        while offset + _HEADER.size <= size:
            length, kind, _, sequence, _ = _HEADER.unpack_from(self._buffer, offset)
            yield kind, sequence, bytes(self._buffer[offset + _HEADER.size : offset + length])
            offset += _aligned(length)


def _error(content: bytes) -> OSError | None:
    (code,) = struct.unpack_from("=i", content)
    return OSError(-code, f"netlink: {os.strerror(-code)}") if code else None
