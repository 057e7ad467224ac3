"""Connections out of a pod of this node: to whom, by which way, and what the tunnel has to say.

In Istio's order: a service that has a waypoint goes to it; else a service means one of its endpoints;
else a workload that has a waypoint goes to that; else to the workload itself; an address nobody has is
left alone. Where a waypoint is demanded, nothing ever goes around it.

Not in this form: other networks (Istio's tunnel in a tunnel through gateways). They are refused with
`network_unreachable`.
"""

from dataclasses import dataclass

from hbone.connect import IPAddress, SocketAddress
from hbone.reasons import Reason
from ztunnel.decide.balance import Endpoint, choose_endpoint
from ztunnel.decide.gateways import choose_waypoint, leads_to, resolve_waypoint, waypoints_of
from ztunnel.decide.model import (
    Direction,
    OutboundConnection,
    OutboundVerdict,
    Passthrough,
    Refuse,
    Route,
    TrafficEnds,
    Tunnel,
    Verdict,
)
from ztunnel.decide.ports import ILLEGAL_PORTS
from ztunnel.decide.refusal import RefusalError
from ztunnel.state.changes import Key, Kind
from ztunnel.state.model import (
    HBONE_PORT,
    IPFamilies,
    LoadBalancingMode,
    NetworkAddress,
    Service,
    TunnelProtocol,
    Workload,
)
from ztunnel.state.snapshot import Snapshot

__all__ = ["decide_outbound", "still_routed"]


@dataclass(frozen=True, slots=True)
class _Found:
    """Who is at the destination address. Both can be: their order differs from step to step."""

    workload: Workload | None
    service: Service | None


@dataclass(frozen=True, slots=True)
class _Way:
    """What was decided, before it is put into a verdict."""

    route: Route
    action: Passthrough | Tunnel
    hop: Workload | None = None
    service: Service | None = None
    detail: str = ""


def decide_outbound(
    connection: OutboundConnection, snapshot: Snapshot, draw: float, draw2: float = 0.0
) -> OutboundVerdict:
    """Decide where a captured connection goes.

    `draw` (of [0, 1)) picks the endpoint, `draw2` the waypoint where several are weighted. With equal
    arguments the verdict is equal.
    """
    found = _find(connection, snapshot)
    depends = _depends(connection, found)
    try:
        way = _way(connection, snapshot, found, draw, draw2)
    except RefusalError as refusal:
        return Verdict(
            direction=Direction.OUTBOUND,
            reason=refusal.reason,
            action=Refuse(refusal.reason.http_status),
            route=Route.NONE,
            ends=TrafficEnds(source=connection.source, destination=found.workload, service=found.service),
            detail=refusal.detail,
            depends=depends,
            needs=refusal.needs,
            resolve=refusal.resolve,
        )
    tunnelled = isinstance(way.action, Tunnel)
    return Verdict(
        direction=Direction.OUTBOUND,
        reason=Reason.OK,
        action=way.action,
        route=way.route,
        ends=TrafficEnds(
            source=connection.source,
            source_identity=connection.source.identity if tunnelled else None,
            destination=way.hop,
            service=way.service,
            mutual_tls=tunnelled,
        ),
        detail=way.detail,
        depends=depends,
        needs=_unknown(connection, found),
    )


def still_routed(verdict: OutboundVerdict, connection: OutboundConnection, snapshot: Snapshot) -> Reason:
    """Whether a live connection may stay on its way: `ok`, or `route_changed`.

    Only a waypoint's demand moves a live connection. That an endpoint left its service, or that a
    better one came, does not.
    """
    found = _find(connection, snapshot)
    target = _behind_waypoint(connection, snapshot, found)
    if target is None:
        return Reason.OK
    hop = verdict.action.hop if isinstance(verdict.action, Tunnel) else None
    hop = snapshot.workload(hop.uid) if hop is not None else None
    passes = hop is not None and leads_to(waypoints_of(target), hop, snapshot)
    return Reason.OK if passes else Reason.ROUTE_CHANGED


def _find(connection: OutboundConnection, snapshot: Snapshot) -> _Found:
    ip = connection.destination.ip
    return _Found(
        workload=snapshot.workload_at(connection.network, ip),
        service=snapshot.service_at(connection.network, ip, connection.source.namespace),
    )


def _depends(connection: OutboundConnection, found: _Found) -> frozenset[Key]:
    address = str(NetworkAddress(connection.network, connection.destination.ip))
    keys = {
        Key(Kind.WORKLOAD, connection.source.uid),
        Key(Kind.ADDRESS, address),
        Key(Kind.BLOCKS, connection.network),
    }
    if found.workload is not None:
        keys.add(Key(Kind.WORKLOAD, found.workload.uid))
    if found.service is not None:
        keys.add(Key(Kind.SERVICE, found.service.key))
    return frozenset(keys)


def _unknown(connection: OutboundConnection, found: _Found) -> tuple[str, ...]:
    if found.workload is not None or found.service is not None:
        return ()
    return (str(NetworkAddress(connection.network, connection.destination.ip)),)


def _behind_waypoint(
    connection: OutboundConnection, snapshot: Snapshot, found: _Found
) -> Service | Workload | None:
    """The service or workload whose waypoint must see this connection.

    A workload's waypoint is for traffic to its address, not for traffic that reaches it by a service.
    What comes from the waypoint itself has been seen already.
    """
    if found.workload is not None and found.service is not None:
        return None
    target = found.workload or found.service
    if target is None or not waypoints_of(target):
        return None
    return None if leads_to(waypoints_of(target), connection.source, snapshot) else target


def _way(
    connection: OutboundConnection, snapshot: Snapshot, found: _Found, draw: float, draw2: float
) -> _Way:
    destination = connection.destination
    if destination.port in ILLEGAL_PORTS and (
        destination.ip.is_loopback or destination.ip in connection.source.addresses
    ):
        raise RefusalError(Reason.ILLEGAL_PORT, f"port {destination.port} of the pod is the mesh's own")
    target = _behind_waypoint(connection, snapshot, found)
    if target is not None:
        return _by_waypoint(connection, snapshot, target, draw, draw2)
    if found.service is not None:
        return _by_service(connection, snapshot, found.service, draw)
    if found.workload is not None:
        endpoint = Endpoint(found.workload, destination.port)
        return _to_workload(connection, endpoint, None)
    return _Way(Route.PASSTHROUGH, Passthrough(destination), detail="nobody in the mesh has this address")


def _by_waypoint(
    connection: OutboundConnection,
    snapshot: Snapshot,
    target: Service | Workload,
    draw: float,
    draw2: float,
) -> _Way:
    gateway = choose_waypoint(target, draw2)
    if gateway is None:
        raise RefusalError(Reason.WAYPOINT_UNRESOLVED, "the waypoint was given no address")
    endpoint, service = resolve_waypoint(gateway, connection.source, connection.network, snapshot, draw)
    action = Tunnel(
        destination=SocketAddress(_address(connection, endpoint.workload, service), endpoint.port),
        sans=_sans(service, endpoint.workload),
        authority=str(connection.destination),
        hop=endpoint.workload,
    )
    if isinstance(target, Service):
        return _Way(Route.SERVICE_WAYPOINT, action, endpoint.workload, target, f"waypoint {gateway}")
    return _Way(Route.WORKLOAD_WAYPOINT, action, endpoint.workload, None, f"waypoint {gateway}")


def _by_service(connection: OutboundConnection, snapshot: Snapshot, service: Service, draw: float) -> _Way:
    if service.load_balancing.mode is LoadBalancingMode.PASSTHROUGH:
        detail = f"{service.hostname} is reached at whatever address is asked for"
        return _Way(Route.PASSTHROUGH, Passthrough(connection.destination), detail=detail)
    endpoint = choose_endpoint(
        service, connection.destination.port, connection.source, connection.network, snapshot, draw
    )
    return _to_workload(connection, endpoint, service)


def _to_workload(connection: OutboundConnection, endpoint: Endpoint, service: Service | None) -> _Way:
    workload = endpoint.workload
    if workload.network != connection.network:
        raise RefusalError(Reason.NETWORK_UNREACHABLE, f"{workload.name} is on network {workload.network}")
    address = SocketAddress(_address(connection, workload, service), endpoint.port)
    if workload.tunnel_protocol is TunnelProtocol.NONE:
        return _Way(Route.PLAINTEXT, Passthrough(address), workload, service)
    action = Tunnel(
        destination=SocketAddress(address.ip, HBONE_PORT),
        sans=_sans(service, workload),
        authority=str(address),
        hop=workload,
    )
    return _Way(Route.DIRECT, action, workload, service)


def _sans(service: Service | None, workload: Workload) -> tuple[str, ...]:
    """Who may answer: whom the service names, and the workload itself. Sorted: pools are keyed by it."""
    named = service.subject_alt_names if service is not None else ()
    return tuple(sorted({str(workload.identity), *map(str, named)}))


def _address(connection: OutboundConnection, workload: Workload, service: Service | None) -> IPAddress:
    """The address to dial: the one asked for if it is the workload's, else one of the same family.

    Another family does as well (the tunnel translates), unless the service is bound to one.
    """
    wanted = connection.destination.ip
    if wanted in workload.addresses:
        return wanted
    addresses = workload.addresses or connection.resolved.get(workload.hostname, ())
    if not addresses and workload.hostname:
        raise RefusalError(
            Reason.NAME_UNRESOLVED,
            f"{workload.hostname} has no known address",
            resolve=(workload.hostname,),
        )
    families = _FAMILIES.get(service.ip_families, _BOTH) if service is not None else _BOTH
    usable = [ip for ip in addresses if ip.version in families]
    same = [ip for ip in usable if ip.version == wanted.version]
    if not usable:
        raise RefusalError(Reason.NO_HEALTHY_UPSTREAM, f"{workload.name} has no address of a usable family")
    return (same or usable)[0]


_BOTH = frozenset({4, 6})
_FAMILIES = {IPFamilies.IPV4_ONLY: frozenset({4}), IPFamilies.IPV6_ONLY: frozenset({6})}
