"""The local mesh with its real agents and control plane."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemonset.local import cleanup

from .conftest import Mesh, deployment, make_mesh, processes_of, service, sleeper, wait_until

pytestmark = pytest.mark.root

NAMESPACES = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: friend, namespace: shop}
"""
ONLY_FRIENDS = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: friends, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/friend]}}]}]
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    made = make_mesh(tmp_path_factory.mktemp("ambient"))
    made.flags = ("--nodes", "2")
    made.write("namespaces.yaml", NAMESPACES)
    made.write("web.yaml", deployment("web", 2), service("web"))
    made.write(
        "clients.yaml",
        sleeper("friend", "serviceAccountName: friend"),
        sleeper("foe"),
        sleeper("stranger", namespace="outside"),
    )
    try:
        made.up()
        yield made
    finally:
        cleanup.clean(made.name)


def answers(mesh: Mesh, pod: str) -> bool:
    return mesh.get(pod, "http://web.shop/").startswith("web-")


def test_pods_of_both_kinds_reach_the_service(mesh: Mesh) -> None:
    assert {p["name"]: p["enrolled"] for p in mesh.pods("")} == {
        **{p["name"]: True for p in mesh.pods("shop/")},
        "stranger": False,
    }
    for pod in ("shop/friend", "shop/foe", "outside/stranger"):
        assert answers(mesh, pod), pod


def test_readiness_probes_reach_enrolled_pods(mesh: Mesh) -> None:
    assert all(p["ready"] for p in mesh.pods("shop/web-"))


def test_agents_tables_show_the_mesh(mesh: Mesh) -> None:
    workloads = mesh.ctl("workloads").stdout
    assert [line.split()[5] for line in workloads.splitlines() if " friend " in line][:1] == ["HBONE"]
    assert " web " in mesh.ctl("services").stdout
    assert mesh.ctl("connections").returncode == 0
    dumps = json.loads(mesh.ctl("config").stdout)
    assert set(dumps) == {"node1", "node2"}
    assert "PRIVATE KEY" not in json.dumps(dumps)


def test_policy_decides_and_explain_says_the_same(mesh: Mesh) -> None:
    mesh.write("policy.yaml", ONLY_FRIENDS)
    mesh.up()
    wait_until("the policy holds", lambda: not answers(mesh, "shop/foe"))
    assert answers(mesh, "shop/friend")
    foe = mesh.ctl("explain", "--from", "shop/foe", "--to", "web.shop:80")
    friend = mesh.ctl("explain", "--from", "shop/friend", "--to", "web.shop:80")
    assert (foe.returncode, friend.returncode) == (1, 0)
    assert "shop/friends" in foe.stdout
    assert " friends " in mesh.ctl("policies").stdout
    mesh.write("policy.yaml")
    mesh.up()
    wait_until("the policy is gone", lambda: answers(mesh, "shop/foe"))


def test_agent_and_control_plane_come_back_when_killed(mesh: Mesh) -> None:
    state = mesh.status()
    for pid in (state["nodes"]["node1"]["agent"]["pid"], state["istiodlite"]["pid"]):
        os.kill(pid, signal.SIGKILL)
    wait_until("the agent is back", lambda: mesh.status()["nodes"]["node1"]["agent"]["restarts"] == 1)
    wait_until("the control plane is back", lambda: mesh.status()["istiodlite"]["restarts"] == 1)
    wait_until("traffic flows", lambda: all(answers(mesh, p) for p in ("shop/friend", "shop/foe")))
    mesh.up()
    assert "(1 restarts)" in mesh.ctl("status").stdout


def test_down_leaves_no_agent_pin_or_process(mesh: Mesh) -> None:
    mesh.down()
    assert processes_of(mesh) == []
    assert not cleanup.look(mesh.name)
    assert mesh.name not in Path("/proc/mounts").read_text()
