"""Connections for this node's pods, through the tunnel or captured in the clear: decide, tell the engine."""

from __future__ import annotations

import functools
import re
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from ebpf.marks import ONWARD_MARK
from hbone.connect import parse_headers, response_headers
from hbone.engine import Accepted, Address, ConnectRequested, Headers
from hbone.engine import Kept as Keeping
from hbone.reasons import Reason
from hbone.spiffe import SpiffeError, SpiffeId
from ztunnel.addresses import ip_text, socket_address
from ztunnel.admit import Verdicts
from ztunnel.carry import Arrival, Carrier, refusal
from ztunnel.config import Config
from ztunnel.decide.cache import Kept
from ztunnel.decide.inbound import decide_inbound
from ztunnel.decide.labels import baggage_of
from ztunnel.decide.model import Deliver, Direction, InboundConnection, Verdict, Via
from ztunnel.enrol.pods import Pod
from ztunnel.flows.registry import Shared
from ztunnel.state.model import Workload
from ztunnel.store import Store

__all__ = ["Inbound"]

_Event: TypeAlias = Accepted | ConnectRequested


class Inbound:
    """Verdicts for connections that arrive at pods."""

    def __init__(self, *, carrier: Carrier, verdicts: Verdicts, store: Store, config: Config) -> None:
        self._carrier, self._verdicts, self._store, self._config = carrier, verdicts, store, config
        self._doors: Kept[_Door] = Kept()

    def arrived(self, event: _Event, pod: Pod) -> None:
        """A plaintext connection or a CONNECT stream waits for its verdict."""
        key = self._key(event)
        door = self._doors.get(self._store.snapshot, key) if key is not None else None
        if door is not None and door.pod is pod:
            self._go(event.token, event.peer, event.at, door)
            self._verdicts.offer(door.shared, functools.partial(self._keep, event, door))
            return
        arrival = Arrival(event.token, pod, event.peer, socket_address(event.local), event.at)
        local = self._local(pod)
        if local is None:
            self._carrier.later(
                arrival, Direction.INBOUND, functools.partial(self._await_local, arrival, event)
            )
        else:
            self._decide(arrival, event, local)

    def _key(self, event: _Event) -> tuple[object, ...] | None:
        """All that a verdict can depend on besides the snapshot and the workload; None: do not keep it.

        Policies look at the peer's address, never at its port.
        """
        if isinstance(event, Accepted):
            return event.tag, event.local, event.peer[0]
        told = _told(event.headers)
        if told is None or event.method != "CONNECT":
            return None
        return event.tag, event.local, event.peer[0], event.peer_identity, event.authority, *told

    def _local(self, pod: Pod) -> Workload | None:
        return self._store.snapshot.local_workload(pod.namespace, pod.service_account, pod.name)

    async def _await_local(self, arrival: Arrival, event: _Event) -> None:
        pod, wait = arrival.pod, self._config.workload_wait
        await self._store.wait_until(lambda _: self._local(pod) is not None, wait)
        local = self._local(pod)
        if local is None:
            detail = f"{pod.namespace}/{pod.name} on node {self._config.node_name}, waited {wait:g} s"
            self._carrier.refuse(arrival, None, refusal(Direction.INBOUND, Reason.WORKLOAD_PENDING, detail))
            return
        self._decide(arrival, event, local)

    def _decide(self, arrival: Arrival, event: _Event, local: Workload, *, waited: bool = False) -> None:
        try:
            connection = self._connection(arrival, event, local)
        except (SpiffeError, ValueError) as error:
            self._carrier.refuse(arrival, None, refusal(Direction.INBOUND, Reason.BAD_REQUEST, str(error)))
            return
        snapshot = self._store.snapshot
        verdict = decide_inbound(connection, snapshot)
        if verdict.reason is Reason.POLICY_PENDING and not waited:
            work = functools.partial(self._await_policies, arrival, event, verdict)
            self._carrier.later(arrival, Direction.INBOUND, work)
        elif isinstance(verdict.action, Deliver):
            door = self._door(arrival, connection, verdict, verdict.action)
            self._go(arrival.token, arrival.client, arrival.started, door)
            key = self._key(event)
            if key is not None:
                self._doors.put(snapshot, key, door)
        else:
            self._carrier.refuse(arrival, connection, verdict)

    async def _await_policies(self, arrival: Arrival, event: _Event, verdict: Verdict) -> None:
        """A workload may come moments before the policies it lists: only what stays missing refuses."""
        missing = verdict.authorization.missing if verdict.authorization is not None else ()
        await self._store.wait_until(
            lambda snapshot: all(snapshot.policy(key) is not None for key in missing),
            self._config.policy_wait,
        )
        local = self._local(arrival.pod)
        if local is not None:
            self._decide(arrival, event, local, waited=True)
        else:
            self._carrier.refuse(arrival, None, refusal(Direction.INBOUND, Reason.WORKLOAD_PENDING))

    def _connection(self, arrival: Arrival, event: _Event, local: Workload) -> InboundConnection:
        if isinstance(event, Accepted):
            return InboundConnection(local, Via.PLAINTEXT, arrival.peer, arrival.destination)
        if event.method != "CONNECT":
            raise ValueError(f"method {event.method[:16]!r} is not CONNECT")
        headers = parse_headers(event.headers)
        return InboundConnection(
            local,
            Via.HBONE,
            arrival.peer,
            arrival.destination,
            _identity(event.peer_identity),
            event.authority,
            headers.forwarded_host,
            headers.from_network,
            headers.baggage if self._config.response_baggage else None,
        )

    def _door(
        self, arrival: Arrival, connection: InboundConnection, verdict: Verdict, action: Deliver
    ) -> _Door:
        to, source = action.destination, action.source_ip
        if self._config.orig_src is False:
            source = None
        return _Door(
            arrival.pod,
            self._carrier.share(arrival, connection, verdict),
            (ip_text(to.ip), to.port),
            ip_text(source) if source is not None else None,
            self._answer(connection),
        )

    def _answer(self, connection: InboundConnection) -> Headers:
        """What a client is told of whom it reached."""
        if connection.via is not Via.HBONE or not self._config.response_baggage:
            return ()
        return response_headers(baggage_of(connection.local))

    def _go(self, token: int, client: Address, started: float, door: _Door) -> None:
        """Register the flow, then tell the engine."""
        self._carrier.flows.admit(token, client, started, door.shared)
        source = door.source_ip
        self._carrier.engine.connect_plain(
            token,
            door.destination,
            netns=door.pod.netns,
            source_ip=source,
            headers=door.answer,
            mark=ONWARD_MARK if source is not None else 0,
        )

    def _keep(self, event: _Event, door: _Door, number: int, epoch: int) -> Keeping:
        """Let the engine open this door by itself. Its key of a connection is finer than ours, `_key`."""
        source = door.source_ip
        return self._carrier.engine.keep_plain(
            event,
            number,
            epoch,
            door.destination,
            netns=door.pod.netns,
            source_ip=source,
            headers=door.answer,
            mark=ONWARD_MARK if source is not None else 0,
        )


_READ = frozenset({"baggage", "forwarded", "x-forwarded-network"})
_USUAL_LENGTH = 512
# As agents write it: the client's address, which is another one each time, and the host.
_FORWARDED = re.compile(r'for="[0-9a-f.:\[\]]+"(?:;host=([A-Za-z0-9._-]+))?')


class _Door(NamedTuple):
    """How equal connections enter a pod. Good for as long as the snapshot and the pod are the same objects."""

    pod: Pod
    shared: Shared
    destination: Address
    source_ip: str | None
    answer: Headers


def _told(headers: Headers) -> tuple[str | None, str | None, str | None] | None:
    """What a peer says in its headers: the text of its baggage, the host it asked for, its network.

    None when that is more than the usual: what peers make up must not fill the memory.
    """
    said: dict[str, str] = {}
    for name, value in headers:
        if name in _READ:
            if name in said or len(value) > _USUAL_LENGTH:
                return None
            said[name] = value
    host = None
    if "forwarded" in said:
        usual = _FORWARDED.fullmatch(said["forwarded"])
        if usual is None:
            return None
        host = usual[1]
    return said.get("baggage"), host, said.get("x-forwarded-network")


@lru_cache(4096)
def _identity(uri: str) -> SpiffeId:
    return SpiffeId.parse(uri)
