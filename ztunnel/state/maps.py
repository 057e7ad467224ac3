"""What a snapshot consists of: resources by name, and the indexes that are derived from them."""

from dataclasses import dataclass, field
from typing import Final

from immutables import Map

from ztunnel.state.model import IPAddress, Service, Workload
from ztunnel.state.policy import Need, Policy

AddressKey = tuple[str, IPAddress]
"""network, ip"""
BlockKey = tuple[str, int, int, int]
"""network, IP version, prefix length, the prefix as a number"""
LocalKey = tuple[str, str, str]
"""namespace, service account, pod name"""

ANY_CONNECTION: Final = Need("", "")
"""Stands for policies that may match any connection: they have to be evaluated every time."""


@dataclass(frozen=True, slots=True)
class Maps:
    """`Snapshot` looks up in them, `Indexes` makes them of the former ones. `node`: whose pods `on_this_node` has."""

    node: str = ""
    by_uid: Map[str, Workload] = field(default_factory=Map)
    by_key: Map[str, Service] = field(default_factory=Map)
    by_policy: Map[str, Policy] = field(default_factory=Map)
    at_address: Map[AddressKey, tuple[str, ...]] = field(default_factory=Map)
    at_hostname: Map[str, tuple[str, ...]] = field(default_factory=Map)
    on_this_node: Map[LocalKey, tuple[str, ...]] = field(default_factory=Map)
    vips: Map[AddressKey, tuple[str, ...]] = field(default_factory=Map)
    blocks: Map[BlockKey, tuple[str, ...]] = field(default_factory=Map)
    block_lengths: Map[tuple[str, int], Map[int, int]] = field(default_factory=Map)
    hostnames: Map[str, tuple[str, ...]] = field(default_factory=Map)
    members: Map[str, Map[str, Workload]] = field(default_factory=Map)
    scoped: Map[str, tuple[Policy, ...]] = field(default_factory=Map)
    by_need: Map[tuple[str, Need], tuple[str, ...]] = field(default_factory=Map)
    allows: Map[str, int] = field(default_factory=Map)


def block_key(network: str, ip: IPAddress, length: int) -> BlockKey:
    """The key of the block with this prefix length that an address lies in."""
    return (network, ip.version, length, int(ip) >> (ip.max_prefixlen - length))
