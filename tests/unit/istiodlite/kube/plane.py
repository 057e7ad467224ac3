"""A source that runs against the scripted server, and what it delivered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from istiodlite.kube import Access, KubeClient
from istiodlite.kube.health import Health
from istiodlite.objects import KubeObject, ObjectKey
from istiodlite.sources.folder import Batch
from istiodlite.sources.kube import KubeSource
from tests.unit.istiodlite.kube.apiserver import ApiServer


class Plane:
    """`objects` is the sum of the batches."""

    def __init__(self, source: KubeSource) -> None:
        self.source = source
        self.batches: list[Batch] = []
        self.objects: dict[ObjectKey, KubeObject] = {}

    def deliver(self, batch: Batch) -> None:
        self.batches.append(batch)
        for key, obj in batch.changes.items():
            if obj is None:
                del self.objects[key]
            else:
                self.objects[key] = obj

    def names(self, kind: str) -> set[str]:
        return {key.name for key in self.objects if key.kind == kind}

    def health(self, kind: str) -> Health:
        return next(one.health for one in self.source._watchers if one.kind.kind == kind)

    @property
    def errors(self) -> list[str]:
        return [str(error) for error in self.batches[-1].errors]


@asynccontextmanager
async def watching(server: ApiServer, access: Access | None = None) -> AsyncIterator[Plane]:
    """A source under way."""
    async with KubeClient(access or server.access) as client:
        plane = Plane(KubeSource(client))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plane.source.run, plane.deliver)
            yield plane
            nursery.cancel_scope.cancel()
