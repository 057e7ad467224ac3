"""Which of the network namespaces that a pod's processes are in is the pod's. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

__all__ = ["Candidate", "IpAddress", "NetnsKey", "Undecided", "choose"]

IpAddress: TypeAlias = IPv4Address | IPv6Address
NetnsKey: TypeAlias = tuple[int, int]
"""Device and inode."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A namespace that at least one process of the pod is in, with its addresses of global scope."""

    key: NetnsKey
    addresses: tuple[IpAddress, ...]


@dataclass(frozen=True, slots=True)
class Undecided:
    """Not now; `reason` is one line."""

    reason: str


def choose(candidates: Sequence[Candidate], told: Collection[IpAddress]) -> NetnsKey | Undecided:
    """`candidates`: without the node's own. `told`: the pod's addresses as the API server has them, maybe none yet.

    A process may enter other namespaces (a container engine within the pod, tools that look at other pods). As long as
    there is but one, it is the pod's: the sandbox is in it before any container is. Otherwise addresses decide; a
    sandbox that was made anew has others than those still told, and must not wait for them while it is the only one.
    """
    if not candidates:
        return Undecided("none of its processes is in a network of its own yet")
    if len(candidates) == 1:
        (only,) = candidates
        return only.key if only.addresses else Undecided("its network has no address yet")
    if not told:
        return Undecided(f"its processes are in {len(candidates)} networks, and its address is not known yet")
    fitting = [one for one in candidates if not set(told).isdisjoint(one.addresses)]
    if len(fitting) == 1:
        return fitting[0].key
    how_many = "several" if fitting else "none"
    return Undecided(f"its processes are in {len(candidates)} networks, of which {how_many} have its address")
