"""Connections on their way out of this node's pods: look the pod up, decide, tell the engine.

Nothing on the usual path waits. What has to wait (a pod that xDS does not describe yet, a certificate, a name)
goes on in a task of its own and ends with a verdict like everything else.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from hbone.connect import SocketAddress, format_traceparent, parse_authority
from hbone.engine import CLIENT, RANDOM, Accepted, Address, Headers
from hbone.engine import Kept as Keeping
from hbone.reasons import Reason
from hbone.spiffe import SpiffeId
from ztunnel.addresses import ip_text, peer_text, socket_address
from ztunnel.admit import Verdicts
from ztunnel.carry import Arrival, Carrier, refusal
from ztunnel.config import Config
from ztunnel.decide.balance import NotedDraw
from ztunnel.decide.cache import Kept, without_choice
from ztunnel.decide.labels import baggage_of
from ztunnel.decide.model import Direction, OutboundConnection, Passthrough, Route, Tunnel, Verdict
from ztunnel.decide.outbound import decide_outbound
from ztunnel.enrol.pods import Pod
from ztunnel.flows.registry import Shared
from ztunnel.identity.manager import IdentityUnavailable
from ztunnel.state.model import IPAddress, Workload
from ztunnel.store import Store

__all__ = ["Outbound"]


class _Identities(Protocol):
    def ready(self, identity: SpiffeId) -> bool: ...
    def number(self, identity: SpiffeId) -> int: ...
    async def fetch(self, identity: SpiffeId, timeout: float) -> int: ...


class _Resolver(Protocol):
    async def __call__(self, name: str) -> tuple[IPAddress, ...]: ...


Ask = Callable[[str, float], Awaitable[bool]]


class Outbound:
    """Verdicts for captured outbound connections."""

    def __init__(
        self,
        *,
        carrier: Carrier,
        verdicts: Verdicts,
        store: Store,
        identities: _Identities,
        config: Config,
        ask: Ask | None = None,
        resolve: _Resolver | None = None,
        draw: Callable[[], float] = random.random,
        random_bytes: Callable[[int], bytes] = random.randbytes,
        dial_mark: int = 0,
    ) -> None:
        """`ask` is set when state comes on demand; `resolve` looks up host names of workloads; `dial_mark` goes on
        every socket (`ebpf.capture.Capture.dial_mark`)."""
        self._carrier, self._store, self._identities, self._config = carrier, store, identities, config
        self._verdicts = verdicts
        self._ways: Kept[_Way] = Kept()
        self._ask, self._resolve, self._draw, self._random_bytes = ask, resolve, draw, random_bytes
        self._dial_mark = dial_mark

    def accepted(self, event: Accepted, pod: Pod) -> None:
        """A captured connection waits for its verdict."""
        draws = self._draw(), self._draw()
        way = self._ways.get(self._store.snapshot, (pod.tag, event.local), draws)
        if (
            way is not None
            and way.pod is pod
            and way.enrolled is pod.enrolled
            and (way.identity is None or self._identities.ready(way.identity))
        ):
            self._go(event.token, event.peer, event.at, way)
            if way.lasting:
                self._verdicts.offer(way.shared, functools.partial(self._keep, event, way))
            return
        arrival = Arrival(event.token, pod, event.peer, socket_address(event.local), event.at)
        source = self._source(pod)
        if source is None:
            self._carrier.later(arrival, Direction.OUTBOUND, functools.partial(self._await_source, arrival))
        else:
            self._decide(arrival, source)

    def _source(self, pod: Pod) -> Workload | None:
        return self._store.snapshot.local_workload(pod.namespace, pod.service_account, pod.name)

    async def _await_source(self, arrival: Arrival) -> None:
        pod, wait = arrival.pod, self._config.workload_wait
        await self._store.wait_until(lambda _: self._source(pod) is not None, wait)
        source = self._source(pod)
        if source is None:
            detail = f"{pod.namespace}/{pod.name} on node {self._config.node_name}, waited {wait:g} s"
            self._carrier.refuse(arrival, None, refusal(Direction.OUTBOUND, Reason.WORKLOAD_PENDING, detail))
            return
        self._decide(arrival, source)

    def _decide(
        self,
        arrival: Arrival,
        source: Workload,
        resolved: Mapping[str, tuple[IPAddress, ...]] | None = None,
        *,
        asked: bool = False,
    ) -> None:
        connection = OutboundConnection(
            source, self._config.network, arrival.peer, arrival.destination, resolved or {}
        )
        snapshot = self._store.snapshot
        waypoint, endpoint = NotedDraw(self._draw()), NotedDraw(self._draw())
        verdict = decide_outbound(connection, snapshot, endpoint, waypoint)
        missing = (verdict.needs and self._ask is not None and not asked) or (
            verdict.resolve and self._resolve is not None and resolved is None
        )
        if missing:
            work = functools.partial(self._await_facts, arrival, source, verdict)
            self._carrier.later(arrival, Direction.OUTBOUND, work)
            return
        way = self._carry_out(arrival, connection, verdict)
        # What was resolved, or asked for, is not in the key.
        if way is not None and not resolved and not (verdict.needs and self._ask is not None):
            key = arrival.pod.tag, (ip_text(arrival.destination.ip), arrival.destination.port)
            way.lasting = without_choice((waypoint, endpoint))
            self._ways.put(snapshot, key, way, (waypoint, endpoint))

    async def _await_facts(self, arrival: Arrival, source: Workload, verdict: Verdict) -> None:
        """Ask the control plane for what is not known here, and DNS for names; then decide again."""
        for name in verdict.needs if self._ask is not None else ():
            assert self._ask is not None
            await self._ask(name, self._config.workload_wait)
        resolved: dict[str, tuple[IPAddress, ...]] = {}
        for name in verdict.resolve if self._resolve is not None else ():
            assert self._resolve is not None
            resolved[name] = await self._resolve(name)
        self._decide(arrival, self._source(arrival.pod) or source, resolved, asked=True)

    def _carry_out(self, arrival: Arrival, connection: OutboundConnection, verdict: Verdict) -> _Way | None:
        """Do what the verdict says, or begin to wait; the way, if the connection goes one."""
        if verdict.route is Route.DIRECT and isinstance(verdict.action, Tunnel):
            verdict = _to_itself(arrival.pod, verdict, verdict.action)
        match verdict.action:
            case Tunnel() if not self._identities.ready(connection.source.identity):
                work = functools.partial(self._await_certificate, arrival, connection, verdict)
                self._carrier.later(arrival, Direction.OUTBOUND, work)
                return None
            case Passthrough() | Tunnel() as action:
                way = _Way(arrival.pod, self._carrier.share(arrival, connection, verdict), connection, action)
                self._go(arrival.token, arrival.client, arrival.started, way)
                return way
            case _:
                self._carrier.refuse(arrival, connection, verdict)
                return None

    async def _await_certificate(
        self, arrival: Arrival, connection: OutboundConnection, verdict: Verdict
    ) -> None:
        try:
            await self._identities.fetch(connection.source.identity, self._config.certificate_wait)
        except IdentityUnavailable as error:
            no = refusal(Direction.OUTBOUND, Reason.IDENTITY_UNAVAILABLE, str(error), verdict.ends)
            self._carrier.refuse(arrival, connection, no)
            return
        # State may have moved on while the certificate was on its way.
        self._decide(arrival, self._source(arrival.pod) or connection.source, connection.resolved, asked=True)

    def _go(self, token: int, client: Address, started: float, way: _Way) -> None:
        """Register the flow, then tell the engine."""
        carrier = self._carrier
        carrier.flows.admit(token, client, started, way.shared)
        if way.identity is None:
            carrier.engine.connect_plain(token, way.destination, netns=way.pod.netns, mark=self._dial_mark)
            return
        random = self._random_bytes(24)
        carrier.engine.connect_tunnel(
            token,
            way.destination,
            netns=way.pod.netns,
            identity=self._identities.number(way.identity),
            sans=way.sans,
            authority=way.authority,
            headers=_headers(way, peer_text(client), format_traceparent(random[:16], random[16:])),
            mark=self._dial_mark,
        )

    def _keep(self, event: Accepted, way: _Way, number: int, epoch: int) -> Keeping:
        """Let the engine send the next ones this way by itself."""
        engine = self._carrier.engine
        if way.identity is None:
            return engine.keep_plain(
                event, number, epoch, way.destination, netns=way.pod.netns, mark=self._dial_mark
            )
        return engine.keep_tunnel(
            event,
            number,
            epoch,
            way.destination,
            netns=way.pod.netns,
            identity=self._identities.number(way.identity),
            sans=way.sans,
            authority=way.authority,
            headers=_headers(way, CLIENT, f"00-{RANDOM}{RANDOM}-{RANDOM}-00"),
            mark=self._dial_mark,
        )


class _Way:
    """Where connections of one pod to one destination go, with all the engine and the peer are told of them.

    Good for as long as the snapshot, the pod and what it was enrolled with are the same objects. `identity` is
    None for a way without a tunnel. `lasting`: every connection of the pod to the destination goes this way.
    """

    __slots__ = (
        "asked",
        "authority",
        "baggage",
        "destination",
        "enrolled",
        "identity",
        "lasting",
        "pod",
        "sans",
        "shared",
    )

    def __init__(
        self, pod: Pod, shared: Shared, connection: OutboundConnection, action: Passthrough | Tunnel
    ) -> None:
        self.pod, self.enrolled, self.shared = pod, pod.enrolled, shared
        self.destination: Address = (ip_text(action.destination.ip), action.destination.port)
        self.identity: SpiffeId | None = None
        self.lasting = False
        if isinstance(action, Tunnel):
            service = shared.verdict.ends.service
            self.identity = connection.source.identity
            self.sans, self.authority = action.sans, action.authority
            self.baggage = ("baggage", str(baggage_of(connection.source)))
            self.asked = f";host={service.hostname}" if service is not None and service.hostname else ""


def _headers(way: _Way, client: str, traceparent: str) -> Headers:
    """What a CONNECT says besides where it goes."""
    return (way.baggage, ("forwarded", f'for="{client}"{way.asked}'), ("traceparent", traceparent))


def _to_itself(pod: Pod, verdict: Verdict, tunnel: Tunnel) -> Verdict:
    """A pod that balancing leads to itself is reached directly: what a pod says to its own address never
    leaves it and is not captured, on port 15008 as on any other."""
    if tunnel.destination.ip not in pod.addresses:
        return verdict
    ends = dataclasses.replace(verdict.ends, source_identity=None, mutual_tls=False)
    own = SocketAddress(tunnel.destination.ip, parse_authority(tunnel.authority).port)
    return dataclasses.replace(verdict, action=Passthrough(own), route=Route.PLAINTEXT, ends=ends)
