"""Codecs of the direct path's maps."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from ebpf import maps, pairs, sockets
from ebpf.pairs import Backend, Endpoint, PairKey, Split, Tuple4, What

addresses = st.ip_addresses().filter(lambda address: getattr(address, "ipv4_mapped", None) is None)
ports = st.integers(0, 65535)
slots = st.integers(0, maps.MAX_PODS - 1)
endpoints = st.builds(Endpoint, addresses, ports)


@given(slots, endpoints, st.booleans())
def test_pair_survives_the_map(slot: int, endpoint: Endpoint, turbo: bool) -> None:
    key, backend = PairKey(slot, endpoint), Backend(slot, endpoint, turbo)
    ((entry, cell),) = pairs.entries(key, backend).items()
    info = maps.LAYOUT["direct_pairs"]
    assert (len(entry), len(cell)) == (info.key_size, info.value_size)
    assert PairKey.decode(entry) == (key, 0)
    assert Backend.decode(cell[:24]) == Backend.decode(cell[24:48]) == backend


@given(slots, st.lists(endpoints, min_size=2, max_size=9, unique=True))
def test_several_backends_take_an_entry_each_and_the_first_says_how_many(
    slot: int, found: list[Endpoint]
) -> None:
    key = PairKey(slot, found[0])
    split = Split(tuple((Backend(slot, endpoint), weight) for weight, endpoint in enumerate(found, 1)))
    entries = pairs.entries(key, split)
    assert [PairKey.decode(entry) for entry in entries] == [(key, cell) for cell in range(len(found))]
    for cell in entries.values():
        assert {Backend.decode(cell[:24]), Backend.decode(cell[24:48])} <= set(pairs.backends(split))
        assert int.from_bytes(cell[52:56], sys.byteorder) == len(found)


@given(endpoints, endpoints)
def test_tuple_survives_the_map(client: Endpoint, server: Endpoint) -> None:
    ends = Tuple4(client, server)
    assert len(ends.encode()) == maps.LAYOUT["direct_conns"].key_size
    assert Tuple4.decode(ends.encode()) == ends


def test_sizes_are_those_of_the_maps() -> None:
    assert maps.LAYOUT["direct_pairs"].value_size == pairs.CELL_SIZE
    assert pairs.RECORD_SIZE % 8 == 0
    assert maps.LAYOUT["direct_conns"].value_size == pairs.CONN_SIZE
    assert maps.LAYOUT["turbo_ends"].value_size == pairs.END_SIZE


def test_record_is_read_field_by_field() -> None:
    ends = Tuple4(Endpoint(IPv4Address("10.0.0.1"), 40000), Endpoint(IPv6Address("fd00::2"), 80))
    asked = maps.ip16(IPv4Address("10.96.0.1"))
    conn = pairs.CONN.pack(7, 8, 9, 10, 11, 12, 13, 1, 2, asked, 443, 1, 1, 1, 5, 1, 1, 2)
    (fields,) = pairs.RECORD.iter_unpack(pairs.as_record(ends.encode(), conn))
    event = pairs.decode_event(fields)
    assert (event.what, event.ended, event.sent, event.received, event.answered) == (
        What.ENDED,
        10,
        11,
        12,
        13,
    )
    assert (event.state, event.established, event.served) == (5, True, True)
    assert (event.cookie, event.connection.ends, event.connection.began) == (7, ends, 9)
    assert (event.connection.from_slot, event.connection.to_slot) == (1, 2)
    assert (event.connection.accepted, event.connection.turbo) == (True, True)
    assert event.connection.asked == Endpoint(IPv4Address("10.96.0.1"), 443)
    named = {field.name: fields[field] for field in pairs.Field}
    assert (named["COOKIE"], named["SERVER"], named["DONE"], named["SERVER_PORT"]) == (7, 8, 2, 80)


def test_identity_of_a_socket_carries_its_cookie() -> None:
    local, remote = Endpoint(IPv4Address("10.0.0.1"), 4), Endpoint(IPv4Address("10.0.0.2"), 5)
    raw = sockets.identity(local, remote, 0x1122334455667788)
    assert len(raw) == 48
    assert raw[:4] == b"\0\4\0\5"
    found = sockets.TcpSocket(2, sockets.State.ESTABLISHED, local, remote, 1, 0, 11, 5, raw)
    assert found.cookie == 0x1122334455667788
    assert (found.payload_sent, found.payload_received) == (10, 5)
