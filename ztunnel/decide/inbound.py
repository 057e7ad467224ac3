"""Connections for a pod of this node: what they are for, whether they may, and who to name as the ends."""

from dataclasses import dataclass, replace

from hbone.connect import ConnectError, SocketAddress, parse_authority
from hbone.reasons import Reason
from ztunnel.decide.authz import authorize
from ztunnel.decide.gateways import leads_to, waypoints_of
from ztunnel.decide.model import (
    Deliver,
    Direction,
    InboundConnection,
    InboundVerdict,
    Refuse,
    Route,
    TrafficEnds,
    Verdict,
    Via,
)
from ztunnel.decide.ports import ILLEGAL_PORTS, target_port
from ztunnel.decide.refusal import RefusalError
from ztunnel.state.changes import Key, Kind
from ztunnel.state.model import (
    ApplicationTunnelProtocol,
    IPAddress,
    NetworkAddress,
    Service,
    Workload,
)
from ztunnel.state.snapshot import Snapshot

__all__ = ["decide_inbound"]


@dataclass(frozen=True, slots=True)
class _Target:
    """What a connection is for: the port of the application here, and the service that was asked for."""

    address: SocketAddress
    service: Service | None = None
    depends: frozenset[Key] = frozenset()


def decide_inbound(connection: InboundConnection, snapshot: Snapshot) -> InboundVerdict:
    """Decide about a CONNECT request (HBONE) or a captured plaintext connection.

    First what is asked for has to make sense (400, 503), then policy has to permit it (401); only then
    is the application connected to.
    """
    ends = _ends(connection, snapshot)
    try:
        target = _target(connection, snapshot)
    except RefusalError as refused:
        return Verdict(
            direction=Direction.INBOUND,
            reason=refused.reason,
            action=Refuse(refused.reason.http_status),
            route=Route.NONE,
            ends=ends,
            detail=refused.detail,
            depends=frozenset({Key(Kind.WORKLOAD, connection.local.uid)}),
            needs=refused.needs,
        )
    return _authorized(connection, snapshot, target, ends)


def _authorized(
    connection: InboundConnection, snapshot: Snapshot, target: _Target, ends: TrafficEnds
) -> InboundVerdict:
    local = connection.local
    authorization = authorize(connection.identity, connection.peer.ip, target.address, local, snapshot)
    allowed = authorization.allowed
    reason = authorization.reason
    return Verdict(
        direction=Direction.INBOUND,
        reason=reason,
        action=_deliver(connection, target) if allowed else Refuse(reason.http_status),
        route=Route.LOCAL if allowed else Route.NONE,
        ends=replace(ends, service=_service_for_telemetry(connection, snapshot, target)),
        detail=f"policy {authorization.policy}" if authorization.policy else "",
        authorization=authorization,
        depends=authorization.depends | target.depends,
    )


def _deliver(connection: InboundConnection, target: _Target) -> Deliver:
    address = target.address
    tunnel = connection.local.application_tunnel
    if connection.via is Via.HBONE and tunnel is not None and tunnel.port:
        address = SocketAddress(address.ip, tunnel.port)
    # A pod that reaches itself: binding its own address for the client's would connect it to itself.
    source = connection.peer.ip if connection.peer.ip != address.ip else None
    return Deliver(address, source)


def _target(connection: InboundConnection, snapshot: Snapshot) -> _Target:
    if connection.via is Via.PLAINTEXT:
        target = _Target(connection.destination)
    else:
        target = _requested(connection, snapshot)
    if target.address.port in ILLEGAL_PORTS:
        raise RefusalError(Reason.ILLEGAL_PORT, f"port {target.address.port} is not for applications")
    return target


def _requested(connection: InboundConnection, snapshot: Snapshot) -> _Target:
    tunnel = connection.local.application_tunnel
    if tunnel is not None and tunnel.protocol is ApplicationTunnelProtocol.PROXY:
        raise RefusalError(Reason.APP_TUNNEL_UNSUPPORTED, f"{connection.local.name} asks for PROXY protocol")
    try:
        authority = parse_authority(connection.authority or "")
    except ConnectError as error:
        raise RefusalError(error.reason, str(error)) from error
    if isinstance(authority.host, str):
        return _requested_by_name(connection, snapshot, authority.host, authority.port)
    return _requested_by_address(connection, snapshot, authority.host, authority.port)


def _requested_by_address(
    connection: InboundConnection, snapshot: Snapshot, ip: IPAddress, port: int
) -> _Target:
    """The pod's own address, or one that this pod stands before as a waypoint."""
    local = connection.local
    target = SocketAddress(connection.destination.ip, port)
    if ip == connection.destination.ip or local.application_tunnel is not None:
        return _Target(target)
    network = local.network
    depends = frozenset({Key(Kind.ADDRESS, str(NetworkAddress(network, ip))), Key(Kind.BLOCKS, network)})
    service = snapshot.service_at(network, ip, local.namespace)
    workload = snapshot.workload_at(network, ip)
    for asked in (service, workload):
        if asked is not None and leads_to(waypoints_of(asked), local, snapshot):
            return _Target(target, service, depends)
    found = service is not None or workload is not None
    raise RefusalError(
        Reason.IP_MISMATCH,
        f"{ip} is asked for, but this is {connection.destination.ip}",
        needs=() if found else (str(NetworkAddress(network, ip)),),
    )


def _requested_by_name(
    connection: InboundConnection, snapshot: Snapshot, hostname: str, port: int
) -> _Target:
    """A service this pod is an endpoint of, or a waypoint for; the port is the service's."""
    local = connection.local
    service = snapshot.service_named(hostname, local.namespace)
    if service is None:
        raise RefusalError(Reason.UNKNOWN_SERVICE, f"{hostname} is not a known service")
    if (
        local.membership(service.key) is None
        and local.application_tunnel is None
        and not leads_to(waypoints_of(service), local, snapshot)
    ):
        raise RefusalError(Reason.IP_MISMATCH, f"{local.name} does not serve {hostname}")
    target = target_port(service, local, port)
    if target is None:
        raise RefusalError(Reason.UNKNOWN_PORT, f"{hostname} has no port {port} here")
    depends = frozenset({Key(Kind.SERVICE, service.key), Key(Kind.HOSTNAME, hostname)})
    return _Target(SocketAddress(connection.destination.ip, target), service, depends)


def _ends(connection: InboundConnection, snapshot: Snapshot) -> TrafficEnds:
    """Who the ends are. A gateway of another network speaks for others: its address tells nothing."""
    local = connection.local
    from_gateway = (
        connection.from_network is not None and connection.from_network.lower() != local.network.lower()
    )
    source = None if from_gateway else snapshot.workload_at(local.network, connection.peer.ip)
    if source is not None and connection.identity not in (None, source.identity):
        # The address has changed hands since the control plane last spoke; TLS knows better.
        source = None
    return TrafficEnds(
        source=source,
        source_baggage=connection.baggage,
        source_identity=connection.identity,
        destination=local,
        mutual_tls=connection.via is Via.HBONE,
    )


def _service_for_telemetry(
    connection: InboundConnection, snapshot: Snapshot, target: _Target
) -> Service | None:
    """The service the client said it meant, if this pod is in it; else the first that has the port."""
    if target.service is not None:
        return target.service
    first = None
    for membership in connection.local.services:
        service = snapshot.service(membership.service)
        if service is None:
            continue
        if connection.forwarded_host is not None and service.hostname == connection.forwarded_host:
            return service
        if first is None and _reaches(service, connection.local, target.address.port):
            first = service
    return first


def _reaches(service: Service, workload: Workload, port: int) -> bool:
    return any(target_port(service, workload, each.service_port) == port for each in service.ports)
