"""Verdicts that the engine gives by itself, and the connections it admitted by them.

Most connections are like one that was decided a moment ago. What holds for all that are alike is left with the
engine, which then asks no more, but tells afterwards whom it admitted; from there on such a connection is like any
other: registered, counted, logged, decided again.

Why no verdict outlives what it rests on: whoever changes the state calls `Engine.forget` first (`Store`, `Pods`; the
engine itself for certificates and withdrawn pods). When that returns none of the old verdicts is given any more. Those
it was given to until then may be told of later; they are decided again as soon as they are.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from hbone.engine import Admitted, Closed, Engine, Finished, Forgotten, Kept, reason_code
from hbone.reasons import Reason
from ztunnel.flows.registry import Flow, Registry, Shared
from ztunnel.state.snapshot import Snapshot

__all__ = ["Verdicts"]

_log = logging.getLogger("ztunnel.proxy")


class _Row(NamedTuple):
    shared: Shared
    snapshot: Snapshot


class Verdicts:
    """What the engine keeps, by number, for as long as an event may name it. Use from the trio thread only."""

    def __init__(
        self,
        engine: Engine,
        flows: Registry,
        current: Callable[[], Snapshot],
        again: Callable[[Flow], None],
        workers: int,
    ) -> None:
        """`again` has a flow decided again; `workers` is how many the engine has."""
        self._engine, self._flows, self._current, self._again = engine, flows, current, again
        self._workers = workers
        self._rows: dict[int, _Row] = {}
        self._numbers: dict[int, list[int]] = {}
        self._heard: Counter[int] = Counter()
        self._epoch = 0
        self._offered: set[Shared] = set()
        self._number = 0

    def __len__(self) -> int:
        """How many may still be named by events."""
        return len(self._rows)

    def offer(self, shared: Shared, keep: Callable[[int, int], Kept]) -> None:
        """Leave a verdict that holds now with the engine; `keep(number, epoch)` tells it. Once in each epoch."""
        epoch = self._engine.epoch()
        if epoch != self._epoch:
            self._epoch = epoch
            self._offered.clear()
        if shared in self._offered:
            return
        outcome = keep(self._number, epoch)
        if outcome is Kept.FULL:
            self._engine.forget()
            return
        self._offered.add(shared)
        if outcome is Kept.YES:
            self._rows[self._number] = _Row(shared, self._current())
            self._numbers.setdefault(epoch, []).append(self._number)
            self._number += 1

    def admitted(self, event: Admitted) -> None:
        """A connection is going the way of a kept verdict."""
        row = self._rows.get(event.verdict)
        if row is None:
            _log.error("the engine named a verdict that nobody gave")
            self._engine.cut(event.token, reason_code(Reason.INTERNAL.value))
            return
        flow = self._flows.admit(event.token, event.peer, event.at, row.shared)
        flow.established = event.established
        if row.snapshot is not self._current():
            self._again(flow)

    def finished(self, event: Finished) -> None:
        """A connection went the way of a kept verdict, and has ended."""
        row = self._rows.get(event.verdict)
        if row is None:
            _log.error("the engine named a verdict that nobody gave")
            return
        if not event.reason_code:
            up, down = event.bytes_from_client, event.bytes_to_client
            self._flows.passed(row.shared, event.token, event.peer, event.at, event.ended, up, down)
            return
        self._flows.admit(event.token, event.peer, event.at, row.shared)
        self._flows.closed(
            Closed(
                event.token,
                event.reason_code,
                event.status,
                event.errno,
                event.bytes_from_client,
                event.bytes_to_client,
                event.established,
                event.ended,
            )
        )

    def forgotten(self, event: Forgotten) -> None:
        """A worker names none of these any more; after the last of them nobody does."""
        self._heard[event.epoch] += 1
        if self._heard[event.epoch] < self._workers:
            return
        for epoch in [epoch for epoch in self._heard if epoch <= event.epoch]:
            del self._heard[epoch]
        for epoch in [epoch for epoch in self._numbers if epoch <= event.epoch]:
            for number in self._numbers.pop(epoch):
                del self._rows[number]
