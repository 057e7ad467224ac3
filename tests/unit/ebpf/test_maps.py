"""Codecs of map keys and values."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpf import compiler, maps
from ebpf.maps import AddressKey, Direction, Kind, PodFlag, PodRecord, PortKey, Role, SavedSysctls

u8 = st.integers(0, 2**8 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
addresses = st.ip_addresses().filter(lambda address: getattr(address, "ipv4_mapped", None) is None)
records = st.builds(
    PodRecord, u64, u32, u32, st.sampled_from([PodFlag(0), PodFlag.BYPASS_INBOUND]),
    st.builds(SavedSysctls, u8, u8, u8),
)  # fmt: skip


@given(records)
def test_pod_record_survives_the_map(record: PodRecord) -> None:
    raw = record.encode()
    assert len(raw) == maps.LAYOUT["pods"].value_size == maps.LAYOUT["slots"].value_size
    assert PodRecord.decode(raw) == record


@given(u32, addresses)
def test_address_key_survives_the_map(slot: int, address: IPv4Address | IPv6Address) -> None:
    key = AddressKey(slot, address)
    assert len(key.encode()) == maps.LAYOUT["addresses"].key_size
    assert AddressKey.decode(key.encode()) == key


@given(u32, st.integers(1, 65535), st.sampled_from(Direction))
def test_port_key_survives_the_map(slot: int, port: int, direction: Direction) -> None:
    key = PortKey(slot, port, direction)
    assert len(key.encode()) == maps.LAYOUT["exempt"].key_size
    assert PortKey.decode(key.encode()) == key


def test_ipv4_address_is_written_as_mapped() -> None:
    assert maps.ip16(IPv4Address("10.1.2.3")) == bytes(10) + b"\xff\xff\x0a\x01\x02\x03"
    assert maps.ip16(IPv6Address("fd00::1")) == bytes.fromhex("fd000000000000000000000000000001")


def test_listeners_of_two_pods_have_keys_of_their_own() -> None:
    keys = {maps.listener_key(slot, kind) for slot in (0, 1, maps.MAX_PODS - 1) for kind in Kind}
    assert len(keys) == 3 * len(Kind) == 3 * maps.KINDS
    assert max(int.from_bytes(key, "little") for key in keys) < maps.LAYOUT["listeners"].max_entries


def test_address_may_be_own_and_the_nodes_at_once() -> None:
    one, two, three = map(ip_address, ("10.0.0.1", "10.0.0.2", "fd00::3"))
    entries = maps.address_entries(7, (one, two), (two, three))
    assert entries == {
        AddressKey(7, one).encode(): maps.u32(Role.OWN),
        AddressKey(7, two).encode(): maps.u32(Role.OWN | Role.NODE),
        AddressKey(7, three).encode(): maps.u32(Role.NODE),
    }


def test_same_port_is_exempt_in_each_direction_by_itself() -> None:
    entries = maps.exempt_entries(7, (80, 443), (80,))
    assert set(entries) == {
        PortKey(7, 80, Direction.INBOUND).encode(),
        PortKey(7, 443, Direction.INBOUND).encode(),
        PortKey(7, 80, Direction.OUTBOUND).encode(),
    }


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_what_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match="not a port"):
        maps.exempt_entries(0, (port,), ())


def test_lowest_free_slot_is_taken() -> None:
    assert maps.free_slot(()) == 0
    assert maps.free_slot((0, 1, 3)) == 2
    assert maps.free_slot(range(maps.MAX_PODS)) is None


def test_sysctls_saved_first_win() -> None:
    untouched = maps.UNTOUCHED
    first = SavedSysctls(0, untouched, untouched)
    assert first.or_else(SavedSysctls(untouched, 0, untouched)) == SavedSysctls(0, 0, untouched)
    assert SavedSysctls(5).or_else(SavedSysctls(0)).tcp_fwmark_accept == 5


def test_shipped_programs_expect_this_layout() -> None:
    assert dict(compiler.shipped().maps) == maps.LAYOUT


@pytest.mark.parametrize(
    ("kind", "enum"),
    [("kind", Kind), ("role", Role), ("flag", PodFlag), ("direction", Direction), ("counter", maps.Counter)],
)
def test_numbers_agree_with_the_programs(kind: str, enum: type[Kind]) -> None:
    found = re.search(rf"enum {kind} {{([^}}]*)}};", compiler.source_text())
    assert found
    value, numbers = -1, set()
    for entry in filter(None, (part.strip() for part in found[1].split(","))):
        name, _, given_value = entry.partition(" = ")
        value = int(given_value) if given_value else value + 1
        if name not in ("KINDS", "COUNTERS"):
            numbers.add(value)
    assert numbers == {int(member) for member in enum}
