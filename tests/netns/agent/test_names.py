"""Names as enrolled pods see them: real resolvers ask, real agents answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.netns.agent.conftest import AgentMesh, pod
from tests.netns.local.conftest import service, wait_until

pytestmark = pytest.mark.root

PATIENCE = 60.0

ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shopping, namespace: shop}
spec:
  hosts: [shopping.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 70, name: tcp, protocol: TCP, targetPort: 7000}]
  workloadSelector: {labels: {app: echo}}
"""

# Arguments: name, type, udp or tcp, whom to ask ("" for the pod's own name server). Prints rcode, flags, answer.
ASK = """
import sys, dns.flags, dns.message, dns.query, dns.rcode, dns.resolver
name, kind, way, server = sys.argv[1:]
where = server or dns.resolver.Resolver().nameservers[0]
query = dns.message.make_query(name, kind, use_edns=0, payload=1232)
for _ in range(15):
    try:
        answer = (dns.query.tcp if way == 'tcp' else dns.query.udp)(query, where, timeout=2)
        break
    except dns.exception.Timeout:
        answer = None
if answer is None:
    print('timeout')
else:
    print(dns.rcode.to_text(answer.rcode()), dns.flags.to_text(answer.flags))
    print('\\n'.join(str(each) for each in answer.answer))
"""

# Looks a name up by getaddrinfo() as applications do, until stdin ends; prints how often it worked and failed.
LOOK_UP = """
import select, socket, sys
worked = failed = 0
print('begun', flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        socket.getaddrinfo(sys.argv[1], 70, socket.AF_INET)
        worked += 1
    except OSError as error:
        failed += 1
        print(error, flush=True)
print(worked, failed, flush=True)
"""


def ask(
    agents: AgentMesh, source: str, name: str, kind: str = "A", way: str = "udp", server: str = ""
) -> str:
    """What a name server says to a pod."""
    done = agents.mesh.exec(source, sys.executable, "-c", ASK, name, kind, way, server)
    return (done.stdout + done.stderr).strip()


def found(agents: AgentMesh, source: str, name: str) -> bool:
    """Whether getaddrinfo() in a pod finds a name."""
    program = "import socket, sys; print(socket.getaddrinfo(sys.argv[1], 70))"
    return agents.mesh.exec(source, "python3", "-c", program, name).returncode == 0


@pytest.fixture(scope="module")
def named(agents: AgentMesh) -> AgentMesh:
    """The mesh with a ServiceEntry, and a pod that wants its questions left alone."""
    own_way = pod("own", "n1", "sleep infinity").replace(
        "labels: {app: own}", 'labels: {app: own}, annotations: {ambient.istio.io/dns-capture: "false"}'
    )
    everyone = service("everyone", "clusterIP: None").replace("app: everyone", "app: echo")
    agents.mesh.write("names.yaml", ENTRY, own_way, everyone)
    agents.mesh.up()
    wait_until("the host is known", lambda: found(agents, "shop/client", "shopping.example.com"), PATIENCE)
    return agents


def test_host_of_a_service_entry_is_reached_by_name(named: AgentMesh) -> None:
    client = named.address("shop/client")
    wait_until(
        "the host answers",
        lambda: named.talk("shop/client", "shopping.example.com", 70, "hello") == f"{client} hello",
        PATIENCE,
    )
    entry = named.access("n1", **{"dst.service": "shopping.example.com"})
    assert entry["dst.identity"].endswith("/sa/echo")


def test_pod_outside_the_mesh_and_pod_with_the_annotation_ask_as_they_did(named: AgentMesh) -> None:
    for name in ("outside/stranger", "shop/own"):
        assert not found(named, name, "shopping.example.com")
        assert found(named, name, "echo.shop")


@pytest.mark.parametrize("way", ["udp", "tcp"])
def test_mesh_answers_with_authority_and_the_name_server_with_its_own(named: AgentMesh, way: str) -> None:
    known = ask(named, "shop/client", "echo.shop.svc.cluster.local.", way=way)
    assert known.startswith("NOERROR QR AA RD RA")
    assert "echo.shop.svc.cluster.local. 30 IN A " in known
    assert ask(named, "shop/client", "nobody.example.net.", way=way).startswith("NXDOMAIN QR")
    mesh_only = ask(named, "shop/client", "shopping.example.com.", "TXT", way=way)
    assert mesh_only.startswith("NOERROR"), "the name exists, though the name server does not know it"


def test_search_list_leads_to_the_host_by_an_alias(named: AgentMesh) -> None:
    said = ask(named, "shop/client", "shopping.example.com.shop.svc.cluster.local.")
    assert "CNAME shopping.example.com." in said
    assert "shopping.example.com. 30 IN A " in said


def test_headless_service_and_its_pods_have_names(named: AgentMesh) -> None:
    address = named.address("shop/echo")
    for name in ("everyone.shop.svc.cluster.local.", "echo.everyone.shop.svc.cluster.local."):
        wait_until(name, lambda name=name: address in ask(named, "shop/client", name), PATIENCE)  # type: ignore[misc]


def test_name_server_that_is_not_there_is_told_as_a_failure(named: AgentMesh) -> None:
    gone = named.address("shop/echo")
    assert ask(named, "shop/client", "nobody.example.net.", server=gone).startswith("SERVFAIL")
    assert "IN A" in ask(named, "shop/client", "echo.shop.svc.cluster.local.", server=gone)


def test_what_was_asked_shows_in_metrics_and_explanation(named: AgentMesh) -> None:
    ask(named, "shop/client", "echo.shop.svc.cluster.local.")
    ask(named, "shop/client", "nobody.example.net.")
    text = named.curl_node("n1", "http://127.0.0.1:15020/metrics")
    labels = {'request_query_type="A"', 'request_protocol="udp"', 'source_canonical_service="client"'}
    for name in ("istio_dns_requests_total", "istio_dns_upstream_requests_total"):
        lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
        assert any(all(label in line for label in labels) for line in lines), text
    assert "istio_dns_upstream_request_duration_seconds_bucket{" in text
    told = named.mesh.ctl("resolve", "--from", "shop/client", "shopping.example.com")
    assert told.returncode == 0, told.stderr
    assert "service shop/shopping.example.com" in told.stdout
    unknown = named.mesh.ctl("resolve", "--from", "shop/client", "nobody.example.net", "--json")
    assert json.loads(unknown.stdout)["known"] is False


def test_names_are_found_while_the_agent_is_away(named: AgentMesh) -> None:
    command = [sys.executable, "-m", "daemonset.ctl", "exec", "--mesh", named.mesh.name, "shop/client", "--"]
    command += ["python3", "-u", "-c", LOOK_UP, "echo.shop"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asker:
        assert asker.stdout is not None
        assert asker.stdout.readline() == "begun\n"
        agent = named.mesh.status()["nodes"]["n1"]["agent"]
        os.kill(agent["pid"], signal.SIGKILL)
        restarts = agent["restarts"] + 1

        def back() -> bool:
            return bool(named.mesh.status()["nodes"]["n1"]["agent"]["restarts"] == restarts)

        wait_until("the agent is back", back, PATIENCE)
        wait_until("it answers", lambda: found(named, "shop/client", "shopping.example.com"), PATIENCE)
        said, _ = asker.communicate("enough\n", timeout=60)
    worked, failed = map(int, said.splitlines()[-1].split())
    assert worked, said
    assert not failed, said
