"""What the control plane asks of a place that objects come from."""

from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Protocol

from istiodlite.sources.files import watch
from istiodlite.sources.folder import Batch, Folder


class Source(Protocol):
    """A folder or a cluster. The same objects give the same batches' sum, in whatever order they come."""

    async def run(self, deliver: Callable[[Batch], None]) -> None:
        """Delivers batches until cancelled, the first one complete: nothing is served before it."""

    def age(self) -> float:
        """For how many seconds changes may have been missed; 0 while all is well."""

    def describe(self) -> list[dict[str, Any]]:
        """State of the parts: `resource`, `state`, `ageSeconds` and more, for people and metrics."""


class FolderSource:
    """A folder of manifests."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    async def run(self, deliver: Callable[[Batch], None]) -> None:
        """As of `Source`."""
        async with aclosing(watch(self._folder)) as batches:
            async for batch in batches:
                deliver(batch)

    def age(self) -> float:
        """A folder is always at hand: what cannot be read is an error of its own."""
        return 0.0

    def describe(self) -> list[dict[str, Any]]:
        """As of `Source`."""
        return [
            {
                "resource": str(self._folder.path),
                "state": "current",
                "ageSeconds": 0.0,
                "objects": len(self._folder.objects),
            }
        ]
