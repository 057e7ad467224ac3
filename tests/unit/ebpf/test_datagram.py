"""Packets written whole: what the kernel would have written."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpf.datagram import MAX_PAYLOAD, udp_packet

ADDRESSES = st.one_of(st.tuples(*2 * [st.ip_addresses(v=4)]), st.tuples(*2 * [st.ip_addresses(v=6)]))
PORTS = st.integers(0, 65535)


def receiver_sum(source: IPv4Address | IPv6Address, ip: IPv4Address | IPv6Address, datagram: bytes) -> int:
    """What a receiver adds up (RFC 768, RFC 8200 8.1): all ones if the checksum is right."""
    data = (
        source.packed + ip.packed + struct.pack("!IBBH", len(datagram), 0, 0, socket.IPPROTO_UDP) + datagram
    )
    total = 0
    for (word,) in struct.iter_unpack("!H", data + bytes(len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(ADDRESSES, PORTS, PORTS, st.binary(max_size=2000))
def test_receiver_finds_checksum_and_lengths_right(
    ends: tuple[IPv4Address | IPv6Address, ...], source_port: int, port: int, payload: bytes
) -> None:
    source, ip = ends
    packet = udp_packet((source, source_port), (ip, port), payload)
    header, datagram = packet[: -len(payload) - 8], packet[-len(payload) - 8 :]
    assert header[-2 * len(ip.packed) :] == source.packed + ip.packed
    assert len(header) == (20 if ip.version == 4 else 40)
    assert header[0] >> 4 == ip.version
    length = header[4:6] if ip.version == 6 else header[2:4]
    assert int.from_bytes(length, "big") == len(packet) - (40 if ip.version == 6 else 0)
    assert datagram[8:] == payload
    assert struct.unpack("!HHH", datagram[:6]) == (source_port, port, len(payload) + 8)
    assert datagram[6:8] != bytes(2)
    assert receiver_sum(source, ip, datagram) == 0xFFFF


def test_ends_of_two_families_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot answer"):
        udp_packet((ip_address("10.0.0.1"), 53), (ip_address("fd00::1"), 9), b"")


@pytest.mark.parametrize("ip", ["10.0.0.1", "fd00::1"])
def test_too_long_a_payload_is_refused(ip: str) -> None:
    end = (ip_address(ip), 53)
    assert len(udp_packet(end, end, bytes(MAX_PAYLOAD))) <= 65535
    with pytest.raises(ValueError, match="do not fit"):
        udp_packet(end, end, bytes(MAX_PAYLOAD + 1))
