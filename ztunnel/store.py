"""The one place that holds the current Snapshot. One writer (the xDS client); readers take `snapshot`.

Subscribers are called with every change of a burst at once: while a burst of updates is being applied they
see the newest snapshot and the union of the changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

import trio

from ztunnel.state.snapshot import Changes, Key, Snapshot, Update

__all__ = ["Store", "Subscriber"]

_log = logging.getLogger("ztunnel.state")

_LARGE = 200

Subscriber: TypeAlias = Callable[[Changes, Snapshot], None]


class Store:
    """The current snapshot and who wants to know of changes. Use from the trio thread only."""

    def __init__(self, node: str = "", *, before_change: Callable[[], object] = lambda: None) -> None:
        """`before_change` is called before another snapshot is in force: what rests on this one ends there."""
        self.snapshot = Snapshot.empty(node)
        self._before_change = before_change
        self._subscribers: list[Subscriber] = []
        self._pending: frozenset[Key] = frozenset()
        self._wake = trio.Event()
        self._changed = trio.Event()

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber` after changes; it must not block or raise."""
        self._subscribers.append(subscriber)

    async def apply(self, update: Update) -> None:
        """Replace the snapshot; subscribers hear of it at the next turn of run(). One caller at a time."""
        size = len(update.workloads) + len(update.services) + len(update.policies)
        if size < _LARGE:
            snapshot, changes = self.snapshot.apply(update)
        else:
            snapshot, changes = await trio.to_thread.run_sync(self.snapshot.apply, update)
        if not changes.keys:
            return
        self._before_change()
        self.snapshot = snapshot
        self._pending |= changes.keys
        self._wake.set()
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        """Tell subscribers until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            keys, self._pending = self._pending, frozenset()
            for subscriber in self._subscribers:
                try:
                    subscriber(Changes(keys), self.snapshot)
                except Exception:
                    # One subscriber's defect must not keep the others from seeing a policy change.
                    _log.exception("a change was not taken over")

    async def wait_until(self, condition: Callable[[Snapshot], bool], timeout: float) -> bool:
        """Wait until the snapshot fulfils `condition`; False when it did not within `timeout` seconds."""
        with trio.move_on_after(timeout):
            while not condition(self.snapshot):
                await self._changed.wait()
            return True
        return condition(self.snapshot)
