"""Writes status to the cluster where it differs from what it should be.

Level-triggered, as the root ConfigMaps are: every replica compares and writes, and as all of them would write the
same, none has to be elected; who comes second is refused by the version the patch names and sees the first one's.
"""

import datetime
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import trio

from istiodlite.kube.client import ApiError, KubeClient
from istiodlite.kube.kinds import WatchedKind
from istiodlite.kube.reading import Garbled, key_of
from istiodlite.kube.reflector import wait_of
from istiodlite.objects import ObjectKey
from istiodlite.registry import Condition, Registry
from istiodlite.status.plan import HEALTHY, OWNED, PLURALS, Present, Wanted, merged, read_present

_log = logging.getLogger("istiodlite.status")
_AT_ONCE = 4
MERGE_PATCH = "application/merge-patch+json"


class StatusWriter:
    """`saw` hears of every object read, `pushed` of what the registry made; `run` writes the difference."""

    def __init__(
        self, client: KubeClient, *, draw: Callable[[], float] = random.random, sleep: Any = trio.sleep
    ) -> None:
        self._client, self._draw, self._sleep = client, draw, sleep
        self._present: dict[ObjectKey, Present] = {}
        self._wanted: dict[ObjectKey, Wanted] = {}
        self._reported: dict[ObjectKey, Condition | None] = {}
        # In the order in which they came; a dict so that a key stands in it once.
        self._due: dict[ObjectKey, None] = {}
        self._work = trio.Event()
        self._refused: set[str] = set()
        self.written = self.failed = 0

    def saw(self, kind: WatchedKind, body: Any) -> None:
        """An object of the cluster, as the API server sent it."""
        if kind.kind not in PLURALS:
            return
        try:
            key = key_of(kind, body)
        except Garbled:
            return
        self._present[key] = read_present(kind.kind, body)
        self._check(key)

    def gone(self, keys: Iterable[ObjectKey]) -> None:
        """Objects that were removed."""
        for key in keys:
            self._present.pop(key, None)
            self._wanted.pop(key, None)
            self._reported.pop(key, None)
            self._due.pop(key, None)

    def pushed(self, registry: Registry, keys: Iterable[ObjectKey]) -> None:
        """What these objects were made into may have changed."""
        for key in keys:
            if key.kind in PLURALS and key in registry.objects:
                addresses = registry.addresses_of(key) if key.kind == "ServiceEntry" else None
                self._wanted[key] = Wanted(tuple(registry.conditions_of(key)), addresses)
                self._check(key)

    def report(self, key: ObjectKey, healthy: Condition | None) -> None:
        """What the machine behind a WorkloadEntry says of itself; None: it says nothing any more."""
        self._reported[key] = healthy
        self._check(key)

    def version(self, key: ObjectKey) -> str:
        """The resourceVersion that was last seen; empty if the object was not."""
        present = self._present.get(key)
        return present.version if present is not None else ""

    def describe(self) -> dict[str, Any]:
        """For people."""
        return {"written": self.written, "failed": self.failed, "due": len(self._due)}

    def _check(self, key: ObjectKey) -> None:
        if self._patch(key) is not None:
            self._due[key] = None
            self._work.set()

    def _patch(self, key: ObjectKey) -> dict[str, Any] | None:
        present, wanted = self._present.get(key), self._wanted.get(key)
        if present is None or wanted is None:
            return None
        now = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
        if key not in self._reported:
            return merged(present, wanted, now)
        healthy = self._reported[key]
        conditions = (*wanted.conditions, *([healthy] if healthy is not None else []))
        return merged(present, replace(wanted, conditions=conditions), now, OWNED | {HEALTHY})

    async def run(self) -> None:
        """Endless; cancel to stop."""
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(self._worker)

    async def _worker(self) -> None:
        tries = 0
        while True:
            while not self._due:
                if self._work.is_set():
                    self._work = trio.Event()
                await self._work.wait()
            key = next(iter(self._due))
            del self._due[key]
            if await self._write(key):
                tries = 0
                continue
            tries += 1
            self._due.setdefault(key)
            await self._sleep(wait_of(tries, self._draw()))

    async def _write(self, key: ObjectKey) -> bool:
        """False if it should be tried again."""
        patch = self._patch(key)
        if patch is None:
            return True
        path = (
            f"/{self._present[key].place}/namespaces/{key.namespace}/{PLURALS[key.kind][1]}/{key.name}/status"
        )
        try:
            await self._client.send("PATCH", path, patch, content_type=MERGE_PATCH)
        except ApiError as error:
            return self._failed(key, error)
        self.written += 1
        return True

    def _failed(self, key: ObjectKey, error: ApiError) -> bool:
        if error.code in (404, 409):
            # It is gone, or somebody was faster: the watch tells, and then it is looked at again.
            return True
        self.failed += 1
        if 400 <= error.code < 500 and error.code != 429:
            self._tell_once(key, error)
            return True
        self._client.renew()
        return False

    def _tell_once(self, key: ObjectKey, error: ApiError) -> None:
        plural = PLURALS[key.kind][1]
        if plural not in self._refused:
            self._refused.add(plural)
            advice = f"; grant patch on {plural}/status" if error.code == 403 else ""
            _log.warning("status of %s not written: %s%s", key, error, advice)


def removed(changes: Mapping[ObjectKey, Any]) -> list[ObjectKey]:
    """Keys of a batch whose objects are gone."""
    return [key for key, obj in changes.items() if obj is None]
