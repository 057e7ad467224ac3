"""The demo's reading of captures: it must see what is there, and must not call clear text TLS."""

import struct
from ipaddress import ip_address

import pytest

from daemonset.demo.wire import ACK, SYN, begins_like_tls, segments


def _tcp(source_port: int, destination_port: int, flags: int, payload: bytes) -> bytes:
    return struct.pack("!HHIIBBHHH", source_port, destination_port, 0, 0, 5 << 4, flags, 0, 0, 0) + payload


def _v4(source: str, destination: str, tcp: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0)
    return head + ip_address(source).packed + ip_address(destination).packed + tcp


def _v6(source: str, destination: str, tcp: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64)
    return head + ip_address(source).packed + ip_address(destination).packed + tcp


def _capture(*packets: bytes, order: str = "<") -> bytes:
    out = struct.pack(order + "IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for packet in packets:
        frame = b"\0" * 12 + (b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd") + packet
        out += struct.pack(order + "IIII", 0, 0, len(frame), len(frame)) + frame
    return out


@pytest.mark.parametrize("order", ["<", ">"])
def test_segments_of_both_families_and_byte_orders_are_read(order: str) -> None:
    capture = _capture(
        _v4("10.0.1.2", "10.0.2.3", _tcp(40000, 15008, ACK, b"four")),
        _v6("fd00::1", "fd00::2", _tcp(15008, 40001, ACK, b"six")),
        order=order,
    )
    first, second = segments(capture)
    assert (str(first.source), first.destination_port, first.payload) == ("10.0.1.2", 15008, b"four")
    assert (str(second.destination), second.source_port, second.payload) == ("fd00::2", 15008, b"six")
    assert first.service_port == second.service_port == 15008


def test_ethernet_padding_is_not_payload() -> None:
    packet = _v4("10.0.1.2", "10.0.2.3", _tcp(40000, 80, ACK, b"")) + b"\0" * 6
    assert [s.payload for s in segments(_capture(packet))] == [b""]


def test_a_capture_cut_in_its_last_packet_is_read_up_to_there() -> None:
    whole = _capture(*[_v4("10.0.1.2", "10.0.2.3", _tcp(40000, 80, ACK, b"abc"))] * 2)
    assert len(list(segments(whole[:-1]))) == 1


def test_clear_text_at_the_start_of_a_connection_is_found() -> None:
    def connection(port: int, payload: bytes) -> list[bytes]:
        return [
            _v4("10.0.1.2", "10.0.2.3", _tcp(port, 15008, SYN, b"")),
            _v4("10.0.1.2", "10.0.2.3", _tcp(port, 15008, ACK, payload)),
        ]

    seen = segments(_capture(*connection(40000, b"\x16\x03\x01hello"), *connection(40001, b"GET / HTTP")))
    assert [s.source_port for s in begins_like_tls(seen)] == [40001]
