"""Enrolment as an agent sees it: who, when, in which order. With a stub in the agent's place."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from .conftest import Mesh, processes_of, sleeper, wait_until

pytestmark = pytest.mark.root
STUB = Path(__file__).with_name("stub_agent.py")


def namespace(mode: str = "") -> str:
    label = f"istio.io/dataplane-mode: {mode}" if mode else ""
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{label}}}}}\n"


@pytest.fixture
def stubbed(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> Mesh:
    monkeypatch.setenv("AMBIENT_AGENT_COMMAND", f"{sys.executable} -u {STUB}")
    mesh.flags = ("--nodes", "1")
    return mesh


def seen(mesh: Mesh) -> list[list[str]]:
    """What the agent wrote down: kind, pod, annotation at that time, namespace."""
    lines = mesh.ctl("logs", "ztunnel/node1").stdout.splitlines()
    return [line.split() for line in lines if line.startswith(("add ", "del ", "snapshot_sent "))]


def heard(mesh: Mesh, kind: str) -> list[list[str]]:
    return [line for line in seen(mesh) if line[0] == kind]


def annotation(mesh: Mesh, pod: str) -> str | None:
    found = mesh.object("pod", "shop", pod)["metadata"]["annotations"]
    return found.get("ambient.istio.io/redirection")


def test_labels_of_running_pods_namespace_enrol_and_unenrol_them_in_order(stubbed: Mesh) -> None:
    mesh = stubbed
    mesh.write("ns.yaml", namespace())
    mesh.write("pods.yaml", sleeper("p"), sleeper("out", labels="{istio.io/dataplane-mode: none}"))
    mesh.up()
    before = mesh.pods("shop/p")[0]
    assert heard(mesh, "add") == []

    mesh.write("ns.yaml", namespace("ambient"))
    mesh.up()
    inode = Path("/run/netns", before["netns"]).stat().st_ino
    assert heard(mesh, "add") == [["add", "shop/p", "none", str(inode)]]  # annotated only after the Ack
    assert annotation(mesh, "p") == "enabled"
    assert annotation(mesh, "out") is None
    assert {p["name"]: p["enrolled"] for p in mesh.pods("shop/")} == {"p": True, "out": False}

    mesh.write("ns.yaml", namespace())
    mesh.up()
    assert heard(mesh, "del") == [["del", "shop/p", "none", "0"]]  # the annotation went first
    after = mesh.pods("shop/p")[0]
    assert (after["uid"], after["restarts"], after["enrolled"]) == (before["uid"], 0, False)


def test_no_container_starts_before_its_pod_is_captured(stubbed: Mesh) -> None:
    mesh = stubbed
    mesh.write("ns.yaml", namespace("ambient"))
    mesh.up()
    folder = Path(mesh.object("node", "", "node1")["metadata"]["name"])
    refuse = Path("/run/ambientlite", mesh.name, "nodes", folder, "refuse")
    refuse.touch()
    mesh.write("pods.yaml", sleeper("p"))
    done = mesh.ctl("up", "--timeout", "1", str(mesh.folder))
    assert done.returncode == 1
    assert "enrolment failed: not today" in done.stderr
    pod = mesh.pods("shop/p")[0]
    assert (pod["phase"], pod["ready"], pod["containers"]["main"]["pid"]) == ("Pending", False, 0)
    assert annotation(mesh, "p") == "pending"
    assert "has not started" in mesh.exec("shop/p", "true").stderr
    refuse.unlink()
    mesh.up()  # tried again by itself
    assert mesh.exec("shop/p", "true").returncode == 0
    assert annotation(mesh, "p") == "enabled"


def test_killed_agent_comes_back_and_is_told_everything_again(stubbed: Mesh) -> None:
    mesh = stubbed
    mesh.write("ns.yaml", namespace("ambient"))
    mesh.write("pods.yaml", sleeper("p"), sleeper("q"))
    mesh.up()
    pid = mesh.status()["nodes"]["node1"]["agent"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until("the new agent has its snapshot", lambda: len(heard(mesh, "snapshot_sent")) == 2)
    assert sorted(line[1] for line in heard(mesh, "add")[-2:]) == ["shop/p", "shop/q"]
    assert {line[2] for line in heard(mesh, "add")[-2:]} == {"enabled"}  # peers were told nothing in between
    agent = mesh.status()["nodes"]["node1"]["agent"]
    assert (agent["restarts"], agent["connected"], agent["pid"] != pid) == (1, True, True)


def test_deleted_pod_leaves_the_objects_before_the_agent_lets_go(stubbed: Mesh) -> None:
    mesh = stubbed
    mesh.write("ns.yaml", namespace("ambient"))
    mesh.write("pods.yaml", sleeper("p"))
    mesh.up()
    mesh.write("pods.yaml")
    mesh.up()
    assert heard(mesh, "del") == [["del", "shop/p", "gone", "0"]]
    assert not mesh.pods("shop/p")


def test_agent_that_does_not_start_is_reported(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMBIENT_AGENT_COMMAND", "false")
    mesh.write("pods.yaml", sleeper("p"), namespace())
    done = mesh.ctl("up", "--timeout", "1", str(mesh.folder))
    assert done.returncode == 1
    assert "its agent does not run (ambientctl logs ztunnel/node1)" in done.stderr


def test_successor_that_ends_is_reported_and_the_agent_serves_on(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    command = f'sh -c "if [ -e {broken} ]; then exit 3; fi; exec {sys.executable} -u {STUB}"'
    monkeypatch.setenv("AMBIENT_AGENT_COMMAND", command)
    mesh.flags = ("--nodes", "1")
    mesh.write("ns.yaml", namespace("ambient"))
    mesh.write("pods.yaml", sleeper("p"))
    mesh.up()
    before = mesh.status()["nodes"]["node1"]["agent"]
    broken.touch()
    done = mesh.ctl("upgrade", "node1")
    assert done.returncode == 1
    assert re.search(r"the new agent ended \(3\): see \S+ztunnel-node1\.log", done.stderr), done.stderr
    after = mesh.status()["nodes"]["node1"]["agent"]
    assert (after["pid"], after["connected"]) == (before["pid"], True)
    mesh.write("pods.yaml", sleeper("p"), sleeper("q"))
    mesh.up()
    assert [line[1] for line in heard(mesh, "add")] == ["shop/p", "shop/q"], (
        "who was there is told of new pods"
    )
    broken.unlink()
    assert mesh.ctl("upgrade", "node1").returncode == 0
    assert mesh.status()["nodes"]["node1"]["agent"]["pid"] != before["pid"]


def test_down_removes_agents_pins_and_control_plane(stubbed: Mesh) -> None:
    mesh = stubbed
    mesh.write("ns.yaml", namespace("ambient"))
    mesh.write("pods.yaml", sleeper("p"))
    mesh.up()
    assert any(
        f"/{mesh.name}/nodes/node1/bpf bpf " in line for line in Path("/proc/mounts").read_text().splitlines()
    )
    mesh.down()
    assert mesh.name not in Path("/proc/mounts").read_text()
    assert processes_of(mesh) == []
