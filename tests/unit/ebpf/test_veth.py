"""Which interface is the host's end of a pod's veth, told from what the kernel says of both."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpf import maps, netlink, veth
from ebpf.veth import HostEnd, Interface

POD_MAC, HOST_MAC = b"\x02podpo", b"\x02hosth"
INNER = Interface(index=2, kind="veth", mac=POD_MAC, peer=17, peer_netns=0)
OUTER = Interface(index=17, kind="veth", mac=HOST_MAC, peer=2, peer_netns=5)


def link(index: int, attributes: dict[int, bytes | int]) -> bytes:
    return struct.pack("=BBHiII", 0, 0, 1, index, 0x1043, 0) + netlink.attributes(attributes)


def test_interface_is_read_as_the_kernel_describes_it() -> None:
    info = netlink.attributes({1: b"veth\0", 2: b"\1\2\3\4"})
    body = link(2, {1: POD_MAC, 5: 17, 18: info, 37: 0})
    assert veth.parse_interface(body) == INNER


def test_interface_of_the_host_itself_has_no_peer() -> None:
    assert veth.parse_interface(link(1, {1: bytes(6)})) == Interface(1, "", bytes(6), None, None)


@pytest.mark.parametrize("address", ["10.0.0.7", "fd00::7"])
def test_address_is_read_with_its_interface(address: str) -> None:
    own = ip_address(address)
    family = 2 if own.version == 4 else 10
    body = struct.pack("=BBBBI", family, own.max_prefixlen, 0, 0, 2) + netlink.attributes({1: own.packed})
    assert veth.parse_address(body) == (maps.ip16(own), 2)


def test_both_ends_name_each_other() -> None:
    assert veth.are_ends(INNER, OUTER, 5)


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        (INNER, replace(OUTER, peer_netns=4)),  # of another pod, whose interface has the same index
        (INNER, replace(OUTER, peer_netns=None)),
        (INNER, replace(OUTER, peer=3)),
        (replace(INNER, peer=18), OUTER),
        (replace(INNER, kind="ipvlan"), OUTER),
        (INNER, replace(OUTER, kind="macvlan")),
        (replace(INNER, mac=b""), OUTER),
    ],
)
def test_interfaces_that_only_seem_to_be_ends_are_none(inner: Interface, outer: Interface) -> None:
    assert not veth.are_ends(inner, outer, 5)


def test_a_namespace_without_a_number_proves_nothing() -> None:
    assert not veth.are_ends(INNER, replace(OUTER, peer_netns=-1), -1)


@given(
    st.integers(1, 2**31 - 1), st.binary(min_size=6, max_size=6), st.binary(min_size=6, max_size=6),
    st.integers(0, maps.MAX_PODS - 1), st.integers(0, 2**64 - 1),
)  # fmt: skip
def test_entry_survives_the_map(ifindex: int, mac: bytes, pod_mac: bytes, slot: int, since: int) -> None:
    end = HostEnd(ifindex, mac, pod_mac)
    raw = end.encode(slot, since)
    assert len(raw) == veth.HOST_SIZE == maps.LAYOUT["redirect_hosts"].value_size
    assert veth.decode_host(raw) == (end, slot, since)
    assert raw[16:28] == pod_mac + mac  # as an Ethernet header begins: to, from
