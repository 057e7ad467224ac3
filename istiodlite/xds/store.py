"""The resources as streams see them: a table with a change log and indexes. Pure.

A stream remembers the sequence number it was last told about, and asks what changed since. So a slow
stream costs no memory: whatever happens meanwhile is one answer, with each resource's latest state.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from istiodlite.api import discovery_pb2
from istiodlite.registry import Changes, Resource


@dataclass(frozen=True, slots=True)
class Delta:
    """What changed since some sequence number, as every stream that follows everything is told.

    `names` are at most 20 of those concerned, for logs. `encoded` is shared by all streams.
    """

    count: int
    names: tuple[str, ...]
    removed: tuple[str, ...]
    encoded: bytes


@dataclass(slots=True)
class _Table:
    resources: dict[str, Resource] = field(default_factory=dict)
    # name -> sequence number of its last change or removal, in ascending order of sequence.
    log: dict[str, int] = field(default_factory=dict)
    aliases: "_Index" = field(default_factory=dict)
    members: "_Index" = field(default_factory=dict)
    nodes: "_Index" = field(default_factory=dict)
    wire: dict[str, bytes] = field(default_factory=dict)
    # since which sequence number -> what changed; good until the next batch.
    deltas: dict[int, Delta] = field(default_factory=dict)


# key -> names; a single name stands for itself, as nearly all addresses have one owner only.
_Index = dict[str, str | set[str]]


def _index(index: _Index, keys: Iterable[str], name: str, *, add: bool) -> None:
    for key in keys:
        names = _names(index, key)
        if add:
            names.add(name)
        else:
            names.discard(name)
        if len(names) > 1:
            index[key] = names
        elif names:
            index[key] = names.pop()
        else:
            index.pop(key, None)


def _names(index: _Index, key: str) -> set[str]:
    found = index.get(key)
    if isinstance(found, set):
        return found
    return {found} if found is not None else set()


class Store:
    """All resources of all types. `sequence` grows by one with each batch that changes something."""

    def __init__(self) -> None:
        self.sequence = 0
        self._tables: dict[str, _Table] = {}

    def apply(self, changes: Changes) -> int:
        """Takes a batch; returns the sequence number it has."""
        if changes:
            self.sequence += 1
            for table in self._tables.values():
                table.deltas.clear()
        for type_url, name in changes.removed:
            self._put(self._tables.setdefault(type_url, _Table()), name, None)
        for resource in changes.changed:
            self._put(self._tables.setdefault(resource.type_url, _Table()), resource.name, resource)
        return self.sequence

    def _put(self, table: _Table, name: str, new: Resource | None) -> None:
        for one, add in ((table.resources.get(name), False), (new, True)):
            if one is not None:
                _index(table.aliases, one.aliases, name, add=add)
                _index(table.members, one.services, name, add=add)
                _index(table.nodes, (one.node,) if one.node else (), name, add=add)
        table.wire.pop(name, None)
        if new is None:
            table.resources.pop(name, None)
        else:
            table.resources[name] = new
        table.log.pop(name, None)
        table.log[name] = self.sequence

    def _table(self, type_url: str) -> _Table:
        return self._tables.get(type_url) or _Table()

    def all(self, type_url: str) -> Iterable[Resource]:
        return self._table(type_url).resources.values()

    def get(self, type_url: str, name: str) -> Resource | None:
        return self._table(type_url).resources.get(name)

    def compare(self, type_url: str, known: Mapping[str, str]) -> tuple[list[Resource], list[str]]:
        """(what somebody with these versions lacks, names of what he has and is gone).

        Of a large mesh this is the dearest question of all: one way through `known`, of which nothing is kept.
        """
        resources = self._table(type_url).resources
        same: set[str] = set()
        gone = []
        for name, version in known.items():
            one = resources.get(name)
            if one is None:
                gone.append(name)
            elif one.version == version:
                same.add(one.name)
        if len(same) == len(resources):
            return [], gone
        return [one for one in resources.values() if one.name not in same], gone

    def resolve(self, type_url: str, name: str) -> list[Resource]:
        """What a client that asks for `name` gets: the resource of that name, else those with that alias.

        Workloads come before services, and a service brings all of its workloads.
        """
        table = self._table(type_url)
        direct = table.resources.get(name)
        found = [direct] if direct is not None else self._by_alias(table, name)
        out = {one.name: one for one in found}
        for one in found:
            for member in sorted(_names(table.members, one.name)):
                out.setdefault(member, table.resources[member])
        return list(out.values())

    @staticmethod
    def _by_alias(table: _Table, alias: str) -> list[Resource]:
        found = [table.resources[name] for name in sorted(_names(table.aliases, alias))]
        workloads = [one for one in found if one.node or one.services]
        return workloads or found

    def on_node(self, type_url: str, node: str) -> list[Resource]:
        table = self._table(type_url)
        return [table.resources[name] for name in sorted(_names(table.nodes, node))]

    def changed_since(self, type_url: str, sequence: int) -> Iterator[str]:
        """Names changed or removed after `sequence`, latest first."""
        for name, when in reversed(self._table(type_url).log.items()):
            if when <= sequence:
                return
            yield name

    def delta(self, type_url: str, sequence: int) -> Delta:
        """All that changed after `sequence`. Streams are mostly equally far, so it is made once for all."""
        table = self._table(type_url)
        found = table.deltas.get(sequence)
        if found is None:
            names = list(self.changed_since(type_url, sequence))
            changed = [one for name in names if (one := table.resources.get(name)) is not None]
            removed = tuple(name for name in names if name not in table.resources)
            shown = (*(one.name for one in changed[:20]), *removed[:20])[:20]
            encoded = b"".join([self.wire(one) for one in changed])
            found = table.deltas[sequence] = Delta(len(changed), shown, removed, encoded)
        return found

    def wire(self, resource: Resource) -> bytes:
        """The resource as it stands in a response; encoded once, shared by all streams."""
        table = self._tables[resource.type_url]
        found = table.wire.get(resource.name)
        if found is None:
            message = discovery_pb2.Resource(
                name=resource.name, version=resource.version, aliases=resource.aliases
            )
            message.resource.type_url = resource.type_url
            message.resource.value = resource.body
            # One element of the repeated field `resources`; such encodings may be concatenated.
            alone = discovery_pb2.DeltaDiscoveryResponse(resources=[message])
            found = table.wire[resource.name] = alone.SerializeToString()
        return found
