"""Keys and values of the direct path's maps: codecs for the structs of direct.h. Pure.

Encodings as in `maps`. Times are nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from ebpf.maps import Address, address_of, ip16

_KEY: Final = struct.Struct("=I16sHxx")
_BACKEND: Final = struct.Struct("=16sIHH")
_TUPLE: Final = struct.Struct("=16s16sHH")
CONN: Final = struct.Struct("=QQII16sHBB4x")
_END: Final = struct.Struct("=QQQQ")
_EVENT: Final = struct.Struct("=QQQQII36s16sHBBBB6x")
EVENT_SIZE: Final = _EVENT.size
CONN_SIZE: Final = CONN.size
END_SIZE: Final = _END.size
TUPLE_SIZE: Final = _TUPLE.size
KEY_SIZE: Final = _KEY.size


class Endpoint(NamedTuple):
    """Address (IPv4 unmapped) and port."""

    ip: Address
    port: int


@dataclass(frozen=True, slots=True)
class PairKey:
    """`struct direct_key`: the pod (its slot) that connects, and the destination it asks for."""

    slot: int
    asked: Endpoint

    def encode(self) -> bytes:
        """24 bytes."""
        return _KEY.pack(self.slot, ip16(self.asked.ip), self.asked.port)

    @staticmethod
    def decode(raw: bytes) -> PairKey:
        """Inverse of `encode`."""
        slot, ip, port = _KEY.unpack(raw)
        return PairKey(slot, Endpoint(address_of(ip), port))


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
    """One connection: `cookie` is that of the client's socket, `asked` what the client dialled."""

    cookie: int
    began: int
    from_slot: int
    to_slot: int
    ends: Tuple4
    asked: Endpoint
    accepted: bool = False
    turbo: bool = False


class What(enum.IntEnum):
    """What an event tells. FELL_BACK: the connection went to the proxy after all, before its SYN left."""

    BEGUN = 1
    FELL_BACK = 2
    CLIENT_CLOSED = 3
    SERVER_CLOSED = 4


@dataclass(frozen=True, slots=True)
class DirectEvent:
    """`struct direct_event`. `sent`: the application's bytes which the other end acknowledged; `received` may
    count the other end's FIN. `state` is that before CLOSE. Of SERVER_CLOSED only cookie and bytes count."""

    what: What
    at: int
    connection: DirectConnection
    sent: int = 0
    received: int = 0
    state: int = 0
    established: bool = False

    @property
    def cookie(self) -> int:
        return self.connection.cookie


def decode_connection(ends: bytes, raw: bytes) -> DirectConnection:
    """An entry of `direct_conns`."""
    cookie, began, from_slot, to_slot, ip, port, accepted, turbo = CONN.unpack(raw)
    asked = Endpoint(address_of(ip), port)
    return DirectConnection(
        cookie, began, from_slot, to_slot, Tuple4.decode(ends), asked, bool(accepted), bool(turbo)
    )


def decode_event(raw: bytes) -> DirectEvent:
    """An entry of `direct_events`."""
    cookie, at, sent, received, from_slot, to_slot, ends, ip, port, *rest = _EVENT.unpack(raw)
    what, state, accepted, established = rest
    asked = Endpoint(address_of(ip), port)
    began = at if what == What.BEGUN else 0
    connection = DirectConnection(
        cookie, began, from_slot, to_slot, Tuple4.decode(ends), asked, bool(accepted)
    )
    return DirectEvent(What(what), at, connection, sent, received, state, bool(established))


def decode_handed_over(raw: bytes) -> tuple[int, int]:
    """An entry of `turbo_ends`: the connection's cookie, and the bytes that this side has handed over."""
    cookie, _, _, sent = _END.unpack(raw)
    return cookie, sent
