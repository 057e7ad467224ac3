"""All kinds of a cluster as one source of batches."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import trio

from istiodlite.kube import KubeClient, Reading, WatchedKind, Watcher
from istiodlite.manifests.errors import ManifestError
from istiodlite.objects import KubeObject, ObjectKey
from istiodlite.sources.folder import Batch
from istiodlite.sources.kube.kinds import WATCHED
from istiodlite.sources.kube.reading import read

_log = logging.getLogger("istiodlite.kube")
_REMIND = 30.0
_WHERE = "cluster"


class KubeSource:
    """Watches every kind at once. The first batch is delivered when all have been listed and holds all."""

    def __init__(
        self,
        client: KubeClient,
        kinds: Sequence[WatchedKind] = WATCHED,
        saw: Callable[[WatchedKind, Any], None] = lambda kind, body: None,
    ) -> None:
        """`saw` is shown every object as the API server sent it."""
        self._client = client
        self._saw = saw
        self._watchers = [Watcher(client, kind, self._read, self._take) for kind in kinds]
        self._waiting: dict[ObjectKey, KubeObject | None] = {}
        self._errors: tuple[ManifestError, ...] = ()
        self._deliver: Callable[[Batch], None] | None = None
        self.synced = trio.Event()

    async def run(self, deliver: Callable[[Batch], None]) -> None:
        """Endless; cancel to stop. `deliver` is called in the same thread."""
        self._deliver = deliver
        async with trio.open_nursery() as nursery:
            for watcher in self._watchers:
                nursery.start_soon(watcher.run)
            nursery.start_soon(self._remind)

    def _read(self, kind: WatchedKind, body: Any) -> Reading[KubeObject]:
        self._saw(kind, body)
        return read(kind, body)

    def _take(self, changes: Mapping[ObjectKey, KubeObject | None]) -> None:
        self._waiting.update(changes)
        if not self.synced.is_set():
            if not all(watcher.health.synced for watcher in self._watchers):
                return
            self.synced.set()
            _log.info("all %d kinds are listed: %d objects", len(self._watchers), len(self._waiting))
        errors = tuple(self._unusable())
        known = set(self._errors)
        new = tuple(error for error in errors if error not in known)
        batch, self._waiting, self._errors = Batch(self._waiting, errors, new), {}, errors
        assert self._deliver is not None
        self._deliver(batch)

    def _unusable(self) -> Iterator[ManifestError]:
        for watcher in self._watchers:
            for key, error in watcher.collection.errors.items():
                yield ManifestError(_WHERE, 0, key, error.field, error.message)

    async def _remind(self) -> None:
        """Says what the start waits for."""
        while not self.synced.is_set():
            with trio.move_on_after(_REMIND):
                await self.synced.wait()
                return
            for watcher in self._watchers:
                if not watcher.health.synced:
                    _log.warning(
                        "not serving yet: %s",
                        watcher.health.problem or f"{watcher.kind.resource}: no list yet",
                    )

    def age(self) -> float:
        """Seconds for which changes of some kind may have been missed; 0 while every watch stands."""
        now = time.monotonic()
        return max((watcher.health.age(now) for watcher in self._watchers), default=0.0)

    def describe(self) -> list[dict[str, Any]]:
        """One entry a kind, for people."""
        now = time.monotonic()
        return [watcher.health.describe(now) for watcher in self._watchers]
