"""Address ranges of a mesh and allocation from them. Pure.

Meshes that run side by side have different indexes, and with them distinct ranges:

    fabric and nodes   172.30.<index>.0/24    fd00:a1e5:<index>:fffe::/64
    pods of node <n>   10.<160+index>.<n>.0/24  fd00:a1e5:<index>:<n>::/64
    ClusterIPs         10.<96+index>.0.0/16   fd00:a1e5:<index>:ffff::/112
"""

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MESHES = 64
NODES = 250
_GATEWAY4 = IPv4Address("169.254.1.1")
_GATEWAY6 = IPv6Address("fe80::1")
_FIRST_NODE_HOST = 2  # .1 is the fabric itself


class RangeExhausted(Exception):
    """No address left; the text names the range."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """The ranges of the mesh with this index (0..63)."""

    index: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < MESHES:
            raise ValueError(f"mesh index {self.index} is not below {MESHES}")

    @property
    def nodes(self) -> tuple[IPv4Network, IPv6Network]:
        """The fabric's network."""
        return (
            IPv4Network(f"172.30.{self.index}.0/24"),
            IPv6Network(f"fd00:a1e5:{self.index:x}:fffe::/64"),
        )

    @property
    def fabric(self) -> tuple[IPv4Address, IPv6Address]:
        """Where the control plane listens."""
        v4, v6 = self.nodes
        return v4[1], v6[1]

    def node(self, number: int) -> tuple[IPv4Address, IPv6Address]:
        """Addresses of the node with this number (1..NODES)."""
        v4, v6 = self.nodes
        return v4[number + _FIRST_NODE_HOST - 1], v6[number + _FIRST_NODE_HOST - 1]

    def pods(self, number: int) -> tuple[IPv4Network, IPv6Network]:
        """The node's range for its pods."""
        return (
            IPv4Network(f"10.{160 + self.index}.{number}.0/24"),
            IPv6Network(f"fd00:a1e5:{self.index:x}:{number:x}::/64"),
        )

    @property
    def all_pods(self) -> tuple[IPv4Network, IPv6Network]:
        """Every node's pods (and, in IPv6, the nodes and services too)."""
        return IPv4Network(f"10.{160 + self.index}.0.0/16"), IPv6Network(f"fd00:a1e5:{self.index:x}::/48")

    @property
    def services(self) -> tuple[IPv4Network, IPv6Network]:
        """ClusterIPs are taken from here."""
        return (
            IPv4Network(f"10.{96 + self.index}.0.0/16"),
            IPv6Network(f"fd00:a1e5:{self.index:x}:ffff::/112"),
        )

    @property
    def dns(self) -> tuple[IPv4Address, IPv6Address]:
        """The cluster's name server, on every node."""
        v4, v6 = self.services
        return v4[10], v6[10]

    @property
    def gateway(self) -> tuple[IPv4Address, IPv6Address]:
        """Next hop of every pod: the node's end of the pod's link."""
        return _GATEWAY4, _GATEWAY6


def next_free(
    network: Network, used: Collection[Address], after: Address | None = None, reserved: int = 2
) -> Address:
    """The first address of `network` above `after` (wrapping) that is not used.

    Going round rather than taking the lowest keeps a freed address out of use for as long as possible:
    caches and half-closed connections of its former owner are gone by then. `reserved` addresses at the
    beginning and one at the end are never given out.
    """
    first, size = int(network.network_address), min(network.num_addresses, 65536)
    count = size - reserved - 1
    offset = int(after) - first - reserved + 1 if after is not None and after in network else 0
    for step in range(count):
        candidate = network[reserved + (offset + step) % count]
        if candidate not in used:
            return candidate
    raise RangeExhausted(f"every address of {network} is in use")


def next_number(used: Collection[int], limit: int) -> int | None:
    """The lowest number from 1 to `limit` that is not used."""
    return next((n for n in range(1, limit + 1) if n not in used), None)
