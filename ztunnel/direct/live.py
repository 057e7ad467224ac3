"""Direct connections as flows: one outbound and one inbound, as two agents would have seen them.

The kernel tells when a connection begins and when each of its two sockets closes. From that come the same
flows, counters and log lines as for a relayed connection, and the same decisions when facts change; only that
to cut means to end the client's socket.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from ebpf import direct as kernel
from ebpf.pairs import DirectConnection, DirectEvent, Endpoint, What
from ebpf.sockets import State
from hbone.connect import SocketAddress
from hbone.engine import REASONS, Closed, Established, reason_code
from hbone.reasons import Reason
from ztunnel.decide.inbound import decide_inbound
from ztunnel.decide.model import (
    Deliver,
    Direction,
    InboundConnection,
    OutboundConnection,
    Passthrough,
    Refuse,
    Route,
    TrafficEnds,
    Verdict,
    Via,
)
from ztunnel.decide.outbound import decide_outbound, still_routed
from ztunnel.flows.registry import Flow, Registry
from ztunnel.logs import fields
from ztunnel.state.model import HBONE_PORT, Workload
from ztunnel.state.snapshot import Snapshot

__all__ = ["PATH", "LiveConnections", "Local"]

_log = logging.getLogger("ztunnel.direct")

PATH = "direct"
"""How metrics and log call it."""

# A server that does not close after its client has: its bytes are taken from the client's side then.
_SERVER_WAIT = 60.0
_EARLY = 1000
_ORDERLY = frozenset({State.FIN_WAIT2, State.LAST_ACK, State.CLOSING})
_FIN_CAME = frozenset({State.CLOSE_WAIT, State.LAST_ACK, State.CLOSING})


@dataclass(slots=True, eq=False)
class Local:
    """An enrolled pod and its namespace, kept open while connections of it live."""

    name: str
    slot: int
    netns_fd: int
    workload: Workload
    live: int = 0
    gone: bool = False

    def end(self, connection: DirectConnection) -> None:
        """End a connection of this pod's."""
        try:
            kernel.destroy(self.netns_fd, connection)
        except OSError as error:
            _log.error("direct connection not ended", extra=fields(pod=self.name, error=str(error)))

    def release(self) -> None:
        """Close the namespace if nobody needs it any more."""
        if self.gone and not self.live and self.netns_fd >= 0:
            os.close(self.netns_fd)
            self.netns_fd = -1


@dataclass(slots=True, eq=False)
class _Live:
    connection: DirectConnection
    source: Local
    outbound: Flow
    inbound: Flow
    client: DirectEvent | None = None
    server: DirectEvent | None = None
    ended: float = 0.0
    denied: list[tuple[Flow, Verdict]] = field(default_factory=list)
    cuts: dict[int, Reason] = field(default_factory=dict)


class LiveConnections:
    """Every direct connection from its SYN to the close of both ends. Use from the trio thread only."""

    def __init__(
        self,
        flows: Registry,
        *,
        network: str,
        current: Callable[[], Snapshot],
        local: Callable[[int], Local | None],
        monotonic: Callable[[], float],
    ) -> None:
        """`local` finds a pod by its slot."""
        self._flows, self._network, self._current = flows, network, current
        self._local, self._now = local, monotonic
        self._by_cookie: dict[int, _Live] = {}
        self._by_token: dict[int, _Live] = {}
        self._early: dict[int, DirectEvent] = {}
        self._denied: list[_Live] = []
        self._handed_over: Mapping[int, Mapping[Endpoint, int]] = {}
        self._tokens = 0
        self.cuts = 0

    def __len__(self) -> int:
        return len(self._by_cookie)

    @property
    def flows(self) -> int:
        """How many of the registry's flows are direct."""
        return len(self._by_token)

    def known(self, cookie: int) -> bool:
        """Whether a connection is in the registry."""
        return cookie in self._by_cookie

    def handle(self, events: Iterable[DirectEvent]) -> None:
        """Take over what the kernel told."""
        for event in events:
            match event.what:
                case What.BEGUN:
                    self.begun(event.connection)
                case What.FELL_BACK:
                    self._fell_back(event)
                case What.CLIENT_CLOSED:
                    self._client_closed(event)
                case What.SERVER_CLOSED:
                    self._server_closed(event)

    def begun(self, connection: DirectConnection) -> None:
        """Register a connection. It was allowed when it began; if it is not any more, see `end_denied`."""
        source, target = self._local(connection.from_slot), self._local(connection.to_slot)
        if source is None or target is None or connection.cookie in self._by_cookie:
            return
        snapshot = self._current()
        asking, arriving, *verdicts = _decided(connection, source, target, self._network, snapshot)
        outbound, inbound = (_allowing(verdict, connection) for verdict in verdicts)
        started = connection.began / 1e9
        client, asked = asking.peer, _address(connection.asked)
        backend = _address(connection.ends.server)
        flows = (
            self._flows.open(self._token(), source.name, client, asked, asking, outbound, started, PATH),
            self._flows.open(self._token(), target.name, client, backend, arriving, inbound, started, PATH),
        )
        live = _Live(connection, source, *flows)
        live.server = self._early.pop(connection.cookie, None)
        source.live += 1
        self._by_cookie[connection.cookie] = live
        for flow in flows:
            self._by_token[flow.token] = live
        live.denied = [(f, v) for f, v in zip(flows, verdicts, strict=True) if not v.allowed]
        if live.denied:
            self._denied.append(live)

    def end_denied(self) -> None:
        """Cut what was registered since the last call and is not allowed any more, unless it has ended already.
        Call it when all events have been taken."""
        denied, self._denied = self._denied, []
        for live in denied:
            if live.connection.cookie not in self._by_cookie or live.client is not None:
                continue
            for flow, verdict in live.denied:
                inbound = verdict.direction is Direction.INBOUND
                flow.cut = verdict
                self.cut(flow.token, reason_code(Reason.POLICY_CHANGED if inbound else verdict.reason))
                self.cuts += 1

    def cut(self, token: int, reason: int) -> None:
        """End the connection that a flow belongs to; the reason is that of `Engine.cut`."""
        live = self._by_token.get(token)
        if live is not None:
            live.cuts[token] = Reason(REASONS[reason])
            live.source.end(live.connection)

    def turbo(self, handed_over: Mapping[int, Mapping[Endpoint, int]]) -> None:
        """Bytes that did not go by TCP, for the next `count`: by cookie and end."""
        self._handed_over = handed_over

    def count(self, counts: dict[int, tuple[int, int]]) -> None:
        """Bytes of live connections by cookie: sent and received by the client by TCP."""
        for cookie, (up, down) in counts.items():
            live = self._by_cookie.get(cookie)
            if live is not None and live.client is None:
                sent, ends = self._handed_over.get(cookie, {}), live.connection.ends
                sent_up, sent_down = up + sent.get(ends.client, 0), down + sent.get(ends.server, 0)
                for flow in (live.outbound, live.inbound):
                    flow.count(max(sent_up, flow.from_client), max(sent_down, flow.to_client))

    def expire(self) -> None:
        """End the flows of connections whose server does not close."""
        deadline = self._now() - _SERVER_WAIT
        for live in [live for live in self._by_cookie.values() if live.client and live.ended < deadline]:
            self._finish(live)

    def _fell_back(self, event: DirectEvent) -> None:
        """It is relayed now, and has been registered anew. One that was sent to a service's endpoint must not
        get around a waypoint that the service has meanwhile."""
        live = self._by_cookie.get(event.cookie)
        if live is None:
            return
        connection = event.connection
        if connection.asked != connection.ends.server and live.denied:
            live.source.end(connection)
        self._close(live, live.outbound, Reason.OK, 0, 0)
        self._close(live, live.inbound, Reason.OK, 0, 0)
        self._drop(live)

    def _client_closed(self, event: DirectEvent) -> None:
        live = self._by_cookie.get(event.cookie)
        if live is None:
            # It began and ended while no agent was there.
            self.begun(replace(event.connection, began=event.at))
            live = self._by_cookie.get(event.cookie)
        if live is not None:
            live.client, live.ended = event, self._now()
            if live.server is not None or not event.connection.accepted:
                self._finish(live)

    def _server_closed(self, event: DirectEvent) -> None:
        live = self._by_cookie.get(event.cookie)
        if live is None:
            if len(self._early) >= _EARLY:
                self._early.clear()
            self._early[event.cookie] = event
            return
        live.server = event
        if live.client is not None:
            self._finish(live)

    def _finish(self, live: _Live) -> None:
        client = live.client
        if client is None:
            return
        fin = client.state in _FIN_CAME
        up, down = client.sent, live.server.sent if live.server else max(0, client.received - fin)
        last = max(client.at, live.server.at if live.server else 0)
        duration = (last - live.connection.began) / 1e9
        for flow in (live.outbound, live.inbound):
            flow.started = self._now() - duration
            flow.established = client.established
            self._close(live, flow, _ending(live, flow, client, duration), up, down)
        self._drop(live)

    def _close(self, live: _Live, flow: Flow, reason: Reason, up: int, down: int) -> None:
        established = live.client is not None and live.client.established
        if established:
            self._flows.established(Established(flow.token, None, None, None, ()))
        self._flows.closed(
            Closed(flow.token, reason_code(reason.value), 0, 0, up, down, established, self._now())
        )

    def _drop(self, live: _Live) -> None:
        del self._by_cookie[live.connection.cookie]
        del self._by_token[live.outbound.token], self._by_token[live.inbound.token]
        live.source.live -= 1
        live.source.release()

    def _token(self) -> int:
        """Below zero: the engine's are not."""
        self._tokens -= 1
        return self._tokens


def _decided(
    connection: DirectConnection, source: Local, target: Local, network: str, snapshot: Snapshot
) -> tuple[OutboundConnection, InboundConnection, Verdict, Verdict]:
    """The connection as each side sees it, and today's verdicts on it. That another endpoint would be chosen
    today does not matter: it is as with connections that are relayed."""
    client, asked = _address(connection.ends.client), _address(connection.asked)
    backend = _address(connection.ends.server)
    asking = OutboundConnection(source.workload, network, client, asked)
    routed = decide_outbound(asking, snapshot, 0.0)
    service, identity = routed.ends.service, source.workload.identity
    ends = TrafficEnds(
        source=source.workload, source_identity=identity, destination=target.workload, service=service
    )
    outbound = Verdict(
        Direction.OUTBOUND, Reason.OK, Passthrough(backend), Route.DIRECT, ends, depends=routed.depends
    )
    reason = still_routed(outbound, asking, snapshot)
    if reason is not Reason.OK:
        outbound = replace(outbound, reason=reason, action=Refuse(reason.http_status))
    arriving = InboundConnection(
        local=target.workload,
        via=Via.HBONE,
        peer=client,
        destination=SocketAddress(backend.ip, HBONE_PORT),
        identity=identity,
        authority=str(backend),
        forwarded_host=service.hostname if service is not None else None,
    )
    inbound = decide_inbound(arriving, snapshot)
    if inbound.reason is Reason.POLICY_PENDING:
        # Begun while it was allowed: the redecider gives the policy a moment to come.
        inbound = replace(inbound, reason=Reason.OK)
    # The kernel vouches for both ends, not TLS.
    return asking, arriving, outbound, replace(inbound, ends=replace(inbound.ends, mutual_tls=False))


def _allowing(verdict: Verdict, connection: DirectConnection) -> Verdict:
    """The verdict with which the connection began."""
    if verdict.allowed:
        return verdict
    backend = _address(connection.ends.server)
    action = Passthrough(backend) if verdict.direction is Direction.OUTBOUND else Deliver(backend, None)
    return replace(verdict, reason=Reason.OK, action=action, detail="")


def _ending(live: _Live, flow: Flow, client: DirectEvent, duration: float) -> Reason:
    if live.cuts:
        return live.cuts.get(flow.token, Reason.PEER_RESET)
    if not client.established:
        if duration >= 1.0:
            return Reason.CONNECT_TIMEOUT
        return Reason.PEER_REFUSED if flow is live.outbound else Reason.CONNECT_REFUSED
    return Reason.OK if client.state in _ORDERLY else Reason.RESET_BY_APP


def _address(endpoint: Endpoint) -> SocketAddress:
    return SocketAddress(endpoint.ip, endpoint.port)
