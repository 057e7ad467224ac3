"""Addresses for hosts of service entries that have none: one of each family, so that clients can name them. Pure.

The pools are Istio's. Where an address lies in its pool is a hash of the host's entry and name, so it is the same
after a restart and in every replica, without being written down; hosts that meet at one place go on to the next
free one, the younger entry behind the older. What users gave, and what status.addresses says that someone
allocated before, is taken first; of two entries with one address in their status the younger gets another.
"""

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping

from istiodlite.objects import ServiceEntry
from istiodlite.registry.config import AUTOALLOCATE

V4_POOL = ipaddress.ip_network("240.240.0.0/16")
V6_POOL = ipaddress.ip_network("2001:2::/48")
# Neither the first nor the last of a pool; of the huge one a part is enough.
_SIZES = ((V4_POOL, 2**16 - 2), (V6_POOL, 2**32))

Key = tuple[str, str]
Allocated = Mapping[Key, Mapping[str, tuple[str, ...]]]
"""(namespace, name) of an entry -> host -> addresses"""


def hosts_to_serve(entry: ServiceEntry) -> list[str]:
    """The hosts of an entry that get addresses."""
    if entry.addresses or entry.resolution == "NONE" or entry.meta.labels.get(AUTOALLOCATE) == "false":
        return []
    wildcards = entry.resolution == "DYNAMIC_DNS"
    return [host for host in dict.fromkeys(entry.hosts) if wildcards or not host.startswith("*")]


def allocate(entries: Iterable[ServiceEntry]) -> Allocated:
    """For all entries together; the result does not depend on their order."""
    ordered = sorted(entries, key=lambda entry: entry.meta.age_order)
    given = (text for entry in ordered for text in entry.addresses if "/" not in text)
    taken = {str(ipaddress.ip_address(text)) for text in given}
    out: dict[Key, dict[str, tuple[str, ...]]] = {}
    waiting: list[tuple[Key, str]] = []
    for entry in ordered:
        key = (entry.meta.namespace, entry.meta.name)
        for host in hosts_to_serve(entry):
            kept = tuple(value for value, owner in entry.allocated if owner == host and value not in taken)
            if kept:
                taken.update(kept)
                out.setdefault(key, {})[host] = kept
            else:
                waiting.append((key, host))
    for key, host in waiting:
        found = tuple(_probe(pool, size, key, host, taken) for pool, size in _SIZES)
        out.setdefault(key, {})[host] = tuple(address for address in found if address)
    return out


def _probe(
    pool: ipaddress.IPv4Network | ipaddress.IPv6Network, size: int, key: Key, host: str, taken: set[str]
) -> str:
    """A free address, noted as taken; empty if the pool is used up."""
    digest = hashlib.blake2b("/".join((*key, host)).encode(), digest_size=8).digest()
    start = int.from_bytes(digest, "big") % size
    for step in range(min(size, len(taken) + 1)):
        address = str(pool.network_address + 1 + (start + step) % size)
        if address not in taken:
            taken.add(address)
            return address
    return ""
