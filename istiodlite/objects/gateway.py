"""Gateway API kinds that decide where waypoints are."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from istiodlite.objects.meta import Meta


@dataclass(frozen=True, slots=True)
class Requirement:
    """One of matchExpressions: `operator` is In, NotIn, Exists or DoesNotExist; values count for the first two."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NamespaceSelector:
    """allowedRoutes.namespaces: `source` is Same, All, Selector or None; the rest counts for Selector only,
    and all of it has to hold."""

    source: str = "Same"
    labels: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class Listener:
    name: str
    port: int
    protocol: str
    allowed: NamespaceSelector = field(default_factory=NamespaceSelector)


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """One of status.addresses: `type` is Hostname or IPAddress."""

    type: str
    value: str


@dataclass(frozen=True, slots=True)
class Gateway:
    meta: Meta
    class_name: str
    listeners: tuple[Listener, ...] = ()
    addresses: tuple[GatewayAddress, ...] = ()
    kind: str = field(default="Gateway", init=False)


@dataclass(frozen=True, slots=True)
class GatewayClass:
    meta: Meta
    controller: str
    kind: str = field(default="GatewayClass", init=False)
