"""Codecs of the direct path's maps."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from ebpf import maps, pairs, sockets
from ebpf.pairs import Backend, Endpoint, PairKey, Tuple4, What

addresses = st.ip_addresses().filter(lambda address: getattr(address, "ipv4_mapped", None) is None)
ports = st.integers(0, 65535)
slots = st.integers(0, maps.MAX_PODS - 1)
endpoints = st.builds(Endpoint, addresses, ports)


@given(slots, endpoints, st.booleans())
def test_pair_survives_the_map(slot: int, endpoint: Endpoint, turbo: bool) -> None:
    key, backend = PairKey(slot, endpoint), Backend(slot, endpoint, turbo)
    info = maps.LAYOUT["direct_pairs"]
    assert (len(key.encode()), len(backend.encode())) == (info.key_size, info.value_size)
    assert PairKey.decode(key.encode()) == key
    assert Backend.decode(backend.encode()) == backend


@given(endpoints, endpoints)
def test_tuple_survives_the_map(client: Endpoint, server: Endpoint) -> None:
    ends = Tuple4(client, server)
    assert len(ends.encode()) == maps.LAYOUT["direct_conns"].key_size
    assert Tuple4.decode(ends.encode()) == ends


def test_sizes_are_those_of_the_maps() -> None:
    assert maps.LAYOUT["direct_events"].value_size == pairs.EVENT_SIZE
    assert maps.LAYOUT["direct_conns"].value_size == pairs.CONN_SIZE
    assert maps.LAYOUT["turbo_ends"].value_size == pairs.END_SIZE


def test_event_is_read_field_by_field() -> None:
    ends = Tuple4(Endpoint(IPv4Address("10.0.0.1"), 40000), Endpoint(IPv6Address("fd00::2"), 80))
    raw = pairs._EVENT.pack(
        7, 8, 9, 10, 1, 2, ends.encode(), maps.ip16(IPv4Address("10.96.0.1")), 443, 3, 5, 1, 1
    )
    event = pairs.decode_event(raw)
    assert (event.what, event.at, event.sent, event.received) == (What.CLIENT_CLOSED, 8, 9, 10)
    assert (event.state, event.established, event.connection.accepted) == (5, True, True)
    assert (event.cookie, event.connection.ends) == (7, ends)
    assert event.connection.asked == Endpoint(IPv4Address("10.96.0.1"), 443)


def test_identity_of_a_socket_carries_its_cookie() -> None:
    local, remote = Endpoint(IPv4Address("10.0.0.1"), 4), Endpoint(IPv4Address("10.0.0.2"), 5)
    raw = sockets.identity(local, remote, 0x1122334455667788)
    assert len(raw) == 48
    assert raw[:4] == b"\0\4\0\5"
    found = sockets.TcpSocket(2, sockets.State.ESTABLISHED, local, remote, 1, 0, 11, 5, raw)
    assert found.cookie == 0x1122334455667788
    assert (found.payload_sent, found.payload_received) == (10, 5)
