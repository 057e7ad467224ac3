"""Gateway API kinds that decide where waypoints are."""

from dataclasses import dataclass, field

from istiodlite.objects.meta import Meta
from istiodlite.objects.selector import LabelSelector


@dataclass(frozen=True, slots=True)
class NamespaceSelector:
    """allowedRoutes.namespaces: `source` is Same, All, Selector or None; `selector` counts for Selector only."""

    source: str = "Same"
    selector: LabelSelector = field(default_factory=LabelSelector)


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
