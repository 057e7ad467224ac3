"""Which pairs of local pods may talk directly, kept in step with the mesh. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ebpf.pairs import PairKey, Target
from ztunnel.direct.between import Block, LocalPod, Neighbours, Pairs, pairs_between
from ztunnel.state.snapshot import Changes, Key, Kind, Snapshot

__all__ = ["Difference", "Plan"]


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
    _neighbours: Neighbours = field(default_factory=lambda: Neighbours.of(()))
    _blocks: dict[tuple[int, int], Block] = field(default_factory=dict)
    _resting: dict[Key, set[tuple[int, int]]] = field(default_factory=lambda: defaultdict(set))
    _doubtful: dict[tuple[int, int], None] = field(default_factory=dict)

    @property
    def doubtful(self) -> int:
        """How many blocks wait for `settle`."""
        return len(self._doubtful)

    @property
    def pairs(self) -> Mapping[PairKey, Target]:
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
            touched |= self._resting_on({*self._pods.values(), *now.values()}, renewed)
            self._pods, self._neighbours = now, Neighbours.of(now.values())
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
            block = self._blocks[ends] = pairs_between(
                source, target, self.network, snapshot, self._neighbours
            )
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

    def _resting_on(self, pods: Iterable[LocalPod], renewed: set[int]) -> set[tuple[int, int]]:
        """Blocks that name other pods, too: those of services of which a pod has come or gone."""
        services = {m.service for pod in pods if pod.slot in renewed for m in pod.workload.services}
        found: set[tuple[int, int]] = set()
        for service in services:
            found |= self._resting.get(Key(Kind.ENDPOINTS, service), set())
        return found

    def _drop(self, ends: tuple[int, int]) -> Pairs:
        block = self._blocks.pop(ends)
        for key in block.depends:
            resting = self._resting[key]
            resting.discard(ends)
            if not resting:
                del self._resting[key]
        return block.pairs
