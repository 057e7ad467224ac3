"""Checked reading of the fields that protobuf leaves open: addresses, prefixes, ports, enum values."""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeVar

from hbone.connect import canonical_ip
from ztunnel.state.model import IPAddress, IPNetwork

__all__ = ["ConversionError", "FieldError", "block", "enum_value", "ip_of", "port"]

MAX_PORT: Final = 65535
_IPV4_BYTES: Final = 4
_IPV6_BYTES: Final = 16
_MAPPED: Final = IPv6Network("::ffff:0:0/96")

_T = TypeVar("_T")


class ConversionError(ValueError):
    """A resource that cannot be used. `name` is the resource's, `reason` one line about the field."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class FieldError(ValueError):
    """What is wrong with a field; becomes a ConversionError once the resource's name is known."""


def ip_of(raw: bytes) -> IPAddress:
    """4 or 16 bytes; anything else raises FieldError."""
    if len(raw) == _IPV4_BYTES:
        return IPv4Address(raw)
    if len(raw) == _IPV6_BYTES:
        return canonical_ip(IPv6Address(raw))
    raise FieldError(f"an address has {len(raw)} bytes instead of 4 or 16")


def block(raw: bytes, length: int) -> IPNetwork:
    """A CIDR block; bits behind the prefix are ignored, as Istio ignores them."""
    if len(raw) == _IPV4_BYTES and length <= 8 * _IPV4_BYTES:
        return IPv4Network((int.from_bytes(raw, "big"), length), strict=False)
    if len(raw) == _IPV6_BYTES and length <= 8 * _IPV6_BYTES:
        return _canonical_block(IPv6Network((int.from_bytes(raw, "big"), length), strict=False))
    raise FieldError(f"an address block has {len(raw)} bytes and a prefix of {length}")


def _canonical_block(network: IPv6Network) -> IPNetwork:
    """Blocks of ::ffff:0:0/96 as IPv4, since that is what peers' addresses are turned into."""
    if not network.subnet_of(_MAPPED):
        return network
    return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - _MAPPED.prefixlen))


def port(value: int, field: str) -> int:
    """A port of 0 to 65535; what 0 means is the field's matter."""
    if value > MAX_PORT:
        raise FieldError(f"{field} is {value}, above {MAX_PORT}")
    return value


def enum_value(known: Mapping[int, _T], value: int, field: str) -> _T:
    """The own value for a protobuf enum number; an unknown number raises FieldError."""
    try:
        return known[value]
    except KeyError:
        raise FieldError(f"{field} has the unsupported value {value}") from None
