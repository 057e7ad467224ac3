"""Waypoints: which one, where it is, and whether a workload is one."""

from collections.abc import Iterable

from hbone.reasons import Reason
from ztunnel.decide.balance import Endpoint, choose_endpoint, weighted
from ztunnel.decide.refusal import RefusalError
from ztunnel.state.model import (
    GatewayAddress,
    NamespacedHostname,
    NetworkAddress,
    Service,
    Workload,
)
from ztunnel.state.snapshot import Snapshot

__all__ = ["choose_waypoint", "leads_to", "resolve_waypoint", "waypoints_of"]


def waypoints_of(found: Service | Workload) -> tuple[GatewayAddress, ...]:
    """Every waypoint that traffic to a service or workload may be sent through."""
    single = (found.waypoint,) if found.waypoint is not None else ()
    if isinstance(found, Service):
        return (*single, *(each.destination for each in found.weighted_waypoints if each.weight))
    return single


def choose_waypoint(found: Service | Workload, draw: float) -> GatewayAddress | None:
    """The waypoint for one connection: by weight where there are weights, else the plain one."""
    if isinstance(found, Service):
        index = weighted([each.weight for each in found.weighted_waypoints], draw)
        if index is not None:
            return found.weighted_waypoints[index].destination
    return found.waypoint


def leads_to(gateways: Iterable[GatewayAddress], workload: Workload, snapshot: Snapshot) -> bool:
    """Whether `workload` is (one of the pods of) one of these gateways."""
    return any(_leads_to(gateway.destination, workload, snapshot) for gateway in gateways)


def _leads_to(
    destination: NetworkAddress | NamespacedHostname, workload: Workload, snapshot: Snapshot
) -> bool:
    if isinstance(destination, NamespacedHostname):
        own_name = (workload.namespace, workload.hostname)
        return workload.membership(str(destination)) is not None or own_name == (
            destination.namespace,
            destination.hostname,
        )
    if workload.network == destination.network and destination.ip in workload.addresses:
        return True
    service = snapshot.service_at(destination.network, destination.ip, workload.namespace)
    return service is not None and workload.membership(service.key) is not None


def resolve_waypoint(
    gateway: GatewayAddress, client: Workload, network: str, snapshot: Snapshot, draw: float
) -> tuple[Endpoint, Service | None]:
    """The pod to dial for a waypoint, its HBONE port, and the waypoint's service if it has one.

    RefusalError when it is unknown, on another network, or without a usable pod: traffic that must pass
    a waypoint never goes around it.
    """
    destination = gateway.destination
    if isinstance(destination, NetworkAddress) and destination.network != network:
        raise RefusalError(Reason.NETWORK_UNREACHABLE, f"waypoint {gateway} is on another network")
    service, workload = _find(destination, client, snapshot)
    if service is not None:
        port = gateway.hbone_mtls_port
        return choose_endpoint(service, port, client, network, snapshot, draw, waypoint=True), service
    if workload is None:
        raise RefusalError(
            Reason.WAYPOINT_UNRESOLVED, f"waypoint {gateway} is not known", needs=(str(destination),)
        )
    if workload.network != network:
        raise RefusalError(Reason.NETWORK_UNREACHABLE, f"waypoint {gateway} is on another network")
    return Endpoint(workload, gateway.hbone_mtls_port), None


def _find(
    destination: NetworkAddress | NamespacedHostname, client: Workload, snapshot: Snapshot
) -> tuple[Service | None, Workload | None]:
    """The service comes before the workload: a waypoint's address is usually a service's."""
    if isinstance(destination, NetworkAddress):
        network, ip = destination.network, destination.ip
        return snapshot.service_at(network, ip, client.namespace), snapshot.workload_at(network, ip)
    return (
        snapshot.service(str(destination)),
        snapshot.workload_named(destination.namespace, destination.hostname),
    )
