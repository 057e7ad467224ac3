"""`ambientctl up` on a changed folder: the difference, and nothing else, is applied live."""

import os
import signal
from pathlib import Path

import pytest

from .conftest import NAMESPACE, Mesh, deployment, service, sleeper, wait_until

pytestmark = pytest.mark.root


def test_unchanged_pods_keep_their_processes_and_addresses(mesh: Mesh) -> None:
    mesh.write("a.yaml", NAMESPACE, sleeper("stays"), deployment("web"), service("web"))
    mesh.up()
    before = mesh.pods("shop/stays")[0]
    mesh.write("b.yaml", sleeper("new"))
    output = mesh.up()
    after = mesh.pods("shop/stays")[0]
    assert (after["uid"], after["addresses"], after["containers"]) == (
        before["uid"],
        before["addresses"],
        before["containers"],
    )
    assert "shop/new: starts" in output
    assert "stays" not in output


def test_rollout_replaces_pods_only_when_successors_are_ready(mesh: Mesh) -> None:
    mesh.write("a.yaml", NAMESPACE, deployment("web", 2, "old"), service("web"), sleeper("client"))
    mesh.up()
    old = {p["name"] for p in mesh.pods("shop/web-")}
    mesh.write("a.yaml", NAMESPACE, deployment("web", 2, "new"), service("web"), sleeper("client"))
    mesh.up()
    assert not old & {p["name"] for p in mesh.pods("shop/web-")}
    assert {mesh.get("shop/client", "http://web/").split()[1] for _ in range(6)} == {"new"}


def test_failed_rollout_keeps_the_old_pods_serving(mesh: Mesh) -> None:
    mesh.write("a.yaml", NAMESPACE, deployment("web", 1, "old"), service("web"), sleeper("client"))
    mesh.up()
    bad = deployment("web", 1, "new").replace("[python3, -c,", "['false', -c,")
    mesh.write("a.yaml", NAMESPACE, bad, service("web"), sleeper("client"))
    done = mesh.ctl("up", "--timeout", "2", str(mesh.folder))
    assert done.returncode == 1
    assert "not ready after 2 s" in done.stderr
    assert mesh.get("shop/client", "http://web/").split()[1] == "old"


def test_scaling_changes_endpoints(mesh: Mesh) -> None:
    mesh.write("a.yaml", NAMESPACE, deployment("web", 1), service("web"))
    mesh.up()
    for replicas in (3, 1):
        mesh.write("a.yaml", NAMESPACE, deployment("web", replicas), service("web"))
        mesh.up()
        assert len(mesh.status()["services"]["shop/web"]["endpoints"]) == replicas * 1


def test_clusterip_stays_when_other_services_come_and_go(mesh: Mesh) -> None:
    mesh.write("a.yaml", NAMESPACE, service("b"))
    mesh.up()
    before = mesh.status()["services"]["shop/b"]["cluster_ips"]
    mesh.write("0.yaml", service("a"), service("c"))
    mesh.up()
    assert mesh.status()["services"]["shop/b"]["cluster_ips"] == before
    mesh.write("0.yaml")
    mesh.up()
    assert list(mesh.status()["services"]) == ["shop/b"]


def test_label_change_of_a_pod_restarts_nothing(mesh: Mesh) -> None:
    mesh.write("a.yaml", NAMESPACE, sleeper("p"))
    mesh.up()
    before = mesh.pods("shop/p")[0]
    mesh.write("a.yaml", NAMESPACE, sleeper("p", labels="{tier: front}"))
    mesh.up()
    assert mesh.pods("shop/p")[0]["uid"] == before["uid"]
    assert mesh.object("pod", "shop", "p")["metadata"]["labels"] == {"tier": "front"}


def test_nodes_come_and_go(mesh: Mesh) -> None:
    mesh.write("a.yaml", NAMESPACE, deployment("web", 2), service("web"), sleeper("client"))
    mesh.up("--nodes", "1")
    assert {p["node"] for p in mesh.pods("shop/")} == {"node1"}
    mesh.write("b.yaml", sleeper("far", "nodeName: other"))
    mesh.up("--nodes", "2")
    assert mesh.get("shop/far", "http://web/").startswith("web-")
    mesh.write("b.yaml")
    mesh.up("--nodes", "1")
    assert list(mesh.status()["nodes"]) == ["node1"]
    assert mesh.get("shop/client", "http://web/").startswith("web-")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("kind: Nonsense\napiVersion: v1\nmetadata: {name: x}", "Nonsense"),
        ("{ not yaml", ""),
        (sleeper("twice") + "\n---\n" + sleeper("twice"), "twice"),
        (service("web").replace("app: web", "app: 5"), "selector"),
        (service("web", "clusterIP: 10.0.0.300"), "10.0.0.300"),
        (sleeper("p", "nodeSelector: {disk: ssd}"), "disk=ssd"),
        (sleeper("p", "serviceAccountName: ghost"), "ghost"),
        ("# " + "x" * (10 << 20), "limit"),
    ],
    ids=["unknown-kind", "syntax", "duplicate", "selector", "address", "no-node", "account", "10-MB"],
)
def test_bad_manifests_change_nothing_and_say_what_to_do(mesh: Mesh, text: str, error: str) -> None:
    mesh.write("a.yaml", NAMESPACE, sleeper("stays"))
    mesh.up()
    before = mesh.status()
    mesh.write("b.yaml", text)
    mesh.write("c.yaml", sleeper("innocent"))
    done = mesh.ctl("up", str(mesh.folder))
    assert done.returncode == 1
    assert error in done.stderr
    assert all(line.startswith("ambientctl: ") for line in done.stderr.splitlines())
    assert mesh.status() == before


def test_bad_manifests_at_the_first_up_leave_nothing(mesh: Mesh) -> None:
    from daemonset.local import cleanup

    mesh.write("a.yaml", NAMESPACE, sleeper("p", "nodeSelector: {disk: ssd}"))
    assert mesh.ctl("up", "--no-mesh", str(mesh.folder)).returncode == 1
    assert not cleanup.look(mesh.name)


def test_crashing_container_is_started_again_and_counted(mesh: Mesh) -> None:
    mesh.write("a.yaml", NAMESPACE, sleeper("p"))
    mesh.up()
    pid = mesh.pods("shop/p")[0]["containers"]["main"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until("restart", lambda: mesh.pods("shop/p")[0]["containers"]["main"]["pid"] not in (0, pid))
    assert mesh.pods("shop/p")[0]["restarts"] == 1


def test_pod_that_never_restarts_ends_as_succeeded_or_failed(mesh: Mesh) -> None:
    never = "restartPolicy: Never"
    mesh.write(
        "a.yaml",
        NAMESPACE,
        sleeper("good", never).replace("[sleep, infinity]", "[echo, done]"),
        sleeper("bad", never).replace("[sleep, infinity]", "[sh, -c, exit 3]"),
    )
    mesh.up()
    assert [p["phase"] for p in (*mesh.pods("shop/good"), *mesh.pods("shop/bad"))] == ["Succeeded", "Failed"]
    assert mesh.ctl("logs", "shop/good").stdout == "done\n"


def test_unready_pod_gets_no_traffic(mesh: Mesh) -> None:
    flag = f"/tmp/{mesh.name}-open"
    gated = deployment("web").replace("httpGet: {port: web}", f"exec: {{command: [test, -e, {flag}]}}")
    mesh.write("a.yaml", NAMESPACE, gated, service("web"), sleeper("client"))
    done = mesh.ctl("up", "--no-mesh", "--timeout", "1", str(mesh.folder))
    assert "not ready" in done.stderr
    assert mesh.exec("shop/client", "curl", "-sS", "--max-time", "5", "http://web/").returncode == 7
    Path(flag).touch()
    try:
        mesh.up()
        assert mesh.get("shop/client", "http://web/").startswith("web-")
    finally:
        Path(flag).unlink()
