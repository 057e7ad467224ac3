"""Keys and values of the direct path's maps: codecs for the structs of direct.h. Pure.

Encodings as in `maps`. Times are nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from ebpf.choices import shares
from ebpf.maps import Address, address_of, ip16

_KEY: Final = struct.Struct("=I16sHH")
_BACKEND: Final = struct.Struct("=16sIHH")
_CELL: Final = struct.Struct("=24s24sII")
_TUPLE: Final = struct.Struct("=16s16sHH")
CONN: Final = struct.Struct("=QQQQQQQII16sHBBBBBBI4x")
_END: Final = struct.Struct("=QQQQ")
RECORD: Final = struct.Struct("=8x" + CONN.format.removeprefix("=") + "16s16sHH4x")
"""What `Ring.take` gives, record after record; fields by `Field`."""
RECORD_SIZE: Final = RECORD.size - 8
CONN_SIZE: Final = CONN.size
END_SIZE: Final = _END.size
TUPLE_SIZE: Final = _TUPLE.size
KEY_SIZE: Final = _KEY.size
CELL_SIZE: Final = _CELL.size
MOST_BACKENDS: Final = 256
"""Among so many a draw can choose."""


class Field(enum.IntEnum):
    """Where a field of `struct direct_conn` stands in `CONN` and `RECORD`, and those of its tuple in `RECORD`."""

    COOKIE = 0
    SERVER = 1
    BEGAN = 2
    ENDED = 3
    SENT = 4
    RECEIVED = 5
    ANSWERED = 6
    FROM_SLOT = 7
    TO_SLOT = 8
    ASKED = 9
    ASKED_PORT = 10
    TURBO = 11
    WHAT = 12
    ESTABLISHED = 13
    STATE = 14
    CLIENT_DONE = 15
    SERVED = 16
    DONE = 17
    CLIENT_IP = 18
    SERVER_IP = 19
    CLIENT_PORT = 20
    SERVER_PORT = 21


class Endpoint(NamedTuple):
    """Address (IPv4 unmapped) and port."""

    ip: Address
    port: int


@dataclass(frozen=True, slots=True)
class PairKey:
    """`struct direct_key`: the pod (its slot) that connects, and the destination it asks for."""

    slot: int
    asked: Endpoint

    def encode(self, cell: int = 0) -> bytes:
        """24 bytes; `cell`: which of the cells that share the destination."""
        return _KEY.pack(self.slot, ip16(self.asked.ip), self.asked.port, cell)

    @staticmethod
    def decode(raw: bytes) -> tuple[PairKey, int]:
        """Inverse of `encode`."""
        slot, ip, port, cell = _KEY.unpack(raw)
        return PairKey(slot, Endpoint(address_of(ip), port)), cell


@dataclass(frozen=True, slots=True)
class Backend:
    """`struct direct_backend`: the pod (its slot) and the address of it that answers; `turbo`: both pods asked for
    acceleration."""

    slot: int
    address: Endpoint
    turbo: bool = False

    def encode(self) -> bytes:
        """24 bytes."""
        return _BACKEND.pack(ip16(self.address.ip), self.slot, self.address.port, self.turbo)

    @staticmethod
    def decode(raw: bytes) -> Backend:
        """Inverse of `encode`."""
        ip, slot, port, turbo = _BACKEND.unpack(raw)
        return Backend(slot, Endpoint(address_of(ip), port), bool(turbo))


@dataclass(frozen=True, slots=True)
class Split:
    """Several backends, each chosen as often as its weight (above 0) says; at most `MOST_BACKENDS`."""

    choices: tuple[tuple[Backend, int], ...]


Target: TypeAlias = Backend | Split


def backends(target: Target) -> tuple[Backend, ...]:
    """All that a connection may go to."""
    return (target,) if isinstance(target, Backend) else tuple(backend for backend, _ in target.choices)


def entries(key: PairKey, target: Target) -> dict[bytes, bytes]:
    """Entries of `direct_pairs` (`struct direct_cell`). The first is the one without which the others do not count."""
    choices = backends(target)
    weights = [1] if isinstance(target, Backend) else [weight for _, weight in target.choices]
    cells = shares(weights)
    return {
        key.encode(index): _CELL.pack(
            choices[cell.own].encode(), choices[cell.other].encode(), cell.keep, len(cells)
        )
        for index, cell in enumerate(cells)
    }


class Tuple4(NamedTuple):
    """`struct direct_tuple`: a connection's two ends, as its client sees them."""

    client: Endpoint
    server: Endpoint

    def encode(self) -> bytes:
        """36 bytes."""
        client, server = self
        return _TUPLE.pack(ip16(client.ip), ip16(server.ip), client.port, server.port)

    @staticmethod
    def decode(raw: bytes) -> Tuple4:
        """Inverse of `encode`."""
        client, server, client_port, server_port = _TUPLE.unpack(raw)
        return Tuple4(Endpoint(address_of(client), client_port), Endpoint(address_of(server), server_port))

    @property
    def reversed(self) -> Tuple4:
        """As the server sees it."""
        return Tuple4(self.server, self.client)


@dataclass(frozen=True, slots=True)
class DirectConnection:
    """One connection: `cookie` is that of the client's socket, `asked` what the client dialled. `accepted`: the
    server's socket is known and will tell its bytes, too."""

    cookie: int
    began: int
    from_slot: int
    to_slot: int
    ends: Tuple4
    asked: Endpoint
    accepted: bool = False
    turbo: bool = False


class What(enum.IntEnum):
    """What a record tells. FELL_BACK: the connection went to the proxy after all, before its SYN left."""

    OPEN = 0
    ENDED = 1
    FELL_BACK = 2


@dataclass(frozen=True, slots=True)
class DirectEvent:
    """The end of a connection. `sent` and `answered`: the application's bytes that client and server got across,
    `answered` only if `served`; `received`: by the client, may count the server's FIN. `state` is the client's before
    CLOSE."""

    what: What
    connection: DirectConnection
    ended: int = 0
    sent: int = 0
    received: int = 0
    answered: int = 0
    state: int = 0
    established: bool = False
    served: bool = False

    @property
    def cookie(self) -> int:
        return self.connection.cookie


def decode_event(fields: Sequence[Any]) -> DirectEvent:
    """One record, as `RECORD` unpacks it."""
    cookie, server, began, ended, sent, received, answered, from_slot, to_slot, ip, port, turbo, *rest = (
        fields
    )
    what, established, state, _, served, _, client_ip, server_ip, client_port, server_port = rest
    ends = Tuple4(Endpoint(address_of(client_ip), client_port), Endpoint(address_of(server_ip), server_port))
    asked = Endpoint(address_of(ip), port)
    connection = DirectConnection(cookie, began, from_slot, to_slot, ends, asked, bool(server), bool(turbo))
    return DirectEvent(
        What(what), connection, ended, sent, received, answered, state, bool(established), bool(served)
    )


def as_record(ends: bytes, conn: bytes) -> bytes:
    """An entry of `direct_conns` in the form of a record."""
    return bytes(8) + conn + ends + bytes(4)


def decode_handed_over(raw: bytes) -> tuple[int, int]:
    """An entry of `turbo_ends`: the connection's cookie, and the bytes that this side has handed over."""
    cookie, _, _, sent = _END.unpack(raw)
    return cookie, sent
