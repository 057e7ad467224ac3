"""The short cut past the host, on a real mesh: what shows of it, and that pods come to have it and lose it."""

from __future__ import annotations

import json

import pytest

from tests.netns.agent.conftest import AgentMesh
from tests.netns.direct.conftest import counters
from tests.netns.local.conftest import wait_until

pytestmark = pytest.mark.root


def described(agents: AgentMesh) -> dict[str, object]:
    """What the agent of n1 tells of it."""
    page: dict[str, dict[str, object]] = json.loads(agents.curl_node("n1", "http://127.0.0.1:15000/capture"))
    return page["redirect_peer"]


def test_direct_connections_take_it_and_the_agent_says_so(shorter: AgentMesh) -> None:
    everybody = {"state": "on", "problem": "", "pods": 4, "left_out": {}}
    wait_until("all pods of the node have it", lambda: described(shorter) == everybody, 60)
    before = counters(shorter)["redirected"]

    def goes() -> bool:
        assert shorter.talk("shop/client", "near.shop", 70, "hi").endswith("hi")
        return counters(shorter)["redirected"] > before

    wait_until("a connection goes past the host", goes, 60)
    ready = shorter.curl_node("n1", "http://127.0.0.1:15021/healthz/ready")
    assert "redirect_peer: on for 4 pods" in ready.splitlines()
    metrics = shorter.curl_node("n1", "http://127.0.0.1:15020/metrics").splitlines()
    assert 'ambient_redirect_peer_info{state="on"} 1.0' in metrics
    assert 'ambient_redirect_peer_pods{state="on"} 4.0' in metrics
    assert 'ambient_redirect_peer_pods{state="left_out"} 0.0' in metrics


def test_the_proxy_and_other_nodes_are_as_ever(shorter: AgentMesh) -> None:
    before = counters(shorter)["redirected"]
    assert shorter.talk("shop/client", "echo.shop", 70, "far").endswith("far")
    assert shorter.talk("outside/stranger", "near.shop", 70, "hi").endswith("hi")
    assert counters(shorter)["redirected"] == before


def test_a_pod_that_leaves_loses_it(shorter: AgentMesh) -> None:
    (shorter.mesh.folder / "nearby.yaml").unlink()
    shorter.mesh.up()
    wait_until("one pod less has it", lambda: described(shorter)["pods"] == 3, 60)
