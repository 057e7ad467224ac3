"""Attributes of route netlink."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ebpf import netlink


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40)))
def test_attributes_survive_the_wire(values: dict[int, bytes]) -> None:
    assert netlink.parse_attributes(netlink.attributes(values)) == values


def test_attribute_is_padded_to_four_bytes_but_tells_its_own_length() -> None:
    assert netlink.attribute(7, b"lo\0") == b"\x07\x00\x07\x00lo\x00\x00"
    assert netlink.attributes({15: 15001}) == b"\x08\x00\x0f\x00\x99\x3a\x00\x00"


@given(st.binary(max_size=64))
def test_nonsense_is_parsed_without_end_or_error(raw: bytes) -> None:
    netlink.parse_attributes(raw)


def test_truncated_attribute_ends_the_list() -> None:
    whole = netlink.attribute(1, b"abcd")
    assert netlink.parse_attributes(whole + b"\x03\x00\x02\x00") == {1: b"abcd"}
