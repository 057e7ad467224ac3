"""A whole mesh whose agents capture by variant C, as where the connect hook does not work."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from daemonset.local import cleanup
from tests.netns.agent.conftest import AgentMesh, enrolled, manifests
from tests.netns.local.conftest import make_mesh, wait_until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentMesh]:
    """As in conftest, but for the setting."""
    mesh = make_mesh(tmp_path_factory.mktemp("agents"))
    mesh.flags = ()
    manifests(mesh)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AMBIENT_CAPTURE", "C")
            mesh.up()
        wait_until("pods enrolled", lambda: enrolled(mesh) >= 4, 60)
        yield AgentMesh(mesh)
    finally:
        cleanup.clean(mesh.name)


def test_connections_go_through_the_tunnel_in_both_families(agents: AgentMesh) -> None:
    echo = agents.mesh.status()["pods"]["shop/echo"]["addresses"]
    client = agents.mesh.status()["pods"]["shop/client"]["addresses"]
    for destination, source in zip(echo, client, strict=True):
        assert agents.talk("shop/client", destination, 7000, "hi") == f"{source} hi"
    entry = agents.access("n1", direction="outbound", **{"src.workload": "client"})
    assert entry["dst.addr"].endswith(":15008")
    assert agents.access("n2", direction="inbound")["src.identity"].endswith("/sa/client")


def test_strangers_are_let_in_without_identity_and_probes_reach_the_application(agents: AgentMesh) -> None:
    near = agents.address("shop/near")
    assert agents.talk("outside/stranger", near, 7000, "hi").endswith(" hi")
    entry = agents.access("n1", direction="inbound", **{"dst.workload": "near"})
    assert "src.identity" not in entry
    assert agents.mesh.status()["pods"]["shop/near"]["ready"]


def test_pages_metrics_and_status_say_which_variant_and_why(agents: AgentMesh) -> None:
    ready = agents.curl_node("n1", "http://127.0.0.1:15021/healthz/ready")
    assert ready.startswith("ready\ncapture: variant C (forced): C: connections were captured")
    metrics = agents.curl_node("n1", "http://127.0.0.1:15020/metrics")
    assert 'ambient_capture_info{variant="C",why="forced"} 1.0' in metrics
    page = json.loads(agents.curl_node("n1", "http://127.0.0.1:15000/capture"))
    assert (page["variant"], page["why"]) == ("C", "forced")
    status = agents.mesh.ctl("status").stdout
    assert "CAPTURE" in status
    assert "n1 captures by variant C: C: connections were captured" in status
    assert agents.mesh.status()["nodes"]["n2"]["capture"]["variant"] == "C"
