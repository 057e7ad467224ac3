"""Direct connections as flows: one outbound and one inbound, as two agents would have seen them.

The kernel tells of a connection when both its sockets have closed; those that live are looked for. From that come
the same flows, counters and log lines as for a relayed connection, and the same decisions when facts change; only that
to cut means to end the client's socket.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

from ebpf import pairs
from ebpf.pairs import DirectConnection, DirectEvent, Endpoint, Field, What
from ebpf.sockets import State
from hbone.engine import REASONS, Closed, Established, reason_code
from hbone.reasons import Reason
from ztunnel.decide.model import Direction, Verdict
from ztunnel.direct.decided import Decided, address, allowing, decided
from ztunnel.direct.local import Local
from ztunnel.direct.passing import Passing, is_plain, without_fin
from ztunnel.flows.registry import Flow, Registry, Shared
from ztunnel.state.snapshot import Snapshot

__all__ = ["PATH", "LiveConnections"]

PATH = "direct"
"""How metrics and log call it."""

_ORDERLY = frozenset({State.FIN_WAIT2, State.LAST_ACK, State.CLOSING})
_COOKIE = int(Field.COOKIE)


@dataclass(slots=True, eq=False)
class _Live:
    connection: DirectConnection
    source: Local
    outbound: Flow
    inbound: Flow
    denied: list[tuple[Flow, Verdict]] = field(default_factory=list)
    cuts: dict[int, Reason] = field(default_factory=dict)


class LiveConnections:
    """Every direct connection that is seen alive, until both its ends have closed. Use from the trio thread only."""

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
        self._denied: list[_Live] = []
        self._handed_over: Mapping[int, Mapping[Endpoint, int]] = {}
        self._tokens = 0
        self._passing = Passing(flows, self._share)
        self._decided_by: Snapshot | None = None
        self.cuts = 0

    def __len__(self) -> int:
        return len(self._by_cookie)

    @property
    def flows(self) -> int:
        """How many of the registry's flows are direct."""
        return len(self._by_token)

    @property
    def known(self) -> Container[int]:
        """Cookies of the connections that are in the registry."""
        return self._by_cookie

    def pods_changed(self) -> None:
        """A slot stands for another pod now."""
        self._passing.forget()

    def handle(self, records: bytes) -> int:
        """Take over what the kernel told (`pairs.RECORD`); of how many connections."""
        if self._decided_by is not self._current():
            self._decided_by = self._current()
            self._passing.forget()
        known, passed, count = self._by_cookie, self._passing.passed, 0
        for record in pairs.RECORD.iter_unpack(records):
            count += 1
            if is_plain(record) and record[_COOKIE] not in known:
                passed(record)
            else:
                self._told(pairs.decode_event(record))
        return count

    def begun(self, connection: DirectConnection) -> None:
        """Register a connection. It was allowed when it began; if it is not any more, see `end_denied`."""
        source, target = self._local(connection.from_slot), self._local(connection.to_slot)
        if source is None or target is None or connection.cookie in self._by_cookie:
            return
        both = self._decided(connection, source, target)
        shared = self._shared(connection, source, target, both)
        started, client = (
            connection.began / 1e9,
            (str(connection.ends.client.ip), connection.ends.client.port),
        )
        outbound, inbound = (self._flows.admit(self._token(), client, started, each) for each in shared)
        live = _Live(connection, source, outbound, inbound)
        source.live += 1
        self._by_cookie[connection.cookie] = live
        for flow, verdict in ((outbound, both.outbound), (inbound, both.inbound)):
            self._by_token[flow.token] = live
            if not verdict.allowed:
                live.denied.append((flow, verdict))
        if live.denied:
            self._denied.append(live)

    def _share(self, connection: DirectConnection) -> tuple[Shared, Shared] | None:
        source, target = self._local(connection.from_slot), self._local(connection.to_slot)
        if source is None or target is None:
            return None
        return self._shared(connection, source, target, self._decided(connection, source, target))

    def _decided(self, connection: DirectConnection, source: Local, target: Local) -> Decided:
        return decided(connection, source, target, self._network, self._current())

    def _shared(
        self, connection: DirectConnection, source: Local, target: Local, both: Decided
    ) -> tuple[Shared, Shared]:
        """What the two flows have in common with those of other connections between the same ends."""
        outbound, inbound = (allowing(verdict, connection) for verdict in (both.outbound, both.inbound))
        asked, backend = address(connection.asked), address(connection.ends.server)
        return (
            self._flows.share(source.name, asked, both.asking, outbound, PATH),
            self._flows.share(target.name, backend, both.arriving, inbound, PATH),
        )

    def end_denied(self) -> None:
        """Cut what was registered since the last call and is not allowed any more, unless it has ended already.
        Call it when all records have been taken."""
        denied, self._denied = self._denied, []
        for live in denied:
            if live.connection.cookie not in self._by_cookie:
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
            if live is not None:
                sent, ends = self._handed_over.get(cookie, {}), live.connection.ends
                sent_up, sent_down = up + sent.get(ends.client, 0), down + sent.get(ends.server, 0)
                for flow in (live.outbound, live.inbound):
                    flow.count(max(sent_up, flow.from_client), max(sent_down, flow.to_client))

    def _told(self, event: DirectEvent) -> None:
        if event.what is What.FELL_BACK:
            self._fell_back(event)
        else:
            self.begun(event.connection)  # if it ended before anybody looked
            live = self._by_cookie.get(event.cookie)
            if live is not None:
                self._finish(live, event)

    def _fell_back(self, event: DirectEvent) -> None:
        """It is relayed now, and has been registered anew. One that was sent to a service's endpoint must not
        get around a waypoint that the service has meanwhile."""
        live = self._by_cookie.get(event.cookie)
        if live is None:
            return
        connection = event.connection
        if connection.asked != connection.ends.server and live.denied:
            live.source.end(connection)
        for flow in (live.outbound, live.inbound):
            self._close(flow, Reason.OK, 0, 0, established=False)
        self._drop(live)

    def _finish(self, live: _Live, event: DirectEvent) -> None:
        up, down = event.sent, event.answered
        if not event.served:
            down = without_fin(event.received, event.state)
        duration = (event.ended - live.connection.began) / 1e9
        for flow in (live.outbound, live.inbound):
            flow.started = self._now() - duration
            flow.established = event.established
            reason = _ending(live, flow, event, duration)
            self._close(flow, reason, up, down, established=event.established)
        self._drop(live)

    def _close(self, flow: Flow, reason: Reason, up: int, down: int, *, established: bool) -> None:
        if established:
            self._flows.established(Established(flow.token, None, None, None, ()))
        code = reason_code(reason.value)
        self._flows.closed(Closed(flow.token, code, 0, 0, up, down, established, self._now()))

    def _drop(self, live: _Live) -> None:
        del self._by_cookie[live.connection.cookie]
        del self._by_token[live.outbound.token], self._by_token[live.inbound.token]
        live.source.live -= 1
        live.source.release()

    def _token(self) -> int:
        """Below zero: the engine's are not."""
        self._tokens -= 1
        return self._tokens


def _ending(live: _Live, flow: Flow, event: DirectEvent, duration: float) -> Reason:
    if live.cuts:
        return live.cuts.get(flow.token, Reason.PEER_RESET)
    if not event.established:
        if duration >= 1.0:
            return Reason.CONNECT_TIMEOUT
        return Reason.PEER_REFUSED if flow is live.outbound else Reason.CONNECT_REFUSED
    return Reason.OK if event.state in _ORDERLY else Reason.RESET_BY_APP
