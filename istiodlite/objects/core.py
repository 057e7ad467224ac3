"""Kinds of the core and discovery groups."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from istiodlite.objects.meta import Meta


@dataclass(frozen=True, slots=True)
class Namespace:
    meta: Meta
    kind: str = field(default="Namespace", init=False)


@dataclass(frozen=True, slots=True)
class Node:
    """Only its labels matter (locality)."""

    meta: Meta
    kind: str = field(default="Node", init=False)


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    meta: Meta
    kind: str = field(default="ServiceAccount", init=False)


@dataclass(frozen=True, slots=True)
class ContainerPort:
    number: int
    name: str = ""
    protocol: str = "TCP"


@dataclass(frozen=True, slots=True)
class Container:
    name: str
    ports: tuple[ContainerPort, ...] = ()


@dataclass(frozen=True, slots=True)
class Pod:
    """`containers` includes restartable init containers (native sidecars): their ports are reachable.

    `addresses` are canonical texts from status.podIPs (or podIP); `ready` is the Ready condition.
    """

    meta: Meta
    node: str = ""
    service_account: str = "default"
    host_network: bool = False
    phase: str = "Pending"
    ready: bool = False
    addresses: tuple[str, ...] = ()
    containers: tuple[Container, ...] = ()
    kind: str = field(default="Pod", init=False)


@dataclass(frozen=True, slots=True)
class ServicePort:
    """`target` is a container port's number or name; None means the same number as `port`."""

    port: int
    name: str = ""
    target: int | str | None = None
    protocol: str = "TCP"
    app_protocol: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """`cluster_ips` is empty for headless services and before allocation."""

    meta: Meta
    type: str = "ClusterIP"
    cluster_ips: tuple[str, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    selector: Mapping[str, str] = field(default_factory=dict)
    ip_families: tuple[str, ...] = ()
    publish_not_ready: bool = False
    internal_traffic_policy: str = "Cluster"
    traffic_distribution: str = ""
    kind: str = field(default="Service", init=False)


@dataclass(frozen=True, slots=True)
class TargetRef:
    kind: str
    namespace: str
    name: str
    uid: str = ""


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """`ready` is already resolved: absent in the object means ready."""

    addresses: tuple[str, ...]
    ready: bool = True
    target: TargetRef | None = None


@dataclass(frozen=True, slots=True)
class SlicePort:
    port: int
    name: str = ""
    protocol: str = "TCP"


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """`service` is the label kubernetes.io/service-name, empty if absent."""

    meta: Meta
    service: str
    address_type: str
    endpoints: tuple[SliceEndpoint, ...] = ()
    ports: tuple[SlicePort, ...] = ()
    kind: str = field(default="EndpointSlice", init=False)
