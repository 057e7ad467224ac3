"""What a decision is made of, and what it says.

A `Verdict` is the one result of deciding: what to do (`action`), why (`reason`, `authorization`), what
to call the ends (`labels`), which facts it rests on (`depends`) and what was not known (`needs`,
`resolve`).
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from hbone.connect import Baggage, SocketAddress
from hbone.reasons import Reason
from hbone.spiffe import SpiffeId
from ztunnel.decide.authz import Authorization
from ztunnel.decide.trace import PolicyStep
from ztunnel.state.model import IPAddress, Service, Workload
from ztunnel.state.snapshot import Key

__all__ = [
    "Deliver",
    "Direction",
    "InboundConnection",
    "InboundVerdict",
    "OutboundConnection",
    "OutboundVerdict",
    "Passthrough",
    "Refuse",
    "Route",
    "SocketAddress",
    "TrafficEnds",
    "Tunnel",
    "Verdict",
    "Via",
]


class Direction(enum.StrEnum):
    OUTBOUND = "outbound"
    INBOUND = "inbound"


class Via(enum.StrEnum):
    """How an inbound connection came: through the tunnel, or captured in the clear."""

    HBONE = "hbone"
    PLAINTEXT = "plaintext"


class Route(enum.StrEnum):
    """Which way a connection goes, in one word."""

    PASSTHROUGH = "passthrough"
    PLAINTEXT = "plaintext"
    DIRECT = "direct"
    SERVICE_WAYPOINT = "service-waypoint"
    WORKLOAD_WAYPOINT = "workload-waypoint"
    LOCAL = "local"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class OutboundConnection:
    """A connection captured on its way out of a pod of this node.

    `network` is the node's own network id. `resolved` holds addresses looked up for host names that an
    earlier verdict put in `resolve`.
    """

    source: Workload
    network: str
    peer: SocketAddress
    destination: SocketAddress
    resolved: Mapping[str, tuple[IPAddress, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InboundConnection:
    """A connection for a pod of this node; `local.network` is the node's own network.

    `destination` is what the TCP connection was made to: for HBONE the pod's address and port 15008.
    `identity` is the verified one of the tunnel's other end; None in the clear.
    """

    local: Workload
    via: Via
    peer: SocketAddress
    destination: SocketAddress
    identity: SpiffeId | None = None
    authority: str | None = None
    forwarded_host: str | None = None
    from_network: str | None = None
    baggage: Baggage | None = None


@dataclass(frozen=True, slots=True)
class Passthrough:
    """Make an ordinary TCP connection to `destination`."""

    destination: SocketAddress


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Go through HBONE: to `destination`, whose certificate must show one of `sans`.

    `hop` is the workload the tunnel ends at: the destination itself or a waypoint.
    """

    destination: SocketAddress
    sans: tuple[str, ...]
    authority: str
    hop: Workload


@dataclass(frozen=True, slots=True)
class Deliver:
    """Connect to the application. `source_ip`: let it see this client address; None: the agent's own."""

    destination: SocketAddress
    source_ip: IPAddress | None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Make no connection. `status` answers a CONNECT request; captured plaintext is reset."""

    status: int


@dataclass(frozen=True, slots=True)
class TrafficEnds:
    """The two ends as telemetry names them. See `ztunnel.decide.labels`.

    Outbound, `destination` is the next hop and `service` the original service. A baggage is used only
    where the workload is not known. `source_identity` is what TLS proved (outbound: would prove).
    """

    source: Workload | None = None
    source_baggage: Baggage | None = None
    source_identity: SpiffeId | None = None
    destination: Workload | None = None
    destination_baggage: Baggage | None = None
    service: Service | None = None
    mutual_tls: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision about one connection. `detail` adds the particulars to `reason.text`.

    depends: facts whose change can take the permission away; intersect with `Changes.keys`.
    needs: resource names the control plane did not give yet (ask on demand, then decide again).
    resolve: host names to be looked up (then decide again with `resolved`).
    """

    direction: Direction
    reason: Reason
    action: Passthrough | Tunnel | Deliver | Refuse
    route: Route
    ends: TrafficEnds
    detail: str = ""
    authorization: Authorization | None = None
    depends: frozenset[Key] = frozenset()
    needs: tuple[str, ...] = ()
    resolve: tuple[str, ...] = ()

    @property
    def allowed(self) -> bool:
        return self.reason is Reason.OK

    @property
    def trace(self) -> tuple[PolicyStep, ...]:
        """Every policy considered, in order, up to the one that decided."""
        return self.authorization.trace() if self.authorization is not None else ()


OutboundVerdict = Verdict
InboundVerdict = Verdict
