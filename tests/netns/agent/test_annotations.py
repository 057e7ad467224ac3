"""Pods' annotations about capture, from the manifest to the kernel: read, followed live, refused with a word."""

from __future__ import annotations

import pytest

from tests.netns.agent.conftest import ECHO, AgentMesh, enrolled, pod
from tests.netns.local.conftest import wait_until

pytestmark = pytest.mark.root

SIDECAR = "traffic.sidecar.istio.io"


def annotated(agents: AgentMesh, name: str, **values: str) -> str:
    """Bring up an echo pod with these annotations, or change them; what `ambientctl up` said."""
    lines = ", ".join(f"{key}: '{value}'" for key, value in values.items())
    text = pod(name, "n1", ECHO, port=7000).replace(
        f"labels: {{app: {name}}}", f"labels: {{app: {name}}}, annotations: {{{lines}}}"
    )
    agents.mesh.write(f"{name}.yaml", text)
    said = agents.mesh.up()
    wait_until(f"{name} is enrolled", lambda: enrolled_state(agents, name) == "in", 60)
    return said


def enrolled_state(agents: AgentMesh, name: str) -> str:
    return str(agents.mesh.status()["pods"][f"shop/{name}"]["enrolment"])


def addresses(agents: AgentMesh, name: str) -> list[str]:
    return [str(a) for a in agents.mesh.status()["pods"][f"shop/{name}"]["addresses"]]


def brought_up_to_date(agents: AgentMesh, name: str, what: str) -> None:
    wait_until(
        f"{name}: {what}",
        lambda: any(f"shop/{name}" in line and what in line for line in agents.agent_log("n1")),
        60,
    )


def test_excluded_inbound_port_is_plain_until_the_annotation_goes(agents: AgentMesh) -> None:
    annotated(agents, "gate", **{f"{SIDECAR}/excludeInboundPorts": "7000"})
    brought_up_to_date(agents, "gate", 'exclude_inbound="7000"')
    pid = agents.mesh.status()["pods"]["shop/gate"]["containers"]["main"]["pid"]
    (v4, v6), stranger = addresses(agents, "gate"), agents.mesh.status()["pods"]["outside/stranger"]
    own = {v4: stranger["addresses"][0], v6: stranger["addresses"][1]}
    for address in (v4, v6):
        assert agents.talk("outside/stranger", address, 7000, "plain") == f"{own[address]} plain"
    annotated(agents, "gate")
    brought_up_to_date(agents, "gate", "capture brought up to date")
    for address in (v4, v6):
        assert agents.talk("outside/stranger", address, 7000, "seen") == f"{own[address]} seen"
    for end in (f"{v4}:7000", f"[{v6}]:7000"):
        agents.access("n1", direction="inbound", **{"dst.addr": end})
    logged = [line for line in agents.agent_log("n1") if "\taccess\t" in line and "gate" in line]
    assert len(logged) == 2  # not those that were made while the port was excluded
    assert agents.mesh.status()["pods"]["shop/gate"]["containers"]["main"]["pid"] == pid
    agents.mesh.write("gate.yaml")
    agents.mesh.up()


def test_excluded_outbound_port_goes_out_as_without_a_mesh(agents: AgentMesh) -> None:
    annotated(agents, "straight", **{f"{SIDECAR}/excludeOutboundPorts": "7000"})
    (v4, v6), own = addresses(agents, "echo"), addresses(agents, "straight")
    for address, source in zip((v4, v6), own, strict=True):
        assert agents.talk("shop/straight", address, 7000, "hi") == f"{source} hi"
    lines = [line for line in agents.agent_log("n1") if "\taccess\t" in line and "straight" in line]
    assert lines == []
    said = agents.mesh.ctl("explain", "--from", "shop/straight", "--to", f"{v4}:7000").stdout
    assert "port 7000 is excluded from shop/straight's capture: it goes out in the clear" in said.splitlines()
    agents.mesh.write("straight.yaml")
    agents.mesh.up()


def test_value_that_cannot_be_read_is_said_and_the_pod_stays_captured(agents: AgentMesh) -> None:
    said = annotated(agents, "odd", **{f"{SIDECAR}/excludeInboundPorts": "7000,http"})
    assert f"Pod shop/odd: annotation {SIDECAR}/excludeInboundPorts: 'http' is not a port" in said
    assert "every port stays captured" in said
    v4 = addresses(agents, "odd")[0]
    assert agents.talk("outside/stranger", v4, 7000, "hi").endswith(" hi")
    assert agents.access("n1", direction="inbound", **{"dst.workload": "odd"})
    agents.mesh.write("odd.yaml")
    agents.mesh.up()


def test_pod_on_the_hosts_network_is_left_alone(agents: AgentMesh) -> None:
    before = enrolled(agents.mesh)
    text = pod("hosted", "n1", "sleep infinity").replace(
        "  nodeName: n1", "  nodeName: n1\n  hostNetwork: true"
    )
    agents.mesh.write("hosted.yaml", text)
    agents.mesh.up()
    assert enrolled_state(agents, "hosted") == "out"
    assert enrolled(agents.mesh) == before
    netns = agents.mesh.status()["nodes"]["n1"]["netns"]
    assert agents.mesh.status()["pods"]["shop/hosted"]["netns"] == netns
    rules = agents.mesh.exec("shop/hosted", "ip", "rule", "show").stdout
    assert "15001" not in rules
    v4, v6 = addresses(agents, "near")
    for address in (v4, v6):
        answer = agents.talk("shop/hosted", address, 7000, "hi")
        assert answer.endswith(" hi"), answer
    assert not any("hosted" in line for line in agents.agent_log("n1") if "pod enrolled" in line)
    agents.mesh.write("hosted.yaml")
    agents.mesh.up()
