"""The pairs from one local pod to another, and the facts they rest on. Pure.

A pair is (pod, destination it asks for) -> the pods, addresses and ports that answer. It is there only if
`decide_outbound` sends the connection straight to one of them by HBONE, whatever the draw, and `decide_inbound`
delivers it there for every address the client may have. Everything else is left to the proxy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from ebpf.pairs import MOST_BACKENDS, Backend, Endpoint, PairKey, Split, Target
from hbone.connect import SocketAddress
from ztunnel.decide.balance import NotedDraw
from ztunnel.decide.inbound import decide_inbound
from ztunnel.decide.model import (
    Deliver,
    InboundConnection,
    InboundVerdict,
    OutboundConnection,
    OutboundVerdict,
    Route,
    Tunnel,
    Via,
)
from ztunnel.decide.outbound import decide_outbound
from ztunnel.decide.ports import ILLEGAL_PORTS, target_port
from ztunnel.state.model import HBONE_PORT, IPAddress, Service, Workload
from ztunnel.state.snapshot import Key, Kind, Snapshot

__all__ = ["Block", "LocalPod", "Neighbours", "Pairs", "Verdicts", "pairs_between", "verdicts"]

Pairs: TypeAlias = dict[PairKey, Target]


class LocalPod(NamedTuple):
    """An enrolled pod: its slot in the kernel's maps, its addresses there, what the control plane says of it; whether its
    direct connections may be accelerated."""

    slot: int
    addresses: tuple[IPAddress, ...]
    workload: Workload
    turbo: bool = False


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The enrolled pods of this node: by the workload's uid, and slots by service (`namespace/hostname`)."""

    by_uid: dict[str, LocalPod]
    by_service: dict[str, tuple[int, ...]]

    @staticmethod
    def of(pods: Iterable[LocalPod]) -> Neighbours:
        """All of them."""
        found = list(pods)
        services: dict[str, list[int]] = defaultdict(list)
        for pod in found:
            for membership in pod.workload.services:
                services[membership.service].append(pod.slot)
        slots = {service: tuple(sorted(members)) for service, members in services.items()}
        return Neighbours({pod.workload.uid: pod for pod in found}, slots)

    def speaks_for(self, target: LocalPod, service: str, source: LocalPod) -> bool:
        """Whether the service's own addresses belong to the pairs from `source` to this of its pods: to one only."""
        first = next((slot for slot in self.by_service.get(service, ()) if slot != source.slot), None)
        return first == target.slot


class Verdicts(NamedTuple):
    """How the two sides decide about one connection."""

    outbound: OutboundVerdict
    inbound: InboundVerdict | None
    arriving: InboundConnection | None

    @property
    def allowed(self) -> bool:
        """Whether it goes straight to a pod which takes it."""
        inbound = self.inbound
        return (
            self.outbound.allowed
            and self.outbound.route is Route.DIRECT
            and inbound is not None
            and inbound.allowed
            and isinstance(inbound.action, Deliver)
        )


def verdicts(asking: OutboundConnection, snapshot: Snapshot, draw: float = 0.0) -> Verdicts:
    """Decide about a connection at both ends, as the two agents of a tunnel would."""
    outbound = decide_outbound(asking, snapshot, draw, draw)
    action = outbound.action
    if not isinstance(action, Tunnel):
        return Verdicts(outbound, None, None)
    service = outbound.ends.service
    arriving = InboundConnection(
        local=action.hop,
        via=Via.HBONE,
        peer=asking.peer,
        destination=action.destination,
        identity=asking.source.identity,
        authority=action.authority,
        forwarded_host=service.hostname if service is not None else None,
    )
    return Verdicts(outbound, decide_inbound(arriving, snapshot), arriving)


@dataclass(frozen=True, slots=True)
class Block:
    """All pairs from one pod to another, and the facts they rest on."""

    pairs: Pairs
    depends: frozenset[Key]


def pairs_between(
    source: LocalPod, target: LocalPod, network: str, snapshot: Snapshot, pods: Neighbours | None = None
) -> Block:
    """The pairs from `source` to `target`; those of a service are with the first of its pods. `pods`: all of the
    node."""
    pods = pods or Neighbours.of((source, target))
    pairs: Pairs = {}
    depends: set[Key] = {Key(Kind.WORKLOAD, source.workload.uid), Key(Kind.WORKLOAD, target.workload.uid)}
    for membership in target.workload.services:
        depends |= {Key(Kind.SERVICE, membership.service), Key(Kind.ENDPOINTS, membership.service)}
    if _speaks_for_itself(source.workload) or _speaks_for_itself(target.workload):
        return Block(pairs, frozenset(depends))
    question = _Question(source, network, snapshot, pods, depends)
    own, services = _destinations(source, target, network, snapshot, pods)
    for asked in own:
        answer = question.answer(asked)
        if isinstance(answer, Backend) and answer.slot == target.slot:
            pairs[PairKey(source.slot, Endpoint(asked.ip, asked.port))] = answer
    for asked in services:
        answer = question.answer(asked)
        if answer is not None:
            pairs[PairKey(source.slot, Endpoint(asked.ip, asked.port))] = answer
    return Block(pairs, frozenset(depends))


def _speaks_for_itself(workload: Workload) -> bool:
    """Gateways and waypoints: they make and take tunnels of their own."""
    return workload.native_tunnel or workload.application_tunnel is not None


def _destinations(
    source: LocalPod, target: LocalPod, network: str, snapshot: Snapshot, pods: Neighbours
) -> tuple[list[SocketAddress], list[SocketAddress]]:
    """What a client may ask for to reach this pod: its own ports, as services know them, and services."""
    own: set[SocketAddress] = set()
    services: set[SocketAddress] = set()
    for membership in target.workload.services:
        service = snapshot.service(membership.service)
        if service is None:
            continue
        own.update(_own_ports(service, target))
        if pods.speaks_for(target, membership.service, source):
            services.update(_service_ports(service, network))
    return _sorted(own), _sorted(services - own)


def _sorted(addresses: Iterable[SocketAddress]) -> list[SocketAddress]:
    return sorted(addresses, key=lambda address: (address.ip.version, address.ip, address.port))


def _own_ports(service: Service, target: LocalPod) -> Iterator[SocketAddress]:
    for each in service.ports:
        port = target_port(service, target.workload, each.service_port)
        if port is not None and port not in ILLEGAL_PORTS:
            for ip in target.addresses:
                yield SocketAddress(ip, port)


def _service_ports(service: Service, network: str) -> Iterator[SocketAddress]:
    for each in service.ports:
        for vip in service.addresses:
            if vip.network == network and vip.is_host:
                yield SocketAddress(vip.ip, each.service_port)


@dataclass(frozen=True, slots=True)
class _Question:
    """Who answers a pod; `depends` gathers what the answers rest on."""

    source: LocalPod
    network: str
    snapshot: Snapshot
    pods: Neighbours
    depends: set[Key]

    def answer(self, asked: SocketAddress) -> Target | None:
        """Where the balancer sends connections to `asked`, if that is always to pods of this node which take them."""
        clients = [ip for ip in self.source.addresses if ip.version == asked.ip.version]
        answers = {self._answer(client, asked) for client in clients}
        (answer,) = answers if len(answers) == 1 else (None,)
        return answer

    def _answer(self, client: IPAddress, asked: SocketAddress) -> Target | None:
        asking = OutboundConnection(self.source.workload, self.network, SocketAddress(client, 0), asked)
        noted = NotedDraw(0.0)
        self._backend(asking, noted)
        weights, _ = noted.choices[0] if noted.choices else ((1,), 0)
        if len(noted.choices) > 1 or len(weights) > MOST_BACKENDS:
            return None
        total, below = sum(weights), 0
        found: list[tuple[Backend, int]] = []
        for weight in weights:
            if weight:
                backend = self._backend(asking, (below + weight / 2) / total)
                if backend is None:
                    return None
                found.append((backend, weight))
                below += weight
        if len(found) > 1:
            return Split(tuple(found))
        return found[0][0] if found else None

    def _backend(self, asking: OutboundConnection, draw: float) -> Backend | None:
        """Where it goes with this draw, if that is to another pod of this node which takes it."""
        both = verdicts(asking, self.snapshot, draw)
        self.depends.update(both.outbound.depends)
        if both.inbound is not None:
            self.depends.update(both.inbound.depends)
        action = both.outbound.action
        if isinstance(action, Tunnel):
            self.depends.add(Key(Kind.WORKLOAD, action.hop.uid))
        address, target = _delivered(both), self._target(both)
        if address is None or target is None or address.ip not in target.addresses:
            return None
        if address.ip.version != asking.destination.ip.version:
            return None
        return Backend(target.slot, Endpoint(address.ip, address.port), self.source.turbo and target.turbo)

    def _target(self, both: Verdicts) -> LocalPod | None:
        action = both.outbound.action
        found = self.pods.by_uid.get(action.hop.uid) if isinstance(action, Tunnel) else None
        if found is None or found.slot == self.source.slot or _speaks_for_itself(found.workload):
            return None
        return found


def _delivered(both: Verdicts) -> SocketAddress | None:
    if not both.allowed or both.inbound is None or not isinstance(both.inbound.action, Deliver):
        return None
    delivered = both.inbound.action.destination
    tunnel = both.outbound.action
    usual = isinstance(tunnel, Tunnel) and tunnel.destination == SocketAddress(delivered.ip, HBONE_PORT)
    return delivered if usual and str(delivered) == getattr(tunnel, "authority", "") else None
