"""A running mesh's network, names, ClusterIPs and commands, as pods and users see them."""

import json
import subprocess
from pathlib import Path

import pytest

from .conftest import Mesh

pytestmark = pytest.mark.root


@pytest.mark.parametrize("pod", ["shop/one", "shop/two"])
@pytest.mark.parametrize("family", ["-4", "-6"])
def test_clusterip_is_reached_by_service_name_from_every_node(shop: Mesh, pod: str, family: str) -> None:
    names = {shop.get(pod, "http://web/", family).split()[0] for _ in range(12)}
    assert names == {p["name"] for p in shop.pods("shop/web-")}


@pytest.mark.parametrize("host", ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local"])
def test_service_resolves_under_every_usual_name(shop: Mesh, host: str) -> None:
    done = shop.exec("shop/one", "getent", "ahostsv4", host)
    assert done.stdout.split()[0] == shop.status()["services"]["shop/web"]["cluster_ips"][0]


def test_headless_service_resolves_to_its_ready_pods(shop: Mesh) -> None:
    done = shop.exec("shop/one", "getent", "ahostsv4", "web-all")
    assert {line.split()[0] for line in done.stdout.splitlines()} == {
        p["addresses"][0] for p in shop.pods("shop/web-")
    }


def test_unknown_name_is_denied_at_once(shop: Mesh) -> None:
    assert "Could not resolve host" in shop.get("shop/one", "http://nonesuch.example/")


@pytest.mark.parametrize("url", ["http://web:81/", "http://nobody/", "http://10.99.1.2/"])
def test_port_or_service_that_nobody_serves_refuses_at_once(shop: Mesh, url: str) -> None:
    done = shop.exec("shop/one", "curl", "-sS", "--max-time", "5", url)
    assert done.returncode == 7, done.stderr  # refused or unreachable, not a time-out (28)


def test_clusterip_works_from_the_node_itself(shop: Mesh) -> None:
    state = shop.status()
    netns, address = state["nodes"]["n1"]["netns"], state["services"]["shop/web"]["cluster_ips"][0]
    command = ["ip", "netns", "exec", netns, "curl", "-sS", "--max-time", "5", f"http://{address}/"]
    assert subprocess.run(command, capture_output=True, text=True).stdout.startswith("web-")


def test_pod_reaches_itself_through_its_own_service(shop: Mesh) -> None:
    pod = shop.pods("shop/web-")[0]
    answers = {shop.get(f"shop/{pod['name']}", "http://web/").split()[0] for _ in range(12)}
    assert pod["name"] in answers


def test_probes_come_from_the_nodes_address(shop: Mesh) -> None:
    pod = shop.pods("shop/web-")[0]
    node = shop.status()["nodes"][pod["node"]]
    log = shop.ctl("logs", f"shop/{pod['name']}").stdout
    assert node["addresses"][0] in log


def test_exec_has_the_programs_exit_status(shop: Mesh) -> None:
    assert shop.exec("shop/one", "sh", "-c", "exit 7").returncode == 7
    assert shop.exec("shop/one", "true").returncode == 0
    missing = shop.exec("shop/one", "no-such-program")
    assert missing.returncode == 127
    assert missing.stderr.count("\n") == 1


def test_exec_takes_standard_input_and_sees_the_pods_place(shop: Mesh) -> None:
    done = shop.exec("one", "sh", "-c", "hostname; ip -4 -o addr show eth0; grep :: /proc/self/cgroup")
    assert done.stdout.startswith("one\n")
    pod = shop.pods("shop/one")[0]
    assert pod["addresses"][0] in done.stdout
    assert f"/ambientlite/{shop.name}/n1/pods/shop.one/main" in done.stdout


def test_deployment_name_stands_for_one_of_its_pods(shop: Mesh) -> None:
    assert shop.exec("shop/web", "hostname").stdout.startswith("web-")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("exec", "shop/none", "--", "true"), "there is no pod shop/none"),
        (("exec", "shop/one", "-c", "side", "--", "true"), "has no container side"),
        (("exec", "shop/one"), "what is to be run"),
        (("logs", "ztunnel/n9"), "there is no node"),
        (("explain", "--from", "shop/one", "--to", "web:80"), "runs without agents"),
    ],
)
def test_mistakes_give_one_line_and_a_status(shop: Mesh, words: tuple[str, ...], error: str) -> None:
    done = shop.ctl(*words)
    assert done.returncode != 0
    assert error in done.stderr
    assert done.stderr.count("\n") == 1


def test_status_lists_nodes_pods_and_services(shop: Mesh) -> None:
    text = shop.ctl("status").stdout
    for expected in ("n1", "n2", "Running", "web", "10."):
        assert expected in text


def test_objects_are_written_as_a_cluster_would_have_them(shop: Mesh) -> None:
    pod = shop.pods("shop/web-")[0]
    obj = shop.object("pod", "shop", pod["name"])
    assert obj["spec"]["nodeName"] == pod["node"]
    assert [ip["ip"] for ip in obj["status"]["podIPs"]] == pod["addresses"]
    assert {"type": "Ready", "status": "True"} in obj["status"]["conditions"]
    owner = obj["metadata"]["ownerReferences"][0]
    assert owner["kind"] == "ReplicaSet"
    assert pod["name"].startswith(owner["name"] + "-")
    assert (
        shop.object("service", "shop", "web")["spec"]["clusterIPs"]
        == shop.status()["services"]["shop/web"]["cluster_ips"]
    )


def test_objects_folder_is_accepted_by_the_control_planes_reader(shop: Mesh) -> None:
    from istiodlite.manifests import load_folder

    loaded, errors = load_folder(Path("/run/ambientlite") / shop.name / "objects")
    assert errors == []
    assert {item.key.kind for item in loaded} >= {"Pod", "Node", "Namespace", "Service", "Deployment"}


def test_no_process_of_a_pod_outlives_its_container(shop: Mesh) -> None:
    pod = shop.pods("shop/two")[0]
    group = Path(pod["cgroup"]) / "main" / "cgroup.procs"
    assert len(group.read_text().split()) == 1
    done = shop.exec("shop/two", "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo started")
    assert done.stdout == "started\n"
    assert len(group.read_text().split()) == 2  # it is in the container's group, and goes with it
    assert json.loads((Path("/run/ambientlite") / shop.name / "state.json").read_text())["mesh"] == shop.name
