"""networking.istio.io kinds that add workloads and services."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from istiodlite.objects.meta import Meta


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A WorkloadEntry spec. `address` is an IP or a host name; `ports` maps service port names to numbers."""

    address: str
    ports: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    network: str = ""
    locality: str = ""
    weight: int = 0
    service_account: str = ""


@dataclass(frozen=True, slots=True)
class WorkloadEntry:
    """`healthy` is False only where a health check is configured and its condition is not met."""

    meta: Meta
    endpoint: Endpoint
    healthy: bool = True
    kind: str = field(default="WorkloadEntry", init=False)


@dataclass(frozen=True, slots=True)
class WorkloadGroup:
    """What the WorkloadEntries of machines that register themselves are made of: the spec they begin with, and labels
    and annotations besides."""

    meta: Meta
    template: Endpoint
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    kind: str = field(default="WorkloadGroup", init=False)


@dataclass(frozen=True, slots=True)
class EntryPort:
    """`target` 0: not given."""

    number: int
    name: str
    protocol: str = "TCP"
    target: int = 0


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """`allocated` are status.addresses as (value, host), the addresses a controller gave to hosts."""

    meta: Meta
    hosts: tuple[str, ...]
    addresses: tuple[str, ...] = ()
    ports: tuple[EntryPort, ...] = ()
    location: str = "MESH_EXTERNAL"
    resolution: str = "NONE"
    endpoints: tuple[Endpoint, ...] = ()
    selector: Mapping[str, str] | None = None
    sans: tuple[str, ...] = ()
    allocated: tuple[tuple[str, str], ...] = ()
    kind: str = field(default="ServiceEntry", init=False)
