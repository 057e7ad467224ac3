"""Our agent's process under Istio's control plane: ready, all pods known, certificates, changes, restarts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop.istiod.objects import Applied
from tests.interop.istiod.process import NAME, Istiod
from tests.interop.istiod.test_protocol import Node
from tests.interop.istiod.test_protocol import node as node
from tests.interop.kube.conftest import Cluster, KubeServing
from tests.support.cni import CniAgent, CniPod
from tests.support.ztunnelprocess import ZtunnelProcess

pytestmark = [pytest.mark.istiod, pytest.mark.root]
PARTS = {"workloads": ("uid",), "services": ("namespace", "hostname"), "policies": ("namespace", "name")}


def launch(folder: Path, plane: Istiod | KubeServing, node: Node, **settings: str) -> ZtunnelProcess:
    folder.mkdir()
    (folder / "root.pem").write_bytes(plane.root())
    (folder / "token").write_text(node.token)
    server = f"https://127.0.0.1:{plane.port}"
    return ZtunnelProcess(
        folder,
        **{
            "NODE_NAME": node.name,
            "POD_NAME": node.pod,
            "XDS_ADDRESS": server,
            "CA_ADDRESS": server,
            "ALT_XDS_HOSTNAME": NAME,
            "ALT_CA_HOSTNAME": NAME,
            "XDS_ROOT_CA": str(folder / "root.pem"),
            "CA_ROOT_CA": str(folder / "root.pem"),
            "AUTH_TOKEN": str(folder / "token"),
            "INPOD_UDS": "",
            **settings,
        },
    )


@pytest.fixture
def agent(istiod: Istiod, node: Node, tmp_path: Path) -> Iterator[ZtunnelProcess]:
    with launch(tmp_path / "under-istiod", istiod, node) as one:
        yield one
        assert "Traceback" not in one.log, one.log


def named(dump: Any, part: str, mark: str) -> dict[str, Any]:
    """The entries that belong to the gold objects, by name."""
    out = {"/".join(one[key] for key in PARTS[part]): one for one in dump[part]}
    return {name: one for name, one in out.items() if mark in name}


def has(agent: ZtunnelProcess, part: str, name: str, mark: str) -> bool:
    dump = agent.dump()
    return dump is not None and name in named(dump, part, mark)


def connections(agent: ZtunnelProcess) -> int:
    return agent.log.count("control plane connected")


def test_it_becomes_ready_and_holds_what_istiod_serves(agent: ZtunnelProcess, gold: Applied) -> None:
    agent.until(agent.ready, "ready under istiod")
    last = f"Kubernetes//Pod/{gold.mark}-strict/open-but"
    agent.until(lambda: has(agent, "workloads", last, gold.mark), "every workload")
    assert "refused" not in agent.log
    assert "error" not in agent.log.replace("error=", "")


def test_it_reads_the_same_from_both(
    agent: ZtunnelProcess, istiodlite: KubeServing, node: Node, gold: Applied, tmp_path: Path
) -> None:
    with launch(tmp_path / "under-istiodlite", istiodlite, node) as other:

        def same() -> bool:
            left, right = agent.dump(), other.dump()
            return bool(left and right) and all(
                len(named(left, part, gold.mark)) > 10
                and named(left, part, gold.mark).keys() == named(right, part, gold.mark).keys()
                for part in PARTS
            )

        agent.until(same, "the same names in both")


def test_certificates_come_by_impersonation(agent: ZtunnelProcess, gold: Applied) -> None:
    wanted = f"spiffe://cluster.local/ns/{gold.mark}-shop/sa/web"

    def held() -> bool:
        dump = agent.dump() or {"certificates": []}
        return {"identity": wanted, "state": "Available"} in [
            {key: one[key] for key in ("identity", "state")} for one in dump["certificates"]
        ]

    agent.until(held, f"a certificate for {wanted}")


def test_a_change_of_an_object_arrives(agent: ZtunnelProcess, cluster: Cluster, gold: Applied) -> None:
    agent.until(agent.ready, "ready under istiod")
    body = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "late", "namespace": f"{gold.mark}-shop"},
        "spec": {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["1"]}}]}]},
    }
    name = f"{gold.mark}-shop/late"
    cluster.put(body)
    agent.until(lambda: has(agent, "policies", name, gold.mark), "the new policy")
    cluster.delete(body)
    agent.until(lambda: not has(agent, "policies", name, gold.mark), "the policy is gone")


def test_it_comes_back_after_istiod_restarted(agent: ZtunnelProcess, istiod: Istiod, gold: Applied) -> None:
    agent.until(agent.ready, "ready under istiod")
    first = connections(agent)
    istiod.stop()
    agent.until(agent.ready, "still ready without control plane")
    istiod.start()
    agent.until(lambda: connections(agent) > first, "connected again")
    last = f"Kubernetes//Pod/{gold.mark}-strict/open-but"
    agent.until(lambda: has(agent, "workloads", last, gold.mark), "everything is still there")


def test_pods_of_the_cni_agent_are_served_with_istiods_identities(
    istiod: Istiod, node: Node, gold: Applied, tmp_path: Path, pod_netns: Path
) -> None:
    cni = CniAgent(tmp_path / "zds.sock")
    pod = CniPod("uid-web", "web-7d9c5b7f6-abcde", f"{gold.mark}-shop", "web", pod_netns)
    cni.pods = {pod.uid: pod}
    try:
        with launch(tmp_path / "fed", istiod, node, INPOD_UDS=str(cni.path)) as agent:
            assert cni.accept() == ["", ""]
            agent.until(agent.ready, "ready with its pods")
            assert set(agent.dump()["workloadState"]) == {pod.uid}
    finally:
        cni.close()
