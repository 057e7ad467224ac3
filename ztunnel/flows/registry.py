"""Every connection from its verdict to its end.

A flow is registered in the same step in which it is decided, so no change of state can fall between the two:
either the decision saw it, or the re-decision finds the flow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

from hbone.engine import REASONS, Address, Closed, Established
from hbone.reasons import Reason
from ztunnel.accesslog import AccessLog, AccessRecord
from ztunnel.addresses import ip_text, peer_text, socket_address, socket_text
from ztunnel.decide.model import (
    Deliver,
    Direction,
    InboundConnection,
    OutboundConnection,
    Passthrough,
    SocketAddress,
    Tunnel,
    Verdict,
)
from ztunnel.decide.trace import Outcome
from ztunnel.flows.facets import Facet, Facets
from ztunnel.metrics import Traffic
from ztunnel.state.policy import Action
from ztunnel.state.snapshot import Key

__all__ = ["Connection", "Flow", "Registry", "Shared"]

Connection: TypeAlias = OutboundConnection | InboundConnection

_NOTHING: Final[frozenset[Key]] = frozenset()


class Shared:
    """What the flows of one verdict have in common, made once for all of them. Never changed.

    `connection`: that of one of them; None when refused before anything was known but its addresses. `path`: ""
    when relayed, else how they go without the engine.
    """

    __slots__ = ("connection", "destination", "facet", "line", "path", "pod", "verdict")

    def __init__(
        self,
        pod: str,
        destination: SocketAddress,
        connection: Connection | None,
        verdict: Verdict,
        facet: Facet,
        path: str = "",
    ) -> None:
        self.pod, self.destination, self.connection, self.verdict = pod, destination, connection, verdict
        self.facet, self.path = facet, path
        self.line = ""
        """Template of the access log lines of those that end well; "" until the first has."""


class Flow:
    """One live connection. `started` in seconds of `time.monotonic()`; bytes as last told by the engine.

    `client` is the peer's address as the engine says it. `verdict` and `connection` begin as the shared ones and
    are replaced when it is decided again. `depends`: facts whose change makes that happen. `cut` is the verdict
    that ended it while it lived.
    """

    __slots__ = (
        "client", "connection", "cut", "depends", "established", "from_client", "shared", "started", "to_client",
        "token", "verdict",
    )  # fmt: skip

    def __init__(self, token: int, client: Address, started: float, shared: Shared) -> None:
        self.token, self.client, self.started, self.shared = token, client, started, shared
        self.connection: Connection | None = shared.connection
        self.verdict = shared.verdict
        self.depends = _NOTHING
        self.established = False
        self.from_client = self.to_client = 0
        self.cut: Verdict | None = None

    @property
    def direction(self) -> Direction:
        """Seen from the pod on this node."""
        return self.verdict.direction

    @property
    def pod(self) -> str:
        """`namespace/name` of the pod on this node."""
        return self.shared.pod

    @property
    def peer(self) -> SocketAddress:
        """Who connected."""
        return socket_address(self.client)

    @property
    def destination(self) -> SocketAddress:
        """What the connection was made to."""
        return self.shared.destination

    @property
    def facet(self) -> Facet:
        """What telemetry says of it."""
        return self.shared.facet

    @property
    def path(self) -> str:
        """As in `Shared`."""
        return self.shared.path

    def count(self, from_client: int, to_client: int) -> None:
        """Take over cumulative byte counts; only what is new is added to the metrics."""
        series = self.shared.facet.opened
        series.received += from_client - self.from_client
        series.sent += to_client - self.to_client
        self.from_client, self.to_client = from_client, to_client


class Registry:
    """All live flows by token, and by what they depend on. Use from the trio thread only."""

    def __init__(self, traffic: Traffic, access_log: AccessLog) -> None:
        self._traffic, self._access_log = traffic, access_log
        self._facets = Facets(traffic)
        self._flows: dict[int, Flow] = {}
        self._groups: dict[frozenset[Key], set[int]] = {}

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[Flow]:
        return iter(list(self._flows.values()))

    def get(self, token: int) -> Flow | None:
        """The live flow of this token."""
        return self._flows.get(token)

    def open(
        self,
        token: int,
        pod: str,
        peer: SocketAddress,
        destination: SocketAddress,
        connection: Connection | None,
        verdict: Verdict,
        started: float,
        path: str = "",
    ) -> Flow:
        """Register a decided connection (also a refused one: its end is logged and counted like any other)."""
        shared = self.share(pod, destination, connection, verdict, path)
        return self.admit(token, (ip_text(peer.ip), peer.port), started, shared)

    def share(
        self,
        pod: str,
        destination: SocketAddress,
        connection: Connection | None,
        verdict: Verdict,
        path: str = "",
    ) -> Shared:
        """What all flows of this verdict have in common."""
        facet = self._facets.of(verdict.ends, verdict.direction, path)
        return Shared(pod, destination, connection, verdict, facet, path)

    def admit(self, token: int, client: Address, started: float, shared: Shared) -> Flow:
        """Register one more connection of a verdict."""
        flow = self._flows[token] = Flow(token, client, started, shared)
        shared.facet.opened.opened += 1
        if shared.verdict.reason is Reason.OK:
            self._group(flow, shared.verdict.depends)
            self._tell_opened(flow)
        return flow

    def established(self, event: Established) -> None:
        """Both legs are up."""
        flow = self._flows.get(event.token)
        if flow is not None:
            flow.established = True

    def watch(self, flow: Flow, depends: frozenset[Key]) -> None:
        """From now on the flow rests on these facts."""
        if depends != flow.depends:
            self._ungroup(flow)
        self._group(flow, depends)

    def affected(self, changed: frozenset[Key]) -> list[Flow]:
        """Live flows that rest on any of the changed facts. Costs one set test for each distinct set of facts."""
        found: list[Flow] = []
        for depends, tokens in self._groups.items():
            if not depends.isdisjoint(changed):
                found.extend(self._flows[token] for token in tokens)
        return found

    def count(self, counters: Iterable[tuple[int, int, int]]) -> None:
        """Byte counts of live flows, from the engine."""
        for token, from_client, to_client in counters:
            flow = self._flows.get(token)
            if flow is not None:
                flow.count(from_client, to_client)

    def closed(self, event: Closed) -> Flow | None:
        """The end of a token: last bytes, metrics, one access log line."""
        flow = self._flows.pop(event.token, None)
        if flow is None:
            return None
        self._ungroup(flow)
        flow.count(event.bytes_from_client, event.bytes_to_client)
        flow.established = flow.established or event.established
        if not event.reason_code and flow.verdict.reason is Reason.OK:
            self._ended_well(flow, event.at)
        else:
            self._ended(flow, event)
        return flow

    def passed(
        self, shared: Shared, token: int, client: Address, began: float, ended: float, up: int, down: int
    ) -> None:
        """A connection of a verdict that has come, ended well and gone: as `admit` and `closed`, in one. `up`, `down`:
        bytes from and to the client."""
        series = shared.facet.opened
        series.opened += 1
        series.closed += 1
        series.received += up
        series.sent += down
        if not shared.line or self._access_log.verbose:
            flow = Flow(token, client, began, shared)
            self._tell_opened(flow)
            shared.line = self._line(flow)
        if shared.verdict.direction is not Direction.OUTBOUND:
            up, down = down, up
        self._access_log.finished(shared.line, peer_text(client), up, down, ended - began)

    def _tell_opened(self, flow: Flow) -> None:
        if self._access_log.verbose:
            self._access_log.opened(_record(flow, Reason.OK, "", 0.0))

    def _line(self, flow: Flow) -> str:
        return self._access_log.template(_record(flow, Reason.OK, "", 0.0))

    def _ended_well(self, flow: Flow, at: float) -> None:
        shared = flow.shared
        shared.facet.opened.closed += 1
        if not shared.line:
            shared.line = self._line(flow)
        mine, theirs = flow.from_client, flow.to_client
        if flow.verdict.direction is not Direction.OUTBOUND:
            mine, theirs = theirs, mine
        self._access_log.finished(shared.line, peer_text(flow.client), mine, theirs, at - flow.started)

    def _ended(self, flow: Flow, event: Closed) -> None:
        reason, detail = _ending(flow, event)
        final = flow.facet.series(reason)
        final.closed += 1
        if reason.response_flag != "-":
            final.failed += 1
        if reason is not Reason.OK:
            self._traffic.refused(reason, flow.direction)
        self._access_log.complete(_record(flow, reason, detail, event.at - flow.started))

    def _group(self, flow: Flow, depends: frozenset[Key]) -> None:
        flow.depends = depends
        tokens = self._groups.get(depends)
        if tokens is None:
            tokens = self._groups[depends] = set()
        tokens.add(flow.token)

    def _ungroup(self, flow: Flow) -> None:
        tokens = self._groups.get(flow.depends)
        if tokens is not None:
            tokens.discard(flow.token)
            if not tokens:
                del self._groups[flow.depends]


def _ending(flow: Flow, event: Closed) -> tuple[Reason, str]:
    """Why a flow ended: the verdict's word if it refused or cut, else what the engine saw."""
    if not flow.verdict.allowed:
        return flow.verdict.reason, flow.verdict.detail
    reason = Reason(REASONS[event.reason_code])
    if flow.cut is not None and reason is not Reason.OK:
        return reason, flow.cut.detail or flow.cut.reason.text
    if isinstance(flow.verdict.action, Tunnel) and not flow.established:
        reason = reason.of_tunnel_dial()
    return reason, _particulars(event)


def _particulars(event: Closed) -> str:
    if event.status not in (0, 200):
        return f"http status: {event.status}"
    return f"errno {event.errno}" if event.errno else ""


def deciding_policy(verdict: Verdict) -> str:
    """The policy that a refusal rests on; "" when no policy was involved.

    When no ALLOW policy matched they all count, joined with commas.
    """
    if verdict.allowed or verdict.authorization is None:
        return ""
    if verdict.reason is Reason.POLICY_NO_MATCH:
        steps = [step for step in verdict.trace if step.action is Action.ALLOW]
        return ",".join(step.policy for step in steps if step.outcome is Outcome.NOT_MATCHED)
    return verdict.authorization.policy


def _record(flow: Flow, reason: Reason, detail: str, duration: float) -> AccessRecord:
    outbound = flow.direction is Direction.OUTBOUND
    address, hbone = _shown_destination(flow)
    # A tunnel that never came up has proved nothing about its other end; one that brought a refusal has.
    # For one that never left the node the kernel knows whose sockets they are.
    proved = bool(flow.path) or (
        flow.verdict.ends.mutual_tls
        and (reason in (Reason.OK, Reason.PEER_REFUSED) or flow.established or not outbound)
    )
    source, destination = flow.facet.log_ends(proved=proved)
    mine, theirs = flow.from_client, flow.to_client
    return AccessRecord(
        flow.direction.value,
        peer_text(flow.client),
        address,
        source,
        hbone,
        destination,
        mine if outbound else theirs,
        theirs if outbound else mine,
        duration,
        reason,
        detail,
        "" if reason is Reason.OK else deciding_policy(flow.cut or flow.verdict),
        flow.path,
    )


def _shown_destination(flow: Flow) -> tuple[str, str]:
    """dst.addr and dst.hbone_addr: where the bytes went, and what the CONNECT asked for."""
    action = flow.verdict.action
    if flow.path and isinstance(flow.connection, InboundConnection):
        return socket_text(flow.destination), ""
    if isinstance(action, Tunnel):
        return socket_text(action.destination), action.authority
    if isinstance(action, Passthrough):
        return socket_text(action.destination), ""
    if isinstance(flow.connection, InboundConnection) and flow.connection.authority is not None:
        return socket_text(flow.destination), flow.connection.authority
    if isinstance(action, Deliver):
        return socket_text(action.destination), ""
    return socket_text(flow.destination), ""
