"""The root in every namespace: ConfigMap `istio-ca-root-cert`, where workloads and gateways mount it from.

Level-triggered: what should be is compared with what is, whenever a namespace or one of the maps changes.
Every replica does so; as all of them write the same, none has to be elected.
"""

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from istiodlite.kube.client import ApiError, KubeClient
from istiodlite.kube.kinds import WatchedKind
from istiodlite.kube.reading import Reading, key_of, version_of
from istiodlite.kube.reflector import wait_of
from istiodlite.kube.watcher import Watcher
from istiodlite.objects import KubeObject, Namespace, ObjectKey

NAME = "istio-ca-root-cert"
DATA_KEY = "root-cert.pem"
LABEL = ("istio.io/config", "true")
# Nothing runs in these; the last is that of a storage provisioner which Istio leaves out too.
LEFT_OUT = frozenset({"kube-public", "kube-node-lease", "local-path-storage"})

_log = logging.getLogger("istiodlite.ca")
_AT_ONCE = 4
# Seconds without a write after which all counts as calm; writes in a row that look like a quarrel.
_CALM = 120.0
_SUSPICIOUS = 5


@dataclass(frozen=True, slots=True)
class RootMap:
    """A ConfigMap of that name. `body` is what a replacement starts from, so that others' labels stay."""

    root: str
    labelled: bool
    version: str = field(compare=False)
    body: Mapping[str, Any] = field(compare=False, repr=False)


def read_map(kind: WatchedKind, body: Any) -> Reading[RootMap]:
    """Raises Garbled."""
    key, version = key_of(kind, body), version_of(body)
    data = body.get("data")
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    labels = metadata.get("labels")
    labelled = isinstance(labels, dict) and labels.get(LABEL[0]) == LABEL[1]
    root = data.get(DATA_KEY) if isinstance(data, dict) else None
    kept = {"metadata": metadata, "data": data}
    return Reading(key, RootMap(root if isinstance(root, str) else "", labelled, version, kept))


def wants_root(namespace: Namespace) -> bool:
    """Not where nothing runs, and not where everything is being deleted."""
    return namespace.meta.name not in LEFT_OUT and not namespace.meta.deleting


def map_body(namespace: str, root: str, present: RootMap | None) -> dict[str, Any]:
    """The ConfigMap to write: new, or `present` with root and label put right."""
    body = present.body if present is not None else {}
    metadata = {**body.get("metadata", {}), "name": NAME, "namespace": namespace}
    labels = metadata.get("labels")
    metadata["labels"] = {**(labels if isinstance(labels, dict) else {}), LABEL[0]: LABEL[1]}
    data = body.get("data")
    data = {**(data if isinstance(data, dict) else {}), DATA_KEY: root}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


class RootDistribution:
    """`note` hears of namespaces; `run` watches the maps and writes those that are missing or differ."""

    def __init__(
        self,
        client: KubeClient,
        root: Callable[[], bytes],
        *,
        sleep: Callable[[float], Any] = trio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._client, self._root = client, root
        self._sleep, self._draw = sleep, draw
        self._namespaces: set[str] = set()
        self._present: dict[str, RootMap] = {}
        self._busy: set[str] = set()
        # namespace -> (writes in a row, time of the last), to notice others that write too.
        self._writes: dict[str, tuple[int, float]] = {}
        self._listed = False
        self._nursery: trio.Nursery | None = None
        self._turns = trio.CapacityLimiter(_AT_ONCE)
        kind = WatchedKind("ConfigMap", "", ("v1",), "configmaps", selector=f"metadata.name={NAME}")
        self._watcher: Watcher[RootMap] = Watcher(client, kind, read_map, self._on_maps)
        self.written = 0

    def note(self, changes: Mapping[ObjectKey, KubeObject | None]) -> None:
        """Takes namespaces of a batch; other kinds are passed over."""
        for key, obj in changes.items():
            if key.kind != "Namespace":
                continue
            if isinstance(obj, Namespace) and wants_root(obj):
                self._namespaces.add(key.name)
                self._check(key.name)
            else:
                self._namespaces.discard(key.name)
                self._writes.pop(key.name, None)

    def _on_maps(self, changes: Mapping[ObjectKey, RootMap | None]) -> None:
        for key, found in changes.items():
            if found is None:
                self._present.pop(key.namespace, None)
            else:
                self._present[key.namespace] = found
            self._check(key.namespace)
        if not self._listed:
            self._listed = True
            for namespace in self._namespaces:
                self._check(namespace)

    async def run(self) -> None:
        """Endless; cancel to stop."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._watcher.run()

    def describe(self) -> dict[str, Any]:
        """For people."""
        wrong = sorted(name for name in self._namespaces if not self._is_right(name))
        return {"namespaces": len(self._namespaces), "written": self.written, "notYetRight": wrong[:20]}

    def _is_right(self, namespace: str) -> bool:
        found = self._present.get(namespace)
        return found is not None and found.labelled and found.root == self._root().decode()

    def _check(self, namespace: str) -> None:
        # Before the first list of maps is in, all would seem to be missing.
        if self._nursery is None or not self._watcher.health.synced:
            return
        if namespace not in self._namespaces or self._is_right(namespace):
            return
        if namespace in self._busy:
            return
        self._busy.add(namespace)
        self._nursery.start_soon(self._settle, namespace)

    async def _settle(self, namespace: str) -> None:
        """Writes until it is right. Others that keep changing the map are answered ever more slowly."""
        try:
            while namespace in self._namespaces and not self._is_right(namespace):
                count, last = self._writes.get(namespace, (0, 0.0))
                if trio.current_time() - last > _CALM:
                    count = 0
                if count:
                    # Our own write comes back by the watch within this wait.
                    await self._sleep(wait_of(count, self._draw()))
                    if namespace not in self._namespaces or self._is_right(namespace):
                        break
                if count == _SUSPICIOUS:
                    _log.warning(
                        "configmap %s/%s does not stay as written; see whether another istiod runs",
                        namespace,
                        NAME,
                    )
                self._writes[namespace] = (count + 1, trio.current_time())
                async with self._turns:
                    await self._write(namespace)
        finally:
            self._busy.discard(namespace)

    async def _write(self, namespace: str) -> None:
        present = self._present.get(namespace)
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        body = map_body(namespace, self._root().decode(), present)
        try:
            if present is None:
                await self._client.send("POST", path, body)
            else:
                await self._client.send("PUT", f"{path}/{NAME}", body)
            self.written += 1
            _log.info("wrote the root to configmap %s/%s", namespace, NAME)
        except ApiError as error:
            if error.code in (404, 409) or (error.code == 403 and "being terminated" in error.message):
                # The namespace goes, or another replica was first: the watch will tell.
                return
            advice = "; grant create and update on configmaps" if error.code == 403 else ""
            _log.warning("configmap %s/%s not written: %s%s", namespace, NAME, error, advice)
            if error.code == 0:
                self._client.renew()
