"""Policy rules of a network namespace as the kernel lists them, and as they are written. Call under `netns.inside`.

Source: include/uapi/linux/fib_rules.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import Final

from ebpf import netlink
from ebpf.netlink import Netlink, Request

DST, SRC, IIF, GOTO, PRIORITY, MARK, TABLE, MASK = 1, 2, 3, 4, 6, 10, 15, 16
PROTOCOL, IP_PROTOCOL, SPORT, DPORT = 21, 22, 23, 24
_KNOWN: Final = (DST, SRC, IIF, GOTO, PRIORITY, MARK, TABLE, MASK, IP_PROTOCOL, SPORT, DPORT)
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_HEADER: Final = struct.Struct("=8BI")

Key = tuple[bytes, tuple[tuple[int, bytes], ...]]
"""What makes a rule the same one, as written and as listed."""

Rules = Mapping[Key, bytes]
"""Bodies by key."""


def body(
    family: int, action: int, values: Mapping[int, bytes | int], lengths: tuple[int, int] = (0, 0)
) -> bytes:
    """FR_ACT_* `action`, FRA_* `values`; prefix lengths of destination and source."""
    return _HEADER.pack(family, *lengths, 0, 0, 0, 0, action, 0) + netlink.attributes(values)


def key(raw: bytes) -> Key:
    """Of a body."""
    found = netlink.parse_attributes(raw[_HEADER.size :])
    known = ((kind, found[kind]) for kind in _KNOWN if any(found.get(kind, b"")))
    return raw[:3] + raw[7:8], tuple(known)


def attribute(raw: bytes, kind: int) -> bytes:
    """One FRA_* of a body; empty if it has none."""
    return netlink.parse_attributes(raw[_HEADER.size :]).get(kind, b"")


def listed(link: Netlink) -> dict[Key, bytes]:
    """All rules of both families; a kernel without policy rules has none. OSError."""
    try:
        found = link.dump(netlink.GET_RULE, _HEADER.pack(socket.AF_UNSPEC, *[0] * 8))
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            raise
        return {}
    return {key(raw): raw for raw in found if raw[0] in _FAMILIES}


def addition(raw: bytes) -> Request:
    """Write a rule."""
    return netlink.creation(netlink.NEW_RULE, raw)


def removal(raw: bytes) -> Request:
    """Delete a rule."""
    return Request(netlink.DELETE_RULE, raw)


def removals(there: Rules, of: Iterable[bytes]) -> list[Request]:
    """Delete those of these rules that are there."""
    return [removal(raw) for raw in of if key(raw) in there]
