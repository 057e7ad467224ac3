"""Which pairs of local pods may talk directly. Pure.

A pair is (pod, destination it asks for) -> (pod, address that answers). It is in the plan only if
`decide_outbound` sends the connection straight to that pod by HBONE, whatever the draw, and `decide_inbound`
delivers it there for every address the client may have. Everything else is left to the proxy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from ebpf.pairs import Backend, Endpoint, PairKey
from hbone.connect import SocketAddress
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
from ztunnel.state.snapshot import Changes, Key, Kind, Snapshot

__all__ = ["Block", "Difference", "LocalPod", "Plan", "Verdicts", "pairs_between", "verdicts"]

Pairs: TypeAlias = dict[PairKey, Backend]

# The lowest and the highest draw: with both the same endpoint is chosen only if there is just one to choose.
_DRAWS: Final = (0.0, 1.0 - 2.0**-53)


class LocalPod(NamedTuple):
    """An enrolled pod: its slot in the kernel's maps, its addresses there, what the control plane says of it; whether its
    direct connections may be accelerated."""

    slot: int
    addresses: tuple[IPAddress, ...]
    workload: Workload
    turbo: bool = False


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


def verdicts(
    asking: OutboundConnection, snapshot: Snapshot, draw: float = 0.0, hop: Workload | None = None
) -> Verdicts:
    """Decide about a connection at both ends, as the two agents of a tunnel would. `hop`: only if it ends there."""
    outbound = decide_outbound(asking, snapshot, draw, draw)
    action = outbound.action
    if not isinstance(action, Tunnel) or (hop is not None and action.hop.uid != hop.uid):
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


def pairs_between(source: LocalPod, target: LocalPod, network: str, snapshot: Snapshot) -> Block:
    """The pairs from `source` to `target`."""
    pairs: Pairs = {}
    depends: set[Key] = {Key(Kind.WORKLOAD, source.workload.uid), Key(Kind.WORKLOAD, target.workload.uid)}
    for membership in target.workload.services:
        depends |= {Key(Kind.SERVICE, membership.service), Key(Kind.ENDPOINTS, membership.service)}
    if _speaks_for_itself(source.workload) or _speaks_for_itself(target.workload):
        return Block(pairs, frozenset(depends))
    for asked in _destinations(target, network, snapshot):
        backend = _backend(source, target, asked, network, snapshot, depends)
        if backend is not None:
            key = PairKey(source.slot, Endpoint(asked.ip, asked.port))
            address = Endpoint(backend.ip, backend.port)
            pairs[key] = Backend(target.slot, address, source.turbo and target.turbo)
    return Block(pairs, frozenset(depends))


def _speaks_for_itself(workload: Workload) -> bool:
    """Gateways and waypoints: they make and take tunnels of their own."""
    return workload.native_tunnel or workload.application_tunnel is not None


def _destinations(target: LocalPod, network: str, snapshot: Snapshot) -> Iterator[SocketAddress]:
    """What a client may ask for to reach this pod: its own ports, as services know them, and services."""
    found: set[SocketAddress] = set()
    for membership in target.workload.services:
        service = snapshot.service(membership.service)
        if service is not None:
            found.update(_of_service(service, target, network))
    yield from sorted(found, key=lambda address: (address.ip.version, address.ip, address.port))


def _of_service(service: Service, target: LocalPod, network: str) -> Iterator[SocketAddress]:
    for each in service.ports:
        port = target_port(service, target.workload, each.service_port)
        if port is None or port in ILLEGAL_PORTS:
            continue
        for ip in target.addresses:
            yield SocketAddress(ip, port)
        for vip in service.addresses:
            if vip.network == network and vip.is_host:
                yield SocketAddress(vip.ip, each.service_port)


def _backend(
    source: LocalPod,
    target: LocalPod,
    asked: SocketAddress,
    network: str,
    snapshot: Snapshot,
    depends: set[Key],
) -> SocketAddress | None:
    """Where all connections from `source` to `asked` go, if that is `target` and all are allowed."""
    clients = [ip for ip in source.addresses if ip.version == asked.ip.version]
    backends: set[SocketAddress | None] = set()
    for client in clients:
        asking = OutboundConnection(source.workload, network, SocketAddress(client, 0), asked)
        for draw in _DRAWS:
            both = verdicts(asking, snapshot, draw, target.workload)
            depends |= both.outbound.depends
            if both.inbound is not None:
                depends |= both.inbound.depends
            backends.add(_delivered(both))
            if None in backends or len(backends) > 1:
                return None
    (backend,) = backends or (None,)
    usable = backend is not None and backend.ip.version == asked.ip.version and backend.ip in target.addresses
    return backend if usable else None


def _delivered(both: Verdicts) -> SocketAddress | None:
    if not both.allowed or both.inbound is None or not isinstance(both.inbound.action, Deliver):
        return None
    delivered = both.inbound.action.destination
    tunnel = both.outbound.action
    usual = isinstance(tunnel, Tunnel) and tunnel.destination == SocketAddress(delivered.ip, HBONE_PORT)
    return delivered if usual and str(delivered) == getattr(tunnel, "authority", "") else None


class Difference(NamedTuple):
    """What to change in the kernel."""

    added: Pairs
    removed: frozenset[PairKey]


@dataclass(slots=True)
class Plan:
    """The pairs of one node, kept in step with the snapshot block by block.

    `mark` notes what has to be decided again and gives back the pairs that are in doubt until then; `settle`
    decides so many blocks. So a great change can be worked off in parts while nothing outdated is in force.
    """

    network: str
    _pods: dict[int, LocalPod] = field(default_factory=dict)
    _blocks: dict[tuple[int, int], Block] = field(default_factory=dict)
    _resting: dict[Key, set[tuple[int, int]]] = field(default_factory=lambda: defaultdict(set))
    _doubtful: dict[tuple[int, int], None] = field(default_factory=dict)

    @property
    def doubtful(self) -> int:
        """How many blocks wait for `settle`."""
        return len(self._doubtful)

    @property
    def pairs(self) -> Mapping[PairKey, Backend]:
        """All pairs of blocks that are not in doubt."""
        return {key: backend for block in self._blocks.values() for key, backend in block.pairs.items()}

    def mark(self, pods: Iterable[LocalPod], changes: Changes | None = None) -> Pairs:
        """Note the pods of today and what changed; the pairs that do not count until they are settled."""
        now = {pod.slot: pod for pod in pods}
        renewed = {slot for slot in now.keys() | self._pods.keys() if now.get(slot) != self._pods.get(slot)}
        touched: set[tuple[int, int]] = set()
        for key in changes.keys if changes is not None else ():
            touched |= self._resting.get(key, set())
        if renewed:
            touched |= {ends for ends in self._blocks if not renewed.isdisjoint(ends)}
            self._pods = now
            for slot in renewed & now.keys():
                for other in now.keys() - {slot}:
                    self._doubtful[slot, other] = self._doubtful[other, slot] = None
        removed: Pairs = {}
        for ends in touched:
            removed.update(self._drop(ends))
            if all(slot in now for slot in ends):
                self._doubtful[ends] = None
        for ends in [ends for ends in self._doubtful if not all(slot in self._pods for slot in ends)]:
            del self._doubtful[ends]
        return removed

    def settle(self, snapshot: Snapshot, limit: int) -> Pairs:
        """Decide at most so many blocks; the pairs that count from now on."""
        added: Pairs = {}
        for _ in range(min(limit, len(self._doubtful))):
            ends, _ = self._doubtful.popitem()
            source, target = (self._pods[slot] for slot in ends)
            block = self._blocks[ends] = pairs_between(source, target, self.network, snapshot)
            for key in block.depends:
                self._resting[key].add(ends)
            added.update(block.pairs)
        return added

    def follow(self, pods: Iterable[LocalPod], changes: Changes | None, snapshot: Snapshot) -> Difference:
        """`mark` and `settle` at once: what really changes."""
        before = self.mark(pods, changes)
        added = self.settle(snapshot, self.doubtful)
        removed = frozenset(key for key, backend in before.items() if added.get(key) != backend)
        return Difference(
            {key: backend for key, backend in added.items() if before.get(key) != backend}, removed
        )

    def _drop(self, ends: tuple[int, int]) -> Pairs:
        block = self._blocks.pop(ends)
        for key in block.depends:
            resting = self._resting[key]
            resting.discard(ends)
            if not resting:
                del self._resting[key]
        return block.pairs
