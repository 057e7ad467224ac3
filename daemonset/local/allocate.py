"""ClusterIPs: keep what a service has, take what its manifest asks for, give the rest a free one. Pure."""

from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from daemonset.local.addresses import Address, RangeExhausted, Ranges, next_free
from daemonset.local.servicespec import ServiceSpec

_RESERVED = 16  # the first addresses of the range: name server and reserve

Key = tuple[str, str]


class AddressConflict(Exception):
    """A requested ClusterIP cannot be had; the text says why."""


def cluster_ips(
    services: Iterable[ServiceSpec], current: Mapping[Key, tuple[str, ...]], ranges: Ranges
) -> dict[Key, tuple[str, ...]]:
    """Addresses per service. Raises AddressConflict."""
    wanted = [s for s in services if s.wants_address]
    fixed = {a for s in wanted for a in s.requested}
    for service in wanted:
        for address in service.requested:
            _check(service, ip_address(address), ranges)
    result: dict[Key, tuple[str, ...]] = {}
    used: set[Address] = {ip_address(a) for a in fixed}
    for service in wanted:
        kept = {ip_address(a).version: a for a in current.get(service.key, ()) if a not in fixed}
        kept.update({ip_address(a).version: a for a in service.requested})
        result[service.key] = tuple(kept[f] for f in service.families if f in kept)
        used.update(ip_address(a) for a in result[service.key])
    for service in wanted:
        have: dict[int, str] = {ip_address(a).version: a for a in result[service.key]}
        for family in service.families:
            if family not in have:
                have[family] = str(_new(ranges, family, used))
                used.add(ip_address(have[family]))
        result[service.key] = tuple(have[f] for f in service.families)
    return result


def _new(ranges: Ranges, family: int, used: set[Address]) -> Address:
    network = ranges.services[0 if family == 4 else 1]
    try:
        return next_free(network, used, reserved=_RESERVED)
    except RangeExhausted as error:
        raise AddressConflict(f"no ClusterIP left: {error}") from None


def _check(service: ServiceSpec, address: Address, ranges: Ranges) -> None:
    where = f"Service {service.namespace}/{service.name}: clusterIP {address}"
    if address in ranges.dns:
        raise AddressConflict(f"{where} is the mesh's name server; choose another")
    pods, nodes = ranges.all_pods, ranges.nodes
    inside_v6 = address in ranges.services[1]
    if address in nodes[0] or address in pods[0] or (address in pods[1] and not inside_v6):
        raise AddressConflict(f"{where} lies in a range of pods or nodes; use {ranges.services[0]}")
    if address.is_loopback or address.is_multicast or address.is_link_local or address.is_unspecified:
        raise AddressConflict(f"{where} cannot be used; use an address of {ranges.services[0]}")
