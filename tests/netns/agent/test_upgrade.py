"""`ambientctl upgrade`: connections outlive the agent that carries them, and stay under the mesh's rules."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from daemonset.local.names import NETNS_DIR, pod_netns
from tests.netns.agent.conftest import TALK, AgentMesh, through_tunnel
from tests.netns.agent.test_agent import policy
from tests.netns.local.conftest import wait_until

pytestmark = pytest.mark.root
PATIENCE = 60.0


class Session:
    """A connection that lives: lines go in, the server's echo comes out."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def say(self, word: str) -> str:
        """The answer to a line; what the client prints when there is none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)


@contextmanager
def session(agents: AgentMesh, source: str) -> Iterator[Session]:
    command = [sys.executable, "-m", "daemonset.ctl", "exec", "--mesh", agents.mesh.name, source]
    talk = ["--", "python3", "-u", "-c", TALK, "echo.shop", "70"]
    with subprocess.Popen(
        [*command, *talk], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Session(process)
        finally:
            process.kill()


def upgrade(agents: AgentMesh, *nodes: str) -> None:
    done = agents.mesh.ctl("upgrade", *nodes)
    assert done.returncode == 0, done.stdout + done.stderr


def agent(agents: AgentMesh, node: str) -> dict[str, Any]:
    found: dict[str, Any] = agents.mesh.status()["nodes"][node]["agent"]
    return found


def test_an_open_connection_outlives_upgrades_and_is_cut_when_policy_says_so(agents: AgentMesh) -> None:
    through_tunnel(agents)
    former = {node: agent(agents, node)["pid"] for node in ("n1", "n2")}
    with session(agents, "shop/guest") as held:
        assert held.say("one").endswith("one")
        upgrade(agents)
        assert held.say("two").endswith("two")
        assert agents.talk("shop/client", "echo.shop", 70, "new").endswith("new")
        for node, pid in former.items():
            now = agent(agents, node)
            assert (now["draining"], now["pid"] == pid) == ([pid], False)
        agents.mesh.write("policy.yaml", policy("callers", "echo", "client"))
        agents.mesh.up()
        entry = agents.access("n2", reason="policy_changed", **{"src.workload": "guest"})
        assert entry["policy"] == "shop/callers"
        assert "three" not in held.say("three")
    wait_until(
        "what has nothing left to carry has ended",
        lambda: not any(agent(agents, node)["draining"] for node in former),
        PATIENCE,
    )
    assert agents.talk("shop/client", "echo.shop", 70, "hi").endswith("hi")
    agents.mesh.write("policy.yaml")
    agents.mesh.up()


def test_a_draining_agent_tells_where_its_pages_are(agents: AgentMesh) -> None:
    through_tunnel(agents)
    with session(agents, "shop/client") as held:
        assert held.say("one").endswith("one")

        def said() -> list[str]:
            return [line for line in agents.agent_log("n1") if "a successor has the pods" in line]

        before = said()
        upgrade(agents, "n1")

        def aside() -> str:
            return "".join(said()[len(before) :][-1:])

        wait_until("it says so", aside, PATIENCE)
        ports = dict(word.split("=") for word in aside().split() if "=" in word)
        live = json.loads(agents.curl_node("n1", f"http://127.0.0.1:{ports['admin']}/connections"))
        assert [c["bytesSent"] for c in live] == [len("one\n")]
        assert "istio_tcp_connections_opened_total{" in agents.curl_node(
            "n1", f"http://127.0.0.1:{ports['stats']}/metrics"
        )
        assert json.loads(agents.curl_node("n1", "http://127.0.0.1:15000/connections")) == []
        assert agents.curl_node("n1", "http://127.0.0.1:15021/healthz/ready").startswith("ready\n")
        held.end()
    wait_until("it has ended", lambda: agent(agents, "n1")["draining"] == [], PATIENCE)


def test_a_draining_agent_lets_go_of_pods_it_carries_nothing_for(agents: AgentMesh) -> None:
    through_tunnel(agents)
    inodes = {
        name: (NETNS_DIR / pod_netns(agents.mesh.name, "shop", name)).stat().st_ino
        for name in ("client", "guest")
    }
    with session(agents, "shop/client") as held, session(agents, "shop/guest") as ended:
        assert held.say("one").endswith("one")
        assert ended.say("one").endswith("one")
        upgrade(agents, "n1")
        (old,) = agent(agents, "n1")["draining"]
        assert set(inodes.values()) <= namespaces_held(old)
        ended.end()
        wait_until(
            "only what is in use is held",
            lambda: namespaces_held(old) & set(inodes.values()) == {inodes["client"]},
            PATIENCE,
        )
        assert held.say("two").endswith("two")
        assert agent(agents, "n1")["draining"] == [old]
        held.end()
    wait_until("it has ended", lambda: agent(agents, "n1")["draining"] == [], PATIENCE)


def namespaces_held(pid: int) -> set[int]:
    """Inodes of the network namespaces that a process has open."""
    listed = subprocess.run(["ls", "-lL", "-i", f"/proc/{pid}/fd"], capture_output=True, text=True)
    return {int(line.split()[0]) for line in listed.stdout.splitlines() if line.split()[0].isdecimal()}


def test_an_upgrade_while_the_agent_is_being_started_again_leaves_one_that_has_all_pods(
    agents: AgentMesh,
) -> None:
    """Two that start at once would take pods from each other, and release those of which they were not told."""
    through_tunnel(agents)
    released = [line for line in agents.agent_log("n1") if "former pods released" in line]
    os.kill(agent(agents, "n1")["pid"], signal.SIGKILL)
    upgrade(agents, "n1")
    through_tunnel(agents)
    wait_until("one agent is left", lambda: agent(agents, "n1")["draining"] == [], PATIENCE)
    assert [line for line in agents.agent_log("n1") if "former pods released" in line] == released


def test_an_unknown_node_is_refused(agents: AgentMesh) -> None:
    done = agents.mesh.ctl("upgrade", "n9")
    assert (done.returncode, done.stderr) == (1, "ambientctl: there is no node n9\n")
