"""Workloads and services as decisions see them: own frozen values, checked once at conversion.

Field names are Istio's (istio.workload, see istiodlite/api/workload.proto).
"""

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from hbone.spiffe import SpiffeId

__all__ = [
    "HBONE_PORT",
    "ApplicationTunnel",
    "ApplicationTunnelProtocol",
    "GatewayAddress",
    "HealthPolicy",
    "IPAddress",
    "IPFamilies",
    "IPNetwork",
    "LoadBalancing",
    "LoadBalancingMode",
    "Locality",
    "Membership",
    "NamespacedHostname",
    "NetworkAddress",
    "NetworkMode",
    "Port",
    "Scope",
    "Service",
    "TunnelProtocol",
    "VirtualAddress",
    "Visibility",
    "WeightedWaypoint",
    "Workload",
    "WorkloadType",
]

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

HBONE_PORT: Final = 15008


class TunnelProtocol(enum.StrEnum):
    """How a workload is reached: in the clear, or through a tunnel."""

    NONE = "NONE"
    HBONE = "HBONE"


class WorkloadType(enum.StrEnum):
    """What a workload is part of; the lower-case word stands in the baggage."""

    DEPLOYMENT = "deployment"
    CRONJOB = "cronjob"
    POD = "pod"
    JOB = "job"


class NetworkMode(enum.StrEnum):
    """A HOST_NETWORK workload shares its node's address and is therefore never found by it."""

    STANDARD = "STANDARD"
    HOST_NETWORK = "HOST_NETWORK"


class ApplicationTunnelProtocol(enum.StrEnum):
    """What the application behind the tunnel's end expects before its own bytes."""

    NONE = "NONE"
    PROXY = "PROXY"


class IPFamilies(enum.StrEnum):
    """The address families a service may be reached over."""

    AUTOMATIC = "AUTOMATIC"
    IPV4_ONLY = "IPV4_ONLY"
    IPV6_ONLY = "IPV6_ONLY"
    DUAL = "DUAL"


class Visibility(enum.StrEnum):
    """Who may find a service: everybody, or clients of its own namespace."""

    PUBLIC = "PUBLIC"
    NAMESPACE = "NAMESPACE"


class Scope(enum.StrEnum):
    """What an endpoint can have in common with the client."""

    UNSPECIFIED = "UNSPECIFIED_SCOPE"
    REGION = "REGION"
    ZONE = "ZONE"
    SUBZONE = "SUBZONE"
    NODE = "NODE"
    CLUSTER = "CLUSTER"
    NETWORK = "NETWORK"


class LoadBalancingMode(enum.StrEnum):
    """How `routing_preference` is used."""

    UNSPECIFIED = "UNSPECIFIED_MODE"
    STRICT = "STRICT"
    FAILOVER = "FAILOVER"
    PASSTHROUGH = "PASSTHROUGH"


class HealthPolicy(enum.StrEnum):
    """Whether unhealthy endpoints are used too."""

    ONLY_HEALTHY = "ONLY_HEALTHY"
    ALLOW_ALL = "ALLOW_ALL"


@dataclass(frozen=True, slots=True)
class NetworkAddress:
    """One address on one network."""

    network: str
    ip: IPAddress

    def __str__(self) -> str:
        """`network/ip`: the name the control plane is asked by (on demand)."""
        return f"{self.network}/{self.ip}"


@dataclass(frozen=True, slots=True)
class VirtualAddress:
    """A service's address: a host, or a CIDR block, on one network."""

    network: str
    block: IPNetwork

    @property
    def is_host(self) -> bool:
        return self.block.prefixlen == self.block.max_prefixlen

    @property
    def ip(self) -> IPAddress:
        return self.block.network_address


@dataclass(frozen=True, slots=True)
class NamespacedHostname:
    """A service's key, or a workload's host name with its namespace."""

    namespace: str
    hostname: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.hostname}"


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """Where a waypoint or a network gateway is found, and its HBONE port."""

    destination: NetworkAddress | NamespacedHostname
    hbone_mtls_port: int = HBONE_PORT

    def __str__(self) -> str:
        return f"{self.destination}:{self.hbone_mtls_port}"


@dataclass(frozen=True, slots=True)
class Port:
    """A service port and where it goes; target 0: a named port, known at each endpoint only."""

    service_port: int
    target_port: int


@dataclass(frozen=True, slots=True)
class Membership:
    """A workload is an endpoint of `service` ("namespace/hostname"), with its own port mapping."""

    service: str
    ports: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class Locality:
    region: str = ""
    zone: str = ""
    subzone: str = ""


@dataclass(frozen=True, slots=True)
class ApplicationTunnel:
    """How the application is reached behind the tunnel's end; port 0: as asked for."""

    protocol: ApplicationTunnelProtocol
    port: int


@dataclass(frozen=True, slots=True)
class WeightedWaypoint:
    destination: GatewayAddress
    weight: int


@dataclass(frozen=True, slots=True)
class LoadBalancing:
    """How to choose among a service's endpoints."""

    routing_preference: tuple[Scope, ...] = ()
    mode: LoadBalancingMode = LoadBalancingMode.UNSPECIFIED
    health_policy: HealthPolicy = HealthPolicy.ONLY_HEALTHY


@dataclass(frozen=True, slots=True)
class Workload:
    """Something that has addresses and an identity: a pod, a WorkloadEntry, a gateway."""

    uid: str
    name: str
    namespace: str
    identity: SpiffeId
    addresses: tuple[IPAddress, ...] = ()
    hostname: str = ""
    network: str = ""
    tunnel_protocol: TunnelProtocol = TunnelProtocol.NONE
    waypoint: GatewayAddress | None = None
    network_gateway: GatewayAddress | None = None
    node: str = ""
    canonical_name: str = ""
    canonical_revision: str = ""
    workload_type: WorkloadType = WorkloadType.DEPLOYMENT
    workload_name: str = ""
    native_tunnel: bool = False
    application_tunnel: ApplicationTunnel | None = None
    services: tuple[Membership, ...] = ()
    authorization_policies: tuple[str, ...] = ()
    healthy: bool = True
    cluster_id: str = "Kubernetes"
    locality: Locality = Locality()
    network_mode: NetworkMode = NetworkMode.STANDARD
    capacity: int = 1

    @property
    def trust_domain(self) -> str:
        return self.identity.trust_domain

    @property
    def service_account(self) -> str:
        return self.identity.service_account

    def membership(self, service: str) -> Membership | None:
        """The membership in the service with key "namespace/hostname", if there is one."""
        for membership in self.services:
            if membership.service == service:
                return membership
        return None


@dataclass(frozen=True, slots=True)
class Service:
    """A name (and often a virtual address) that stands for a set of workloads."""

    name: str
    namespace: str
    hostname: str
    addresses: tuple[VirtualAddress, ...] = ()
    ports: tuple[Port, ...] = ()
    subject_alt_names: tuple[SpiffeId, ...] = ()
    waypoint: GatewayAddress | None = None
    weighted_waypoints: tuple[WeightedWaypoint, ...] = ()
    load_balancing: LoadBalancing = LoadBalancing()
    ip_families: IPFamilies = IPFamilies.AUTOMATIC
    canonical: bool = False
    ingress_use_waypoint: bool = False
    visibility: Visibility = Visibility.PUBLIC

    @property
    def key(self) -> str:
        """ "namespace/hostname": the resource name."""
        return f"{self.namespace}/{self.hostname}"

    def target_port(self, service_port: int) -> int | None:
        """Where `service_port` goes by the service's own list; 0: named; None: no such port."""
        for port in self.ports:
            if port.service_port == service_port:
                return port.target_port
        return None

    def visible_to(self, namespace: str) -> bool:
        """Whether a client of `namespace` may find this service."""
        return self.visibility is Visibility.PUBLIC or self.namespace == namespace
