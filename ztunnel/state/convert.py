"""Control plane resources to own values, closed against everything that is not understood.

A resource that would have to be guessed at is rejected as a whole with a ConversionError, never used in
part: a policy that silently lost one of its addresses would let in more than its author wrote.
"""

import enum
from collections.abc import Iterable
from functools import lru_cache
from sys import intern
from typing import Final, TypeVar

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import DecodeError

from hbone.spiffe import SpiffeError, SpiffeId, check_segment, check_trust_domain
from istiodlite.api import workload_pb2
from ztunnel.state.convert_policy import policy, policy_from_bytes, unusable
from ztunnel.state.fields import ConversionError, FieldError, block, enum_value, ip_of, port
from ztunnel.state.model import (
    HBONE_PORT,
    ApplicationTunnel,
    ApplicationTunnelProtocol,
    GatewayAddress,
    HealthPolicy,
    IPFamilies,
    LoadBalancing,
    LoadBalancingMode,
    Locality,
    Membership,
    NamespacedHostname,
    NetworkAddress,
    NetworkMode,
    Port,
    Scope,
    Service,
    TunnelProtocol,
    VirtualAddress,
    Visibility,
    WeightedWaypoint,
    Workload,
    WorkloadType,
)

__all__ = [
    "ConversionError",
    "address_from_bytes",
    "policy",
    "policy_from_bytes",
    "service",
    "unusable",
    "workload",
]

DEFAULT_TRUST_DOMAIN: Final = "cluster.local"
DEFAULT_SERVICE_ACCOUNT: Final = "default"
DEFAULT_CLUSTER: Final = "Kubernetes"

_EnumT = TypeVar("_EnumT", bound=enum.Enum)


def _same_names(wire: EnumTypeWrapper, own: type[_EnumT]) -> dict[int, _EnumT]:
    """Number to own member: the members of all these enums bear the names of the wire's, some shortened."""
    return {
        number: own[name.split("_")[0] if name.startswith("UNSPECIFIED") else name]
        for name, number in wire.items()
    }


_TUNNEL_PROTOCOLS: Final[dict[int, TunnelProtocol]] = {
    workload_pb2.TunnelProtocol.NONE: TunnelProtocol.NONE,
    workload_pb2.TunnelProtocol.HBONE: TunnelProtocol.HBONE,
}
_WORKLOAD_TYPES: Final = _same_names(workload_pb2.WorkloadType, WorkloadType)
_NETWORK_MODES: Final = _same_names(workload_pb2.NetworkMode, NetworkMode)
_IP_FAMILIES: Final = _same_names(workload_pb2.IPFamilies, IPFamilies)
_VISIBILITIES: Final = _same_names(workload_pb2.Visibility, Visibility)
_APPLICATION_TUNNELS: Final = _same_names(workload_pb2.ApplicationTunnel.Protocol, ApplicationTunnelProtocol)
_SCOPES: Final = _same_names(workload_pb2.LoadBalancing.Scope, Scope)
_MODES: Final = _same_names(workload_pb2.LoadBalancing.Mode, LoadBalancingMode)
_HEALTH_POLICIES: Final = _same_names(workload_pb2.LoadBalancing.HealthPolicy, HealthPolicy)
_HEALTHY: Final[dict[int, bool]] = {
    workload_pb2.WorkloadStatus.HEALTHY: True,
    workload_pb2.WorkloadStatus.UNHEALTHY: False,
}


def address_from_bytes(name: str, data: bytes) -> Workload | Service:
    """Read a serialized istio.workload.Address delivered under `name`; ConversionError names `name`."""
    message = workload_pb2.Address()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ConversionError(name, "is not an Address message") from error
    match message.WhichOneof("type"):
        case "workload":
            found: Workload | Service = workload(message.workload)
            key = message.workload.uid
        case "service":
            found = service(message.service)
            key = found.key
        case _:
            raise ConversionError(name, "is neither a workload nor a service")
    if key != name:
        # Removals come by resource name, so a resource under a foreign name could never be removed.
        raise ConversionError(name, f"contains {key!r}")
    return found


def workload(message: workload_pb2.Workload) -> Workload:
    """Convert one workload; raises ConversionError naming its uid."""
    name = message.uid or "(workload without uid)"
    try:
        if not message.uid:
            raise FieldError("has no uid")
        return _workload(message)
    except (FieldError, SpiffeError) as error:
        raise ConversionError(name, str(error)) from error


def service(message: workload_pb2.Service) -> Service:
    """Convert one service; raises ConversionError naming "namespace/hostname"."""
    name = f"{message.namespace}/{message.hostname}"
    try:
        if not message.hostname:
            raise FieldError("has no hostname")
        return _service(message)
    except FieldError as error:
        raise ConversionError(name, str(error)) from error


def _workload(message: workload_pb2.Workload) -> Workload:
    capacity = message.capacity.value if message.HasField("capacity") else 1
    where = message.locality
    return Workload(
        uid=message.uid,
        name=message.name,
        namespace=intern(message.namespace),
        identity=_identity(message.trust_domain, message.namespace, message.service_account),
        addresses=tuple(ip_of(raw) for raw in message.addresses),
        hostname=message.hostname,
        network=intern(message.network),
        tunnel_protocol=enum_value(_TUNNEL_PROTOCOLS, message.tunnel_protocol, "tunnel_protocol"),
        waypoint=_gateway(message, "waypoint"),
        network_gateway=_gateway(message, "network_gateway"),
        node=intern(message.node),
        canonical_name=intern(message.canonical_name),
        canonical_revision=intern(message.canonical_revision),
        workload_type=enum_value(_WORKLOAD_TYPES, message.workload_type, "workload_type"),
        workload_name=intern(message.workload_name),
        native_tunnel=message.native_tunnel,
        application_tunnel=_application_tunnel(message),
        services=_memberships(
            tuple(
                (key, tuple([(one.service_port, one.target_port) for one in ports.ports]))
                for key, ports in sorted(message.services.items())
            )
        ),
        authorization_policies=tuple(intern(key) for key in message.authorization_policies),
        healthy=enum_value(_HEALTHY, message.status, "status"),
        cluster_id=intern(message.cluster_id or DEFAULT_CLUSTER),
        locality=_locality(where.region, where.zone, where.subzone),
        network_mode=enum_value(_NETWORK_MODES, message.network_mode, "network_mode"),
        capacity=capacity,
    )


# Replicas have these in common, so most are not made but found, and one value serves all. Errors are not kept.
_shared = lru_cache(maxsize=16_384)


@_shared
def _identity(trust_domain: str, namespace: str, service_account: str) -> SpiffeId:
    domain = check_trust_domain(trust_domain or DEFAULT_TRUST_DOMAIN)
    account = check_segment(service_account or DEFAULT_SERVICE_ACCOUNT)
    # A gateway of another network may have no namespace; no certificate ever equals such an identity.
    place = check_segment(namespace) if namespace else ""
    return SpiffeId(intern(domain), intern(place), intern(account))


@_shared
def _memberships(services: tuple[tuple[str, tuple[tuple[int, int], ...]], ...]) -> tuple[Membership, ...]:
    return tuple(Membership(intern(key), _ports(ports)) for key, ports in services)


@_shared
def _locality(region: str, zone: str, subzone: str) -> Locality:
    return Locality(intern(region), intern(zone), intern(subzone))


def _application_tunnel(message: workload_pb2.Workload) -> ApplicationTunnel | None:
    if not message.HasField("application_tunnel"):
        return None
    tunnel = message.application_tunnel
    protocol = enum_value(_APPLICATION_TUNNELS, tunnel.protocol, "application_tunnel.protocol")
    return ApplicationTunnel(protocol, port(tunnel.port, "application_tunnel.port"))


def _service(message: workload_pb2.Service) -> Service:
    return Service(
        name=message.name,
        namespace=intern(message.namespace),
        hostname=intern(message.hostname),
        addresses=tuple(_virtual_address(virtual) for virtual in message.addresses),
        ports=_ports((one.service_port, one.target_port) for one in message.ports),
        subject_alt_names=tuple(_sans(message.subject_alt_names)),
        waypoint=_gateway(message, "waypoint"),
        weighted_waypoints=tuple(_weighted(message.weighted_waypoints)),
        load_balancing=_load_balancing(message),
        ip_families=enum_value(_IP_FAMILIES, message.ip_families, "ip_families"),
        canonical=message.canonical,
        ingress_use_waypoint=message.ingress_use_waypoint,
        # Istio's rule: a visibility of the future is read as the one everybody had before.
        visibility=_VISIBILITIES.get(message.visibility, Visibility.PUBLIC),
    )


def _sans(names: Iterable[str]) -> Iterable[SpiffeId]:
    """Names of another kind are left out: they could only have admitted more certificates."""
    for name in names:
        try:
            yield SpiffeId.parse(name)
        except SpiffeError:
            continue


def _weighted(messages: Iterable[workload_pb2.WeightedWaypoint]) -> Iterable[WeightedWaypoint]:
    for message in messages:
        gateway = _gateway(message, "destination")
        if gateway is None:
            raise FieldError("weighted_waypoints has an entry without destination")
        yield WeightedWaypoint(gateway, message.weight)


def _load_balancing(message: workload_pb2.Service) -> LoadBalancing:
    if not message.HasField("load_balancing"):
        return _NO_PREFERENCE
    balancing = message.load_balancing
    return LoadBalancing(
        routing_preference=tuple(
            enum_value(_SCOPES, scope, "load_balancing.routing_preference")
            for scope in balancing.routing_preference
        ),
        mode=enum_value(_MODES, balancing.mode, "load_balancing.mode"),
        health_policy=enum_value(_HEALTH_POLICIES, balancing.health_policy, "load_balancing.health_policy"),
    )


_NO_PREFERENCE: Final = LoadBalancing()


def _virtual_address(message: workload_pb2.NetworkAddress) -> VirtualAddress:
    full = 8 * len(message.address)
    length = message.length if message.HasField("length") else full
    return VirtualAddress(intern(message.network), block(message.address, length))


def _gateway(
    message: workload_pb2.Workload | workload_pb2.Service | workload_pb2.WeightedWaypoint, field: str
) -> GatewayAddress | None:
    if not message.HasField(field):
        return None
    gateway: workload_pb2.GatewayAddress = getattr(message, field)
    number = port(gateway.hbone_mtls_port, f"{field}.hbone_mtls_port") or HBONE_PORT
    match gateway.WhichOneof("destination"):
        case "hostname":
            host = gateway.hostname
            return GatewayAddress(NamespacedHostname(intern(host.namespace), intern(host.hostname)), number)
        case "address":
            where = gateway.address
            return GatewayAddress(NetworkAddress(intern(where.network), ip_of(where.address)), number)
        case _:
            raise FieldError(f"{field} has no destination")


def _ports(numbers: Iterable[tuple[int, int]]) -> tuple[Port, ...]:
    """Of (service port, target port)."""
    return tuple(
        Port(port(service_port, "service_port"), port(target_port, "target_port"))
        for service_port, target_port in numbers
    )
