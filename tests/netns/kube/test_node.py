"""Own discovery for real: objects in an API server, processes in the kubelet's cgroups, capture in the kernel."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.netns.kube.api import Scripted
from tests.netns.kube.conftest import KubeNode
from tests.support.kubelet import READY, Sandbox

pytestmark = pytest.mark.root
EXCLUDE_INBOUND = "traffic.sidecar.istio.io/excludeInboundPorts"


MANIFEST = Path(__file__).resolve().parents[3] / "daemonset" / "kubernetes" / "base" / "ztunnel.yaml"


def with_capabilities(node: KubeNode, without: str = "") -> None:
    """The agent is started with what the manifest grants, less one."""
    spec = yaml.safe_load(MANIFEST.read_text())["spec"]["template"]["spec"]
    granted = spec["containers"][0]["securityContext"]["capabilities"]["add"]
    assert not without or without in granted
    kept = ",".join(f"+{name.lower()}" for name in granted if name != without)
    node.agent.under = ("setpriv", f"--bounding-set=-all,{kept}", "--inh-caps=-all")
    node.agent.start()


def captured(sandbox: Sandbox) -> bool:
    """Whether the kernel loops what the pod sends (ip rule) and somebody listens for HBONE there."""
    command = ["ip", "netns", "exec", sandbox.netns.name]
    rules = subprocess.run([*command, "ip", "rule"], capture_output=True, text=True, check=True, timeout=60)
    listens = subprocess.run([*command, "ss", "-Hltn", "sport = :15008"], capture_output=True, check=True)
    return "fwmark" in rules.stdout and bool(listens.stdout)


def held(sandbox: Sandbox, pid: int) -> bool:
    """Whether a process has the pod's network namespace open."""
    wanted = os.stat(sandbox.netns).st_ino
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.stat(entry).st_ino == wanted:
                return True
        except FileNotFoundError:
            continue
    return False


def test_pods_that_ran_before_the_agent_are_found_by_either_drivers_names(node: KubeNode) -> None:
    node.label("ambient")
    systemd, cgroupfs = node.run("systemd"), node.run("cgroupfs", driver="cgroupfs")
    node.run("own", mode="none")
    node.run("hosted", hostNetwork=True)
    node.run("sidecar", annotations={"sidecar.istio.io/status": "{}"})
    node.agent.start()
    node.until_in("systemd", "cgroupfs")
    assert node.enrolled().keys() == {"systemd", "cgroupfs"}
    assert captured(systemd)
    assert captured(cgroupfs)
    assert [node.status(name) for name in ("own", "hosted", "sidecar")] == ["", "", ""]
    node.agent.until(node.agent.ready, "ready")
    assert "enrolment: kubernetes (by setting): 2 in, 0 waiting\n" in node.agent.readiness()


def test_a_new_pod_is_in_before_the_api_server_knows_its_address(node: KubeNode) -> None:
    node.label("ambient")
    node.agent.start()
    node.agent.until(node.agent.ready, "ready without pods")
    uid = node.api.put(node.body("late"))["metadata"]["uid"]
    node.agent.until(lambda: "1 waiting" in node.agent.readiness(), "it waits for the sandbox")
    waiting = node.agent.page("/enrolment")["waiting"]
    assert waiting == {f"{node.api.namespace}/late": "it has no cgroup yet"}
    assert node.agent.ready(), "a pod that has not started yet is no reason not to be"
    sandbox = node.kubelet.sandbox(uid)
    node.until_in("late")
    assert captured(sandbox)


def test_labels_of_namespace_and_pod_count_live(node: KubeNode) -> None:
    node.label("")
    sandbox = node.run("web")
    node.agent.start()
    node.agent.until(node.agent.ready, "ready")
    assert not captured(sandbox)
    node.label("ambient")
    node.until_in("web")
    assert captured(sandbox)
    node.api.put(node.body("web", ip=sandbox.address, mode="none"))
    node.until_out("web")
    node.agent.until(lambda: node.status("web") == "", "the annotation is gone")
    node.agent.until(lambda: not captured(sandbox), "its network is as it was")
    node.label("")
    node.api.put(node.body("web", ip=sandbox.address, mode="ambient"))
    node.until_in("web")


def test_annotations_are_followed_in_place(node: KubeNode) -> None:
    sandbox = node.run("gate", mode="ambient", annotations={EXCLUDE_INBOUND: "7000"})
    node.agent.start()
    node.until_in("gate")
    enrolled = f'pod enrolled\tpod="{node.api.namespace}/gate"'
    node.agent.until(lambda: 'exclude_inbound="7000"' in node.agent.log, "read at the start")
    again = {EXCLUDE_INBOUND: "7000,7001"}
    node.api.put(node.body("gate", ip=sandbox.address, mode="ambient", annotations=again))
    node.agent.until(lambda: 'exclude_inbound="7000,7001"' in node.agent.log, "and followed")
    assert node.agent.log.count(enrolled) == 1
    bad = {EXCLUDE_INBOUND: "http"}
    node.api.put(node.body("gate", ip=sandbox.address, mode="ambient", annotations=bad))
    node.agent.until(lambda: "'http' is not a port" in node.agent.log, "what has no effect is said")
    problems = node.agent.page("/enrolment")["problems"]
    assert "'http' is not a port" in problems[f"{node.api.namespace}/gate"][0]


def test_a_process_that_visits_another_network_does_not_mislead(node: KubeNode) -> None:
    visitor, visited = node.run("visitor", mode="ambient"), node.run("visited")
    visitor.run(READY, netns=visited.netns)
    node.agent.start()
    node.until_in("visitor")
    assert captured(visitor)
    assert not captured(visited)


def test_a_sandbox_made_anew_is_enrolled_again(node: KubeNode) -> None:
    node.label("ambient")
    first = node.run("web")
    node.agent.start()
    node.until_in("web")
    second = node.kubelet.sandbox(first.uid)
    node.kubelet.stop(first)
    node.agent.until(lambda: captured(second), "the new network, while the API server tells the old address")
    assert node.enrolled()["web"] == first.uid


def test_a_pod_of_the_same_name_is_another_pod(node: KubeNode) -> None:
    node.label("ambient")
    first = node.run("web")
    node.agent.start()
    node.until_in("web")
    node.kubelet.stop(first)
    node.api.delete(node.body("web"))
    second = node.run("web")
    assert second.uid != first.uid
    node.agent.until(lambda: node.enrolled().get("web") == second.uid, "the second one is in")
    node.until_in("web")
    assert captured(second)


def test_a_deleted_pod_stays_captured_while_it_runs_and_leaves_nothing(node: KubeNode) -> None:
    node.label("ambient")
    sandbox, other = node.run("web"), node.run("other")
    node.agent.start()
    node.until_in("web", "other")
    node.api.delete(node.body("web"))
    node.api.delete(node.body("other"))
    node.kubelet.stop(other)
    node.until_out("other")
    assert "web" in node.enrolled(), "deleted by force: its processes still run"
    assert captured(sandbox)
    sandbox.pause.kill()
    node.until_out("web")
    assert node.agent.process is not None
    pid = node.agent.process.pid
    node.agent.until(lambda: not held(sandbox, pid), "its namespace is let go")


def test_a_pod_that_has_ended_leaves(node: KubeNode) -> None:
    node.label("ambient")
    sandbox = node.run("job")
    node.agent.start()
    node.until_in("job")
    done = node.body("job", ip=sandbox.address)
    node.api.put({**done, "status": {**done["status"], "phase": "Succeeded"}})
    node.until_out("job")
    node.agent.until(lambda: not captured(sandbox), "its network is as it was")


def test_an_agent_that_was_killed_finds_its_pods_again(node: KubeNode) -> None:
    node.label("ambient")
    sandbox = node.run("web")
    gone = node.run("gone")
    node.agent.start()
    node.until_in("web", "gone")
    node.agent.kill()
    node.api.delete(node.body("gone"))
    node.kubelet.stop(gone)
    assert node.status("web") == "enabled"
    node.agent.start()
    node.until_in("web")
    assert captured(sandbox)
    node.agent.until(lambda: "former pods released" in node.agent.log, "the other one is given up")
    assert node.enrolled().keys() == {"web"}


@pytest.mark.parametrize("api", ["scripted"], indirect=True)  # a cluster is not ours to stop
def test_without_the_api_server_everything_stays_and_new_pods_wait(node: KubeNode) -> None:
    assert isinstance(node.api, Scripted)
    node.label("ambient")
    first = node.run("first")
    node.agent.start()
    node.until_in("first")
    uid = node.api.put(node.body("second"))["metadata"]["uid"]
    node.agent.until(lambda: "1 waiting" in node.agent.readiness(), "it is known")
    with node.api.away():
        node.agent.until(lambda: "API server has not been heard for" in node.agent.readiness(), "said so")
        second = node.kubelet.sandbox(uid)
        node.agent.until(lambda: "second" in node.enrolled(), "what is known is done")
        assert captured(first)
        assert captured(second)
        assert node.agent.ready()
    node.agent.until(lambda: "not been heard" not in node.agent.readiness(), "heard again")
    node.run("third")
    node.until_in("first", "second", "third")


def test_the_manifests_capabilities_are_enough(node: KubeNode) -> None:
    node.label("ambient")
    sandbox = node.run("web")
    with_capabilities(node)
    node.until_in("web")
    assert captured(sandbox)


def test_without_leave_to_look_at_processes_it_says_what_to_grant(node: KubeNode) -> None:
    node.label("ambient")
    sandbox = node.run("web")
    with_capabilities(node, without="SYS_PTRACE")
    reason = (
        "its processes may not be looked at; grant the agent SYS_PTRACE and an unconfined AppArmor profile"
    )
    waiting = {f"{node.api.namespace}/web": reason}
    node.agent.until(lambda: (node.agent.page("/enrolment") or {}).get("waiting") == waiting, "it says so")
    assert not captured(sandbox)


def test_a_successor_decides_alone_and_takes_the_pods_over(node: KubeNode) -> None:
    node.label("ambient")
    sandbox = node.run("web")
    node.agent.environ["AMBIENT_TAKEOVER"] = "true"
    node.agent.start()
    node.until_in("web")
    old = node.agent.process
    assert old is not None
    node.agent.start()
    node.agent.until(lambda: "a successor decides about pods" in node.agent.log, "the old one keeps still")
    late = node.run("late")
    enrolled = 'pod enrolled\tpod="{}/{}"'.format
    node.agent.until(lambda: enrolled(node.api.namespace, "late") in node.agent.log, "the late one is in")
    node.agent.until(lambda: node.agent.log.count("pods listed") == 2, "the successor has all")
    node.api.put(node.body("late", ip=late.address, mode="none"))
    node.agent.until(lambda: not captured(late), "and lets them go")
    old.terminate()
    assert old.wait(60) == 0
    node.until_in("web")
    assert captured(sandbox)
    assert node.enrolled().keys() == {"web"}
    assert node.status("late") == ""
    assert node.agent.log.count(enrolled(node.api.namespace, "late")) == 1
    assert node.agent.log.count(enrolled(node.api.namespace, "web")) == 2


def test_a_pod_that_cannot_be_captured_says_so_until_it_can(node: KubeNode) -> None:
    node.label("ambient")
    good, bad = node.run("good"), node.run("bad", mode="none")
    lo_of(bad, "down")
    node.agent.start()
    node.until_in("good")
    node.api.put(node.body("bad", ip=bad.address))
    node.agent.until(lambda: node.status("bad") == "pending", "what failed shows on the pod")
    assert not node.agent.ready()
    node.agent.until(lambda: "set lo up in the pod" in node.agent.log, "what to do")
    lo_of(bad, "up")
    node.until_in("good", "bad")
    assert captured(good)
    assert captured(bad)
    node.agent.until(node.agent.ready, "ready")


def lo_of(sandbox: Sandbox, state: str) -> None:
    subprocess.run(["ip", "-n", sandbox.netns.name, "link", "set", "lo", state], check=True, timeout=60)


def test_pods_are_not_written_on_where_that_is_not_wanted(node: KubeNode) -> None:
    node.agent.environ["AMBIENT_POD_STATUS"] = "false"
    node.label("ambient")
    before, bad = node.run("before"), node.run("bad")
    lo_of(bad, "down")
    node.agent.start()
    node.agent.until(lambda: captured(before), "it is in")
    node.agent.until(lambda: "set lo up in the pod" in node.agent.log, "the other cannot be")
    late = node.run("late")
    node.agent.until(lambda: captured(late), "one that came later is, too")
    node.agent.stop()
    assert [node.status(name) for name in ("before", "bad", "late")] == ["", "", ""]


@pytest.mark.parametrize("api", ["scripted"], indirect=True)  # a cluster is not ours to stop
def test_an_agent_that_starts_without_the_api_server_leaves_pods_captured(node: KubeNode) -> None:
    assert isinstance(node.api, Scripted)
    node.label("ambient")
    sandbox = node.run("web")
    node.agent.start()
    node.until_in("web")
    node.agent.kill()
    with node.api.away():
        node.agent.start()
        node.agent.until(lambda: "pods are not listed yet" in node.agent.readiness(), "it says so")
        assert not node.agent.ready()
        rules = subprocess.run(
            ["ip", "-n", sandbox.netns.name, "rule"], capture_output=True, text=True, check=True
        )
        assert "fwmark" in rules.stdout, "nothing goes out in clear"
    node.until_in("web")
    assert captured(sandbox)
