"""The API server of a test: a scripted one in a thread, or the cluster that $KUBECONFIG names. Both are told objects by
`put` and give the agent a kubeconfig."""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import trio
import yaml

from istiodlite.kube.access import Access
from tests.interop.kube.conftest import Cluster
from tests.unit.istiodlite.kube.apiserver import TOKEN, ApiServer

Body = dict[str, Any]
T = TypeVar("T")


class Api(Protocol):
    """`namespace` is a fresh one; bodies are whole objects."""

    namespace: str
    kubeconfig: Path

    def put(self, body: Body) -> Body: ...
    def delete(self, body: Body) -> None: ...
    def pod(self, name: str) -> Body | None: ...


def write_kubeconfig(path: Path, access: Access, user: Body) -> None:
    """For one server and user; the CA beside it."""
    where: Body = {"server": access.server}
    if access.authority is not None:
        ca = path.with_suffix(".ca")
        ca.write_bytes(access.authority.read())
        where["certificate-authority"] = str(ca)
    config = {
        "current-context": "x",
        "clusters": [{"name": "x", "cluster": where}],
        "users": [{"name": "x", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    }
    path.write_text(yaml.safe_dump(config))


class Scripted:
    """The replaying server; `away` takes it off the network for a while."""

    def __init__(self, folder: Path) -> None:
        self.namespace = "shop"
        self.kubeconfig = folder / "kubeconfig"
        self._server = ApiServer(folder)
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken
        self._present: trio.Event
        self._thread = threading.Thread(target=trio.run, args=(self._run,))
        self._thread.start()
        assert self._ready.wait(60)
        write_kubeconfig(self.kubeconfig, self._server.access, {"token": TOKEN})

    async def _run(self) -> None:
        self._token, self._over = trio.lowlevel.current_trio_token(), trio.Event()
        while not self._over.is_set():
            self._leave, self._back = trio.Event(), trio.Event()
            async with self._server.serve():
                self._ready.set()
                await self._leave.wait()
            self._ready.clear()
            if not self._over.is_set():
                await self._back.wait()

    def _call(self, function: Callable[[], T]) -> T:
        return trio.from_thread.run_sync(function, trio_token=self._token)

    def put(self, body: Body) -> Body:
        def put() -> Body:
            meta = body["metadata"]
            known = self._server.objects[f"/api/v1/{body['kind'].lower()}s"].get(
                (meta.get("namespace", ""), meta["name"])
            )
            before = known["metadata"] if known else {}
            kept = {"uid": before.get("uid", str(uuid.uuid4()))}
            status = before.get("annotations", {}).get("ambient.istio.io/redirection")
            annotations = dict(meta.get("annotations", {}))
            if status:
                annotations["ambient.istio.io/redirection"] = status  # applied by others: stays
            return self._server.put({**body, "metadata": {**meta, **kept, "annotations": annotations}})

        return copy.deepcopy(self._call(put))

    def delete(self, body: Body) -> None:
        meta = body["metadata"]
        self._call(lambda: self._server.delete(body["kind"], meta.get("namespace", ""), meta["name"]))

    def pod(self, name: str) -> Body | None:
        pods = self._server.objects["/api/v1/pods"]
        return copy.deepcopy(self._call(lambda: pods.get((self.namespace, name))))

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody answers at its port."""
        self._call(self._leave.set)
        yield
        self._call(self._back.set)
        assert self._ready.wait(60)

    def close(self) -> None:
        self._call(self._over.set)
        self._call(self._leave.set)
        self._thread.join(60)


class Real:
    """The cluster; the agent has the rights of its service account and a token bound to its pod, as from a kubelet."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.cluster = cluster
        self.namespace = cluster.namespace()
        self.node = f"{self.namespace}-node"
        self.kubeconfig = folder / "kubeconfig"
        for kind in ("default", "client", "guest", "server"):
            self.put({"kind": "ServiceAccount", "metadata": {"name": kind}})
        cluster.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.node}})
        self.agent = cluster.put(self.agent_body())
        token = cluster.token("istio-system", "ztunnel", pod=self.agent)
        write_kubeconfig(self.kubeconfig, cluster.access, {"token": token})

    def agent_body(self) -> Body:
        meta = {"name": f"ztunnel-{self.namespace}", "namespace": "istio-system"}
        spec = {
            "nodeName": self.node,
            "serviceAccountName": "ztunnel",
            "hostNetwork": True,
            "containers": [{"name": "c", "image": "none"}],
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": spec,
            "status": {"phase": "Running"},
        }

    def put(self, body: Body) -> Body:
        namespaced = {} if body["kind"] == "Namespace" else {"namespace": self.namespace}
        return self.cluster.put({"apiVersion": "v1", **body, "metadata": {**body["metadata"], **namespaced}})

    def delete(self, body: Body) -> None:
        self.cluster.delete({"apiVersion": "v1", **body})

    def pod(self, name: str) -> Body | None:
        found: Body | None = self.cluster.get(f"/api/v1/namespaces/{self.namespace}/pods/{name}")
        return found

    def close(self) -> None:
        """Nobody but us removes what is in a namespace, and other tests use the same addresses."""
        for one in self.cluster.get(f"/api/v1/namespaces/{self.namespace}/pods")["items"]:
            self.delete({**one, "kind": "Pod"})
        self.cluster.delete(self.agent)
