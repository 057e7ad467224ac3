"""A real `istiodlite serve` process for each test, on a folder of its own."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from istiodlite.ca.authority import Authority
from istiodlite.ca.caller import Caller
from istiodlite.ca.tokens import load_or_create_token_key, mint
from tests.interop.control.agent import Agent
from tests.support.serving import Serving


class ControlPlane(Serving):
    """The process, its folder of objects and its status port."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        super().__init__(directory / "log")
        self.objects, self.data = directory / "objects", directory / "data"
        self.objects.mkdir(exist_ok=True)
        self.arguments = arguments

    def start(self) -> ControlPlane:
        self.launch("--objects", str(self.objects), "--data", str(self.data), *self.arguments)
        return self

    def json(self, path: str) -> Any:
        return json.loads(self.get(path)[1])

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else 0.0

    def put(self, *documents: dict[str, Any], file: str | None = None) -> None:
        """Writes objects as the supervisor does: one file an object, replaced atomically."""
        for document in documents:
            meta = document["metadata"]
            name = file or f"{document['kind'].lower()}.{meta.get('namespace', '')}.{meta['name']}.yaml"
            temporary = self.objects / f".{name}.tmp"
            temporary.write_text(yaml.safe_dump(document))
            temporary.rename(self.objects / name)

    def delete(self, document: dict[str, Any]) -> None:
        meta = document["metadata"]
        (
            self.objects / f"{document['kind'].lower()}.{meta.get('namespace', '')}.{meta['name']}.yaml"
        ).unlink()

    def token(
        self,
        pod: str = "ztunnel-n1",
        uid: str = "uid-ztunnel-n1",
        node: str = "n1",
        namespace: str = "istio-system",
        service_account: str = "ztunnel",
    ) -> str:
        caller = Caller(namespace, service_account, pod, uid, node)
        return mint(load_or_create_token_key(self.data), caller, datetime.datetime.now(datetime.UTC))

    def root(self) -> bytes:
        return Authority.load_or_create(self.data, "cluster.local").roots_pem

    def agent(self, **fields: Any) -> Agent:
        return Agent(
            f"127.0.0.1:{self.port}", self.root(), fields.pop("token", None) or self.token(), **fields
        )


def pod(namespace: str, name: str, ip: str, node: str = "n1", **more: Any) -> dict[str, Any]:
    """A running, ready, enrolled pod whose account and label `app` are its name."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "labels": {"app": name},
            "annotations": {"ambient.istio.io/redirection": "enabled"},
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": more.get("account", name),
            "hostNetwork": more.get("host_network", False),
            "containers": [{"name": "c", "ports": [{"containerPort": 8080, "name": "http"}]}],
        },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def agent_pod(node: str) -> dict[str, Any]:
    return pod("istio-system", f"ztunnel-{node}", "10.0.0.1", node, account="ztunnel", host_network=True)


def service(namespace: str, name: str, vip: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "clusterIP": vip,
            "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    }


def policy(namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlPlane]:
    """Two nodes' worth of a small shop, served."""
    plane = ControlPlane(tmp_path)
    plane.put(agent_pod("n1"), agent_pod("n2"))
    plane.put(pod("shop", "web", "10.1.0.5"), pod("shop", "db", "10.1.1.6", "n2"))
    plane.put(service("shop", "web", "10.96.0.10"))
    plane.start()
    yield plane
    assert plane.stop() == 0, plane.log
    assert "Traceback" not in plane.log, plane.log
