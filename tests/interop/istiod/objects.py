"""The objects of objects.yaml: in a cluster under names of their own, or as files for a registry."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.interop.kube.conftest import Cluster
from tests.support.serving import wait_until

Body = dict[str, Any]
FILE = Path(__file__).with_name("objects.yaml")
MARK = "gold"
TERMINATING = "test/terminating"
LATER = "test/later-than"


def bodies(mark: str = MARK, file: Path = FILE, word: str = MARK) -> list[Body]:
    """All of them, `word` in every name and host replaced by `mark`."""
    return list(yaml.safe_load_all(file.read_text().replace(word, mark)))


def as_files() -> str:
    """The same for a registry without API server: what the server would have added is written out."""
    documents = bodies()
    ages = _ages(documents)
    for body in documents:
        meta = body["metadata"]
        meta["creationTimestamp"] = f"2026-01-01T00:00:{ages[_key(body)]:02d}Z"
        if TERMINATING in meta.get("annotations", {}):
            meta["deletionTimestamp"] = "2026-01-02T00:00:00Z"
        if body["kind"] == "Service":
            _default_service(body["spec"])
    return yaml.safe_dump_all(documents)


def _key(body: Body) -> str:
    meta = body["metadata"]
    return f"{body['kind']}/{meta.get('namespace', '')}/{meta['name']}"


def _ages(documents: list[Body]) -> dict[str, int]:
    """Seconds after the first, as `later-than` demands."""
    ages: dict[str, int] = {}
    for body in documents:
        older = body["metadata"].get("annotations", {}).get(LATER)
        ages[_key(body)] = ages[older] + 1 if older else 0
    return ages


def _default_service(spec: Body) -> None:
    address = spec.get("clusterIP", "")
    if "ipFamilies" not in spec and spec.get("type") != "ExternalName":
        spec["ipFamilies"] = ["IPv6" if ":" in address else "IPv4"]


class Applied:
    """The objects of a file in a cluster; `mark` is what their names have instead of `word`."""

    def __init__(self, cluster: Cluster, file: Path = FILE, word: str = MARK) -> None:
        self.cluster, self._file, self.word = cluster, file, word
        self.mark = f"{word}{secrets.token_hex(3)}"
        self._made: list[Body] = []
        self._created: dict[str, str] = {}

    def apply(self) -> None:
        for body in bodies(self.mark, self._file, self.word):
            self._put(body)

    def _put(self, body: Body) -> None:
        meta = body["metadata"]
        if body["kind"] == "EndpointSlice":
            self._point(body)
        self._made.append(body)
        made = self.cluster.put(body)
        older = meta.get("annotations", {}).get(LATER)
        while older and made["metadata"]["creationTimestamp"] <= self._created[older]:
            # Seconds are the finest the API server writes down.
            self.cluster.delete(body)
            made = self.cluster.put(body)
        self._created[_key(body)] = made["metadata"]["creationTimestamp"]
        if TERMINATING in meta.get("annotations", {}):
            answer = self.cluster.http.delete(f"{self.cluster.path(body)}/{meta['name']}")
            assert answer.is_success, answer.text

    def _point(self, body: Body) -> None:
        """Endpoints name pods by the uids that the server gave."""
        for endpoint in body["endpoints"]:
            target = endpoint.get("targetRef", {})
            if target.get("kind") == "Pod":
                path = f"/api/v1/namespaces/{target['namespace']}/pods/{target['name']}"
                target["uid"] = self.cluster.get(path)["metadata"]["uid"]

    def remove(self) -> None:
        for body in reversed(self._made):
            with contextlib.suppress(AssertionError):
                self.cluster.delete(body)


@contextlib.contextmanager
def applied(cluster: Cluster, file: Path = FILE, word: str = MARK) -> Iterator[Applied]:
    """The objects, for as long as this lasts."""
    one = Applied(cluster, file, word)
    try:
        one.apply()
        yield one
    finally:
        one.remove()


def crds_present(cluster: Cluster) -> None:
    """Fails with a word where the cluster lacks a kind that these tests make."""
    wanted = [
        "/apis/networking.istio.io/v1/serviceentries",
        "/apis/security.istio.io/v1/peerauthentications",
        "/apis/gateway.networking.k8s.io/v1/gateways",
    ]
    for path in wanted:
        wait_until(lambda path=path: cluster.get(path), f"{path}: install Istio's and the Gateway API's CRDs")
