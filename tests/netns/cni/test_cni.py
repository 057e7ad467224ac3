"""Snapshot, acknowledgements, changes and reconnects, with the agent's process and real namespaces."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cni import CniAgent, CniPod, Connection
from tests.support.ztunnelprocess import ZtunnelProcess

pytestmark = pytest.mark.root
MakePod = Callable[..., CniPod]
HBONE = 15008


def listens(netns: Path | None) -> bool:
    """Whether something in the namespace listens for HBONE."""
    assert netns is not None
    command = ["ip", "netns", "exec", netns.name, "ss", "-Hltn", f"sport = :{HBONE}"]
    return bool(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)


def enrolled(agent: ZtunnelProcess) -> set[str]:
    return set((agent.dump() or {}).get("workloadState", {}))


def test_a_snapshot_enrols_its_pods_before_it_answers(
    agent: ZtunnelProcess, cni: CniAgent, pod: MakePod
) -> None:
    first, second = pod("first"), pod("second")
    cni.pods = {one.uid: one for one in (first, second)}
    agent.until(lambda: agent.dump() is not None, "an admin page")
    assert not agent.ready(), "it was not told its pods yet"
    assert cni.accept() == ["", "", ""]
    assert listens(first.netns)
    assert listens(second.netns)
    assert enrolled(agent) == {"uid-first", "uid-second"}
    agent.until(agent.ready, "ready after the snapshot")
    assert cni.connections[0].alive()


def test_pods_come_and_go_after_the_snapshot(agent: ZtunnelProcess, cni: CniAgent, pod: MakePod) -> None:
    cni.accept()
    late = pod("late")
    assert [cni.add(late), cni.add(late)] == ["", ""], "the same Add again changes nothing"
    assert listens(late.netns)
    assert cni.delete(late.uid) == [""]
    agent.until(lambda: not listens(late.netns), "no listener after Del")
    assert enrolled(agent) == set()
    assert cni.add(pod("other")) == ""
    # The log is written behind: what came before the last line is complete.
    agent.until(lambda: "shop/other" in agent.log, "the last pod's line")
    assert agent.log.count('pod enrolled\tpod="shop/late"') == 1, "it was enrolled once"


def test_a_uid_in_another_namespace_moves_there(agent: ZtunnelProcess, cni: CniAgent, pod: MakePod) -> None:
    old = pod("one")
    new = pod("one")
    cni.accept()
    assert [cni.add(old), cni.add(new)] == ["", ""]
    assert listens(new.netns)
    agent.until(lambda: not listens(old.netns), "the old namespace is left")
    assert enrolled(agent) == {"uid-one"}


def test_a_restarted_cni_agent_keeps_what_it_names_without_namespace(
    agent: ZtunnelProcess, cni: CniAgent, pod: MakePod
) -> None:
    kept, forgotten = pod("kept"), pod("forgotten")
    cni.pods = {one.uid: one for one in (kept, forgotten)}
    cni.accept()
    cni.close()
    agent.until(lambda: not agent.ready(), "not ready without CNI agent")
    assert listens(kept.netns), "pods stay while the CNI agent is away"
    unknown = CniPod("uid-unknown", "unknown", "shop", "unknown", None)
    known = dataclasses.replace(kept, netns=None)
    again = CniAgent(cni.path, {one.uid: one for one in (known, unknown)})
    try:
        assert again.accept() == ["", "", ""]
        assert enrolled(agent) == {"uid-kept"}
        assert listens(kept.netns)
        agent.until(lambda: not listens(forgotten.netns), "the pod that was not named is left")
        agent.until(agent.ready, "ready again")
    finally:
        again.close()


def test_what_cannot_be_enrolled_is_refused_with_a_reason(
    agent: ZtunnelProcess, cni: CniAgent, pod: MakePod, tmp_path: Path
) -> None:
    no_namespace = tmp_path / "file"
    no_namespace.write_text("")
    cni.accept()
    error = cni.add(CniPod("uid-bad", "bad", "shop", "bad", no_namespace))
    assert error is not None
    assert "shop/bad cannot be enrolled" in error
    agent.until(lambda: not agent.ready(), "not ready while a pod is pending")
    assert cni.delete("uid-bad") == [""]
    agent.until(agent.ready, "ready when it is gone")
    assert cni.add(pod("good")) == ""


def test_breaking_the_protocol_costs_the_connection_not_the_pods(
    agent: ZtunnelProcess, cni: CniAgent, pod: MakePod
) -> None:
    one = pod("one")
    cni.pods = {one.uid: one}
    cni.accept()
    first: Connection = cni.connections[0]
    assert first.ask(dataclasses.replace(one, netns=None).request()) is None, "Keep after the snapshot"
    assert listens(one.netns)
    assert cni.accept() == ["", ""]
    agent.until(agent.ready, "ready again")
    assert cni.add(pod("other")) == ""
    # The log is written behind: what came before the last line is complete.
    agent.until(lambda: "shop/other" in agent.log, "the last pod's line")
    assert agent.log.count('pod enrolled\tpod="shop/one"') == 1, "it stayed enrolled"


CONNECT = "import socket; socket.create_connection(('198.51.100.1', 80), timeout=60)"


def test_pods_of_a_successor_that_dies_half_way_are_served_by_the_agent_that_is_left(
    agent: ZtunnelProcess, cni: CniAgent, pod: MakePod
) -> None:
    first, second = pod("first"), pod("second")
    cni.pods = {one.uid: one for one in (first, second)}
    assert cni.accept() == ["", "", ""]
    with subprocess.Popen(
        [sys.executable, "-m", "ztunnel", "proxy", "ztunnel"],
        env={**agent.environ, "AMBIENT_TAKEOVER": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as successor:
        try:
            connection = cni.greet()
            assert connection.ask(first.request(), first.netns) == ""
        finally:
            successor.kill()
    connection.sock.close()
    agent.until(lambda: "a successor has gone" in agent.log, "it notices")
    for one in (first, second):
        connect_in(one, agent)
    assert cni.connections[0].alive()


def connect_in(pod: CniPod, agent: ZtunnelProcess) -> None:
    """A connection out of the pod is accepted: by the agent, since nobody else has that address."""
    assert pod.netns is not None
    cgroup = agent.cgroup / "pods"  # only below the agent's cgroup anything is captured
    cgroup.mkdir()
    inside = f"echo $$ > {cgroup}/cgroup.procs; exec ip netns exec {pod.netns.name} {sys.executable} -c"
    try:
        subprocess.run(["sh", "-c", f'{inside} "{CONNECT}"'], check=True, timeout=120)
    finally:
        cgroup.rmdir()
