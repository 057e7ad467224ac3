"""UDP packets written whole, for answers under an address and port that no socket here is bound to. Pure.

Sources: RFC 791 (IPv4), RFC 8200 (IPv6), RFC 768 (UDP).
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final

Address = IPv4Address | IPv6Address

MAX_PAYLOAD: Final = 65535 - 40 - 8
"""Bytes of payload that fit whatever the family."""

_UDP: Final = 17
_TTL: Final = 64


def udp_packet(source: tuple[Address, int], destination: tuple[Address, int], payload: bytes) -> bytes:
    """IP and UDP header and payload. ValueError for ends of two families, or too long a payload.

    The kernel fills in IPv4's checksum and identification (raw(7)).
    """
    (source_ip, source_port), (ip, port) = source, destination
    if source_ip.version != ip.version:
        raise ValueError(f"{source_ip} cannot answer {ip}")
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"{len(payload)} bytes do not fit into a datagram")
    length = 8 + len(payload)
    ends = source_ip.packed + ip.packed
    pseudo = ends + struct.pack("!IHH", length, 0, _UDP)
    unsigned = struct.pack("!HHHH", source_port, port, length, 0) + payload
    # No checksum at all is written as 0, so a sum of 0 is written as its other form.
    checked = 0xFFFF - _sum(pseudo + unsigned) or 0xFFFF
    header = struct.pack("!HHHH", source_port, port, length, checked)
    return _ip_header(ip.version, ends, length) + header + payload


def _ip_header(version: int, ends: bytes, length: int) -> bytes:
    if version == 6:
        return struct.pack("!IHBB", 6 << 28, length, _UDP, _TTL) + ends
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, _TTL, _UDP, 0) + ends


def _sum(data: bytes) -> int:
    """The one's complement sum of 16-bit words: the whole number modulo 0xffff."""
    padded = data + b"\0" if len(data) % 2 else data
    return int.from_bytes(padded, "big") % 0xFFFF
