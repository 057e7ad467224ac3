"""A node under own discovery: API server, stand-in kubelet, agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop.kube.conftest import cluster, serving  # noqa: F401 - fixtures
from tests.netns.kube.api import Api, Body, Real, Scripted
from tests.support.kubelet import Kubelet, Sandbox, kubelet
from tests.support.ztunnelprocess import ZtunnelProcess

REDIRECTION = "ambient.istio.io/redirection"
MODE = "istio.io/dataplane-mode"


class KubeNode:
    """What tests do with it. Pods are those of the API's namespace on this node."""

    def __init__(self, api: Api, kubelet: Kubelet, agent: ZtunnelProcess, name: str) -> None:
        self.api, self.kubelet, self.agent, self.name = api, kubelet, agent, name

    def label(self, mode: str) -> None:
        """The namespace's mode."""
        labels = {MODE: mode} if mode else {}
        self.api.put({"kind": "Namespace", "metadata": {"name": self.api.namespace, "labels": labels}})

    def body(self, name: str, *, mode: str = "", annotations: Any = None, ip: str = "", **spec: Any) -> Body:
        labels = {MODE: mode} if mode else {}
        meta = {"name": name, "namespace": self.api.namespace, "labels": {"app": name, **labels}}
        if annotations:
            meta["annotations"] = annotations
        made: Body = {"kind": "Pod", "metadata": meta}
        made["spec"] = {"nodeName": self.name, "containers": [{"name": "c", "image": "none"}], **spec}
        if ip:
            ready = [{"type": "Ready", "status": "True"}]
            made["status"] = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": ready}
        return made

    def run(self, name: str, *, driver: str = "systemd", **fields: Any) -> Sandbox:
        """A pod that runs and of which the API server has been told all."""
        uid = self.api.put(self.body(name, **fields))["metadata"]["uid"]
        sandbox = self.kubelet.sandbox(uid, driver, host_network=bool(fields.get("hostNetwork")))
        self.api.put(self.body(name, ip=sandbox.address, **fields))
        return sandbox

    def enrolled(self) -> dict[str, str]:
        """Uid of each pod that the agent has, by name."""
        state = (self.agent.dump() or {}).get("workloadState", {})
        return {one["info"]["name"]: uid for uid, one in state.items()}

    def status(self, name: str) -> str:
        pod = self.api.pod(name)
        return "" if pod is None else str(pod["metadata"].get("annotations", {}).get(REDIRECTION, ""))

    def until_in(self, *names: str) -> None:
        """Enrolled, and written on the pods."""
        self.agent.until(lambda: set(names) <= self.enrolled().keys(), f"{names} are in")
        self.agent.until(lambda: all(self.status(n) == "enabled" for n in names), f"{names} say so")

    def until_out(self, name: str) -> None:
        self.agent.until(lambda: name not in self.enrolled(), f"{name} is out")


@pytest.fixture(params=["scripted", pytest.param("cluster", marks=pytest.mark.kube)])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Api]:
    made: Scripted | Real
    if request.param == "scripted":
        made = Scripted(tmp_path)
    else:
        made = Real(tmp_path, request.getfixturevalue("cluster"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def node(api: Api, tmp_path: Path) -> Iterator[KubeNode]:
    """Without control plane; the agent does not run yet."""
    name = getattr(api, "node", "n1")
    folder = tmp_path / "agent"
    folder.mkdir()
    settings = {
        "NODE_NAME": name,
        "XDS_ADDRESS": "",
        "AMBIENT_ENROL": "kubernetes",
        "KUBECONFIG": str(api.kubeconfig),
    }
    agent = ZtunnelProcess(folder, **settings)
    agent.prepare()
    try:
        with kubelet(agent.cgroup) as kube:
            yield KubeNode(api, kube, agent, name)
            if agent.process is not None:
                agent.stop()
    finally:
        agent.clear()
    assert "Traceback" not in agent.log, agent.log
