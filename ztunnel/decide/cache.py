"""Decisions kept for as long as nothing they read can have changed.

A decision is a function of a connection, a `Snapshot` and draws. Snapshots are immutable, so what was decided
under one holds for as long as that very object is the current one; with another object everything is forgotten.
What else a decision reads belongs into the key, except the draws: those are followed by the choices they lead to.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from ztunnel.decide.balance import NotedDraw, weighted
from ztunnel.state.snapshot import Snapshot

__all__ = ["Kept", "without_choice"]

_LIMIT = 10_000

V = TypeVar("V")


@dataclass(slots=True, eq=False)
class _Fork(Generic[V]):
    """A choice by weight: which of the draws makes it, and what follows from each index."""

    which: int
    weights: Sequence[int]
    branches: "dict[int | None, _Row[V]]" = field(default_factory=dict)


_Row: TypeAlias = V | _Fork[V]


class Kept(Generic[V]):
    """Values that hold for one Snapshot object, by key and draws; at most `limit`, then all are forgotten.

    Values must be neither None nor mutable by what they were made for.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._snapshot: Snapshot | None = None
        self._rows: dict[Hashable, _Row[V]] = {}
        self._size = 0

    def get(self, snapshot: Snapshot, key: Hashable, draws: Sequence[float] = ()) -> V | None:
        """The value put under this very snapshot with this key and draws that make the same choices."""
        if snapshot is not self._snapshot:
            return None
        row = self._rows.get(key)
        while type(row) is _Fork:
            row = row.branches.get(weighted(row.weights, draws[row.which]))
        return row  # type: ignore[return-value]  # the loop ends with a value

    def put(self, snapshot: Snapshot, key: Hashable, value: V, draws: Sequence[NotedDraw] = ()) -> None:
        """Keep what was made under this snapshot. `draws`, in the order of their use, noted the choices."""
        if snapshot is not self._snapshot or self._size >= self._limit:
            self._snapshot, self._rows, self._size = snapshot, {}, 0
        self._size += 1
        place: dict[Any, _Row[V]] = self._rows
        at: Hashable = key
        for which, weights, index in _choices(draws):
            fork = place.get(at)
            if not isinstance(fork, _Fork):
                fork = place[at] = _Fork(which, weights)
            place, at = fork.branches, index
        place[at] = value


def without_choice(draws: Sequence[NotedDraw]) -> bool:
    """Whether other draws would have led to the same."""
    return not _choices(draws)


def _choices(draws: Sequence[NotedDraw]) -> list[tuple[int, Sequence[int], int | None]]:
    """The choices that could have fallen another way."""
    return [
        (which, weights, index)
        for which, draw in enumerate(draws)
        for weights, index in draw.choices
        if sum(1 for weight in weights if weight) > 1
    ]
