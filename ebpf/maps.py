"""Keys and values of the capture maps: codecs between Python values and the structs of capture.c. Pure.

Integers are in the machine's own byte order, addresses in network order (IPv4 as ::ffff:a.b.c.d), ports in
host order.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ebpf.kinds import MapInfo, MapType

LAYOUT_VERSION: Final = 8
"""In the pin path; to be raised whenever a struct or the meaning of a field changes."""

MAX_PODS: Final = 4096
KINDS: Final = 5
UNTOUCHED: Final = 0xFF
"""Saved value of a sysctl which enrolment did not change."""

RECORD_SIZE: Final = 32
_RECORD: Final = "=QIIIBBBBB7x"
_OLDEST: Final = "=QIIIBBB"
_NO_PREALLOC: Final = 1
_MAPPED: Final = bytes(10) + b"\xff\xff"

Address = IPv4Address | IPv6Address


class Kind(enum.IntEnum):
    """Which of a pod's sockets."""

    OUTBOUND = 0
    INBOUND = 1
    HBONE = 2
    DNS_UDP = 3
    DNS_TCP = 4


class Role(enum.IntFlag):
    """What an address is to a pod."""

    OWN = 1
    NODE = 2


class PodFlag(enum.IntFlag):
    """Per-pod switches. LEAVING: nothing new is captured, what is relayed still finds its way. LISTED_INBOUND:
    of the plaintext inbound ports only listed ones are captured. CAPTURE_DNS: so are questions to name servers.
    """

    BYPASS_INBOUND = 1
    LEAVING = 2
    LISTED_INBOUND = 4
    CAPTURE_DNS = 8


NO_FLAGS: Final = PodFlag(0)


class Direction(enum.IntEnum):
    """Whether a port is a destination's or the pod's own; ONLY_INBOUND: one of those that are captured at all."""

    OUTBOUND = 0
    INBOUND = 1
    ONLY_INBOUND = 2


class Counter(enum.IntEnum):
    """Index into `counters`."""

    CAPTURED = 0
    OUTBOUND = 1
    INBOUND = 2
    HBONE = 3
    DROPPED = 4
    FAILED = 5
    DIRECT = 6
    FALLEN_BACK = 7
    DNS = 8
    TURBO = 9
    REDIRECTED = 10


LAYOUT: Final = {
    "pods": MapInfo(MapType.HASH, 8, 32, MAX_PODS, _NO_PREALLOC),
    "slots": MapInfo(MapType.HASH, 4, 32, MAX_PODS, _NO_PREALLOC),
    "addresses": MapInfo(MapType.HASH, 20, 4, 131072, _NO_PREALLOC),
    "exempt": MapInfo(MapType.HASH, 8, 4, 65536, _NO_PREALLOC),
    "agents": MapInfo(MapType.HASH, 4, 4, 64, _NO_PREALLOC),
    "listeners": MapInfo(MapType.SOCKMAP, 4, 8, MAX_PODS * KINDS, 0),
    "counters": MapInfo(MapType.ARRAY, 4, 8, 11, 0),
    "direct_pairs": MapInfo(MapType.HASH, 24, 56, 65536, _NO_PREALLOC),
    "direct_conns": MapInfo(MapType.HASH, 36, 96, 131072, _NO_PREALLOC),
    "direct_events": MapInfo(MapType.RINGBUF, 0, 0, 1 << 21, 0),
    "direct_pending": MapInfo(MapType.ARRAY, 4, 56, 4096, 0),
    "direct_sockets": MapInfo(MapType.SK_STORAGE, 4, 20, 0, _NO_PREALLOC),
    "direct_until": MapInfo(MapType.ARRAY, 4, 8, 1, 0),
    "turbo_sockets": MapInfo(MapType.SOCKHASH, 36, 4, 131072, 0),
    "turbo_ends": MapInfo(MapType.HASH, 36, 32, 131072, _NO_PREALLOC),
    "redirect_hosts": MapInfo(MapType.HASH, 16, 32, 16384, _NO_PREALLOC),
}


def ip16(address: Address) -> bytes:
    """16 bytes in network order."""
    return address.packed if isinstance(address, IPv6Address) else _MAPPED + address.packed


def address_of(raw: bytes) -> Address:
    """Inverse of `ip16`."""
    return IPv4Address(raw[12:]) if raw[:12] == _MAPPED else IPv6Address(raw)


@dataclass(frozen=True, slots=True)
class SavedSysctls:
    """Values before enrolment (0 to 254), `UNTOUCHED` where enrolment changed nothing."""

    tcp_fwmark_accept: int = UNTOUCHED
    fwmark_reflect_v4: int = UNTOUCHED
    fwmark_reflect_v6: int = UNTOUCHED
    accept_local: int = UNTOUCHED
    rp_filter: int = UNTOUCHED

    def or_else(self, later: SavedSysctls) -> SavedSysctls:
        """These, or where nothing was changed yet, those found later."""
        pairs = (
            (self.tcp_fwmark_accept, later.tcp_fwmark_accept),
            (self.fwmark_reflect_v4, later.fwmark_reflect_v4),
            (self.fwmark_reflect_v6, later.fwmark_reflect_v6),
            (self.accept_local, later.accept_local),
            (self.rp_filter, later.rp_filter),
        )
        return SavedSysctls(*(new if old == UNTOUCHED else old for old, new in pairs))


@dataclass(frozen=True, slots=True)
class PodRecord:
    """`struct pod`: value of `pods` and `slots`. `netns` is the namespace's inode."""

    cookie: int
    netns: int
    slot: int
    flags: PodFlag = NO_FLAGS
    saved: SavedSysctls = field(default_factory=SavedSysctls)

    def encode(self) -> bytes:
        """`RECORD_SIZE` bytes."""
        saved = self.saved
        return struct.pack(
            _RECORD,
            self.cookie, self.netns, self.slot, self.flags,
            saved.tcp_fwmark_accept, saved.fwmark_reflect_v4, saved.fwmark_reflect_v6,
            saved.accept_local, saved.rp_filter,
        )  # fmt: skip

    @staticmethod
    def decode(raw: bytes) -> PodRecord:
        """Inverse of `encode`."""
        cookie, netns, slot, flags, *saved = struct.unpack(_RECORD, raw)
        return PodRecord(cookie, netns, slot, PodFlag(flags), SavedSysctls(*saved))


def decode_prefix(raw: bytes) -> PodRecord | None:
    """A `PodRecord` of whatever layout version: later ones add behind what is there, versions 1 to 3 end with the
    sysctls of `_OLDEST`. None if it is too short."""
    if len(raw) >= RECORD_SIZE:
        return PodRecord.decode(raw[:RECORD_SIZE])
    if len(raw) < struct.calcsize(_OLDEST):
        return None
    cookie, netns, slot, flags, *saved = struct.unpack_from(_OLDEST, raw)
    return PodRecord(cookie, netns, slot, PodFlag(flags), SavedSysctls(*saved))


@dataclass(frozen=True, slots=True)
class AddressKey:
    """`struct address_key`."""

    slot: int
    address: Address

    def encode(self) -> bytes:
        """20 bytes."""
        return struct.pack("=I16s", self.slot, ip16(self.address))

    @staticmethod
    def decode(raw: bytes) -> AddressKey:
        """Inverse of `encode`."""
        slot, address = struct.unpack("=I16s", raw)
        return AddressKey(slot, address_of(address))


@dataclass(frozen=True, slots=True)
class PortKey:
    """`struct port_key`."""

    slot: int
    port: int
    direction: Direction

    def encode(self) -> bytes:
        """8 bytes."""
        return struct.pack("=IHH", self.slot, self.port, self.direction)

    @staticmethod
    def decode(raw: bytes) -> PortKey:
        """Inverse of `encode`."""
        slot, port, direction = struct.unpack("=IHH", raw)
        return PortKey(slot, port, Direction(direction))


def u32(value: int) -> bytes:
    """Key or value of 4 bytes."""
    return struct.pack("=I", value)


def u64(value: int) -> bytes:
    """Key or value of 8 bytes."""
    return struct.pack("=Q", value)


def listener_key(slot: int, kind: Kind) -> bytes:
    """Key into `listeners`."""
    return u32(slot * KINDS + kind)


def address_entries(slot: int, own: Iterable[Address], node: Iterable[Address]) -> dict[bytes, bytes]:
    """Entries of `addresses` for one pod; an address may have both roles."""
    roles: dict[Address, Role] = {}
    for addresses, role in ((own, Role.OWN), (node, Role.NODE)):
        for address in addresses:
            roles[address] = roles.get(address, Role(0)) | role
    return {AddressKey(slot, address).encode(): u32(role) for address, role in roles.items()}


def exempt_entries(
    slot: int, inbound: Iterable[int], outbound: Iterable[int], only_inbound: Iterable[int] = ()
) -> dict[bytes, bytes]:
    """Entries of `exempt` for one pod. ValueError for what is no port."""
    entries: dict[bytes, bytes] = {}
    lists = (
        (inbound, Direction.INBOUND),
        (outbound, Direction.OUTBOUND),
        (only_inbound, Direction.ONLY_INBOUND),
    )
    for ports, direction in lists:
        for port in ports:
            if not 0 < port < 65536:
                raise ValueError(f"{port} is not a port")
            entries[PortKey(slot, port, direction).encode()] = u32(1)
    return entries


def free_slot(used: Iterable[int]) -> int | None:
    """The lowest slot not in use, None if all are."""
    taken = set(used)
    return next((slot for slot in range(MAX_PODS) if slot not in taken), None)
