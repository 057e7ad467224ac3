"""The agent as a whole on two nodes: what pods see, what the logs, metrics and pages say, what survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.netns.agent.conftest import TALK, AgentMesh, pod, through_tunnel
from tests.netns.local.conftest import wait_until

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[3]
SPIFFE = "spiffe://cluster.local/ns/shop/sa/"


def policy(name: str, app: str, *accounts: str) -> str:
    principals = json.dumps([f"cluster.local/ns/shop/sa/{account}" for account in accounts])
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: {app}}}}}
  action: ALLOW
  rules: [{{from: [{{source: {{principals: {principals}}}}}]}}]
"""


def test_a_service_on_another_node_is_reached_through_the_tunnel(agents: AgentMesh) -> None:
    through_tunnel(agents)
    client = agents.address("shop/client")
    assert agents.talk("shop/client", "echo.shop", 70, "hello", "again") == f"{client} hello\n{client} again"
    expected = {"src.identity": SPIFFE + "client", "dst.identity": SPIFFE + "echo", "dst.workload": "echo"}
    outbound = agents.access("n1", direction="outbound", bytes_sent="12", **expected)
    inbound = agents.access("n2", direction="inbound", **expected)
    assert outbound["dst.service"] == inbound["dst.service"] == "echo.shop.svc.cluster.local"
    assert outbound["dst.addr"] == f"{agents.address('shop/echo')}:15008"
    assert outbound["dst.hbone_addr"] == f"{agents.address('shop/echo')}:7000"
    assert inbound["bytes_recv"] == outbound["bytes_sent"] == "12"
    assert inbound["bytes_sent"] == outbound["bytes_recv"]


def test_a_pod_of_the_same_node_is_reached_with_both_identities(agents: AgentMesh) -> None:
    through_tunnel(agents)
    client = agents.address("shop/client")
    assert agents.talk("shop/client", agents.address("shop/near"), 7000, "hi") == f"{client} hi"
    entry = agents.access("n1", **{"dst.workload": "near", "direction": "inbound"})
    assert entry["src.identity"] == SPIFFE + "client"


def test_a_client_outside_the_mesh_is_let_in_without_identity(agents: AgentMesh) -> None:
    stranger = agents.address("outside/stranger")
    assert agents.talk("outside/stranger", "echo.shop", 70, "hi") == f"{stranger} hi"
    entry = agents.access("n2", **{"src.workload": "stranger"})
    assert "src.identity" not in entry


def test_a_closed_port_is_refused_like_without_a_mesh(agents: AgentMesh) -> None:
    through_tunnel(agents)
    answer = agents.talk("shop/client", agents.address("shop/echo"), 7999, "hi")
    assert "hi" not in answer
    agents.access("n2", direction="inbound", reason="connect_refused")
    agents.access("n1", direction="outbound", reason="peer_refused")


def test_a_policy_refuses_by_identity_and_cuts_who_is_connected(agents: AgentMesh) -> None:
    through_tunnel(agents)
    talk = [sys.executable, "-m", "daemonset.ctl", "exec", "--mesh", agents.mesh.name]
    command = [*talk, "shop/guest", "--", "python3", "-u", "-c", TALK, "echo.shop", "70"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as guest:
        assert guest.stdin is not None
        assert guest.stdout is not None
        guest.stdin.write("one\n")
        guest.stdin.flush()
        assert guest.stdout.readline().endswith("one\n")
        live = json.loads(agents.curl_node("n2", "http://127.0.0.1:15000/connections"))
        assert any(c["sourceIdentity"] == SPIFFE + "guest" and c["bytesReceived"] == 4 for c in live)
        agents.mesh.write("policy.yaml", policy("callers", "echo", "client"))
        agents.mesh.up()
        applied = time.monotonic()
        entry = agents.access("n2", reason="policy_changed")
        assert time.monotonic() - applied < 30
        assert entry["policy"] == "shop/callers"
        guest.stdin.write("two\n")
        guest.stdin.flush()
        answer = guest.stdout.readline()
        assert "two" not in answer
        guest.stdin.close()
    assert "hi" not in agents.talk("shop/guest", "echo.shop", 70, "hi")
    assert agents.talk("shop/client", "echo.shop", 70, "hi").endswith("hi")
    refused = agents.access("n2", reason="policy_no_match")
    assert (refused["policy"], refused["src.identity"]) == ("shop/callers", SPIFFE + "guest")
    agents.access("n1", reason="peer_refused", **{"src.workload": "guest"})
    told = agents.mesh.ctl("explain", "--from", "shop/guest", "--to", "echo.shop:70")
    assert told.returncode == 1
    assert "shop/callers" in told.stdout
    assert agents.mesh.ctl("explain", "--from", "shop/client", "--to", "echo.shop:70").returncode == 0
    agents.mesh.write("policy.yaml")
    agents.mesh.up()
    wait_until("the policy is gone", lambda: "hi" in agents.talk("shop/guest", "echo.shop", 70, "hi"))


def test_pages_tell_readiness_metrics_and_state(agents: AgentMesh) -> None:
    through_tunnel(agents)
    ready = agents.curl_node("n1", "http://127.0.0.1:15021/healthz/ready").splitlines()
    assert ready[0] == "ready"
    assert ready[1].startswith("capture: variant B (preferred): B: connections were captured")
    text = agents.curl_node("n1", "http://127.0.0.1:15020/stats/prometheus")
    for name in (
        "istio_tcp_connections_opened_total{",
        "istio_tcp_sent_bytes_total{",
        "istio_tcp_sockets_open{",
        "istio_build{",
        "istio_xds_message_total{",
        "workload_manager_active_proxy_count 3.0",
        "process_open_fds",
        "ambient_engine{",
        "ambient_capture_total{",
        'ambient_capture_info{variant="B",why="preferred"} 1.0',
    ):
        assert name in text, name
    dump = json.loads(agents.curl_node("n1", "http://localhost:15000/config_dump"))
    states = {c["identity"].removeprefix(SPIFFE): c["state"] for c in dump["certificates"]}
    assert states["client"] == "Available"
    assert {w["name"] for w in dump["workloads"]} >= {"client", "guest", "near", "echo", "stranger"}
    assert agents.curl_node("n1", "http://localhost:15000/logging", "-X", "POST").startswith(
        "current log level"
    )


def closed(counted: dict[str, float]) -> bool:
    return counted["connections_opened"] == counted["connections_closed"] > 0


def test_metrics_count_exactly(agents: AgentMesh) -> None:
    def count() -> dict[str, float]:
        text = agents.curl_node("n2", "http://127.0.0.1:15020/metrics")
        wanted = [r for r in text.splitlines() if 'source_workload="client"' in r and "mutual_tls" in r]
        return {
            name: sum(float(r.rpartition(" ")[2]) for r in wanted if r.startswith(f"istio_tcp_{name}_total"))
            for name in ("connections_opened", "connections_closed", "received_bytes", "sent_bytes")
        }

    through_tunnel(agents)
    wait_until("what was open is closed", lambda: closed(count()))
    before = count()
    client = agents.address("shop/client")
    for _ in range(3):
        agents.talk("shop/client", "echo.shop", 70, "12345")
    each = {"connections_opened": 1, "connections_closed": 1, "received_bytes": 6}
    each["sent_bytes"] = len(f"{client} 12345\n")
    expected = {name: before[name] + 3 * value for name, value in each.items()}
    wait_until(f"counters reach {expected}", lambda: count() == expected)


def test_a_killed_agent_comes_back_and_pods_stay_captured(agents: AgentMesh) -> None:
    through_tunnel(agents)
    former = agents.mesh.status()["nodes"]["n1"]["agent"]["pid"]
    os.kill(former, signal.SIGKILL)
    wait_until(
        "another agent",
        lambda: agents.mesh.status()["nodes"]["n1"]["agent"]["pid"] not in (0, None, former),
    )
    wait_until("it carries", lambda: "hi" in agents.talk("shop/client", "echo.shop", 70, "hi"))
    entry = agents.access("n1", direction="outbound", **{"src.workload": "client"})
    assert entry["dst.addr"].endswith(":15008")


@pytest.mark.parametrize("command", ["cleanup", "proxy"])
def test_another_process_leaves_a_node_alone_on_which_an_agent_is_at_work(
    agents: AgentMesh, command: str
) -> None:
    """Neither takes everything away nor takes part, with ports of its own but the same pins."""
    through_tunnel(agents)
    process = agents.mesh.status()["nodes"]["n1"]["agent"]["pid"]
    environ = Path(f"/proc/{process}/environ").read_text().rstrip("\0").split("\0")
    ports = ["STATS_PORT=0", "READINESS_PORT=0", "ADMIN_PORT=0"]
    start = ["nsenter", "-t", str(process), "-n", "env", *environ, *ports, "AMBIENT_TAKEOVER=false"]
    done = subprocess.run(
        [*start, sys.executable, "-m", "ztunnel", command], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ztunnel: agent_at_work: an agent captures ")
    assert f"(process {process})" in done.stderr
    through_tunnel(agents)


def test_a_pod_that_leaves_the_mesh_is_restored(agents: AgentMesh) -> None:
    agents.mesh.write("extra.yaml", pod("extra", "n1", "sleep infinity"))
    agents.mesh.up()
    wait_until("extra is enrolled", lambda: agents.mesh.status()["pods"]["shop/extra"]["enrolment"] == "in")
    rules = agents.mesh.exec("shop/extra", "ip", "rule", "show").stdout
    assert "fwmark" in rules
    labelled = pod("extra", "n1", "sleep infinity").replace(
        "labels: {app: extra}", "labels: {app: extra, istio.io/dataplane-mode: none}"
    )
    agents.mesh.write("extra.yaml", labelled)
    agents.mesh.up()
    wait_until(
        "extra has left",
        lambda: "fwmark" not in agents.mesh.exec("shop/extra", "ip", "rule", "show").stdout,
    )
    client = agents.address("shop/extra")
    assert agents.talk("shop/extra", "echo.shop", 70, "hi") == f"{client} hi"
    agents.mesh.write("extra.yaml")
    agents.mesh.up()


def test_a_service_that_leads_back_to_its_caller_works(agents: AgentMesh) -> None:
    near = agents.address("shop/near")
    assert agents.talk("shop/near", "near.shop", 70, "me") == f"{near} me"
    assert agents.talk("shop/near", near, 7000, "me") == f"{near} me"


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_the_meshs_own_ports_lead_nowhere(agents: AgentMesh, port: int) -> None:
    for host in (agents.address("shop/echo"), agents.address("shop/client"), "127.0.0.1"):
        answer = agents.talk("shop/client", host, port, "hi")
        assert "Connection reset" in answer or "Connection refused" in answer
    entry = agents.access("n2", reason="illegal_port")
    assert entry["direction"] == "inbound"


def test_ipv6_goes_through_the_tunnel_with_the_clients_address(agents: AgentMesh) -> None:
    through_tunnel(agents)
    addresses = agents.mesh.status()["pods"]
    echo = next(a for a in addresses["shop/echo"]["addresses"] if ":" in a)
    client = next(a for a in addresses["shop/client"]["addresses"] if ":" in a)
    assert agents.talk("shop/client", echo, 7000, "six") == f"{client} six"
    entry = agents.access("n1", **{"dst.addr": f"[{echo}]:15008"})
    assert entry["dst.hbone_addr"] == f"[{echo}]:7000"
    assert entry["dst.identity"] == SPIFFE + "echo"


def test_connections_are_made_while_the_control_plane_hangs(agents: AgentMesh) -> None:
    through_tunnel(agents)
    pid = agents.mesh.status()["istiodlite"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            assert agents.talk("shop/client", "echo.shop", 70, "on").endswith("on")
        assert agents.curl_node("n1", "http://127.0.0.1:15021/healthz/ready").startswith("ready\n")
    finally:
        os.kill(pid, signal.SIGCONT)


def test_sigterm_drains_and_connections_made_meanwhile_only_wait(agents: AgentMesh) -> None:
    through_tunnel(agents)
    former = agents.mesh.status()["nodes"]["n1"]["agent"]["pid"]
    os.kill(former, signal.SIGTERM)
    assert agents.talk("shop/client", "echo.shop", 70, "patience").endswith("patience")
    wait_until("it has drained", lambda: any("\tdrained\t" in line for line in agents.agent_log("n1")))
    wait_until(
        "another agent carries",
        lambda: (
            agents.talk("shop/client", "echo.shop", 70, "again").endswith("again")
            and agents.mesh.status()["nodes"]["n1"]["agent"]["pid"] not in (None, former)
        ),
    )
    log = "\n".join(agents.agent_log("n1"))
    assert "\tdraining\t" in log
    assert "Traceback" not in log


LOAD = """
import select, socket, sys, time
done = failed = 0
print('started', flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        with socket.create_connection((sys.argv[1], 70), timeout=30) as s:
            name = s.getsockname()
            s.sendall(b'x\\n')
            got = s.recv(100)
            assert got.endswith(b'x\\n'), got
        done += 1
    except (OSError, AssertionError) as error:
        failed += 1
        print('failed', time.strftime('%T'), time.time() % 1, name, repr(error), flush=True)
print('result', done, failed, flush=True)
"""


def test_a_successor_takes_over_without_a_failed_connection(agents: AgentMesh, tmp_path: Path) -> None:
    log = tmp_path / "successor.log"
    through_tunnel(agents)
    former = agents.mesh.status()["nodes"]["n1"]["agent"]["pid"]
    environ = dict(
        entry.split("=", 1)
        for entry in Path(f"/proc/{former}/environ").read_text().split("\0")
        if "=" in entry
    )
    netns = agents.mesh.status()["nodes"]["n1"]["netns"]
    # A cgroup of its own: with the former agent the supervisor ends all that is left in that one's.
    cgroup = Path(environ["AMBIENT_CGROUP"]) / "successor"
    cgroup.mkdir()
    plan = {"cgroup": str(cgroup), "netns": f"/run/netns/{netns}"}
    launch = [sys.executable, str(ROOT / "daemonset/local/launch.py"), json.dumps(plan)]
    exec_client = [sys.executable, "-m", "daemonset.ctl", "exec", "--mesh", agents.mesh.name, "shop/client"]
    with subprocess.Popen(
        [*exec_client, "--", "python3", "-u", "-c", LOAD, "echo.shop"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as load:
        assert load.stdin is not None
        assert load.stdout is not None
        assert load.stdout.readline() == "started\n"
        with subprocess.Popen(
            [*launch, sys.executable, "-m", "ztunnel"],
            env=environ | {"AMBIENT_TAKEOVER": "true"},
            stdout=log.open("w"),
        ) as successor:
            try:
                wait_until("the successor has all pods", lambda: "pods listed" in log.read_text())
                os.kill(former, signal.SIGTERM)
                wait_until("the successor carries", lambda: "connection complete" in log.read_text())
                load.stdin.close()
                outcome = load.stdout.read()
                carried = subprocess.run(
                    ["ip", "netns", "exec", netns, "curl", "-s", "http://127.0.0.1:15020/metrics"],
                    capture_output=True,
                    text=True,
                ).stdout
            finally:
                successor.terminate()
    cgroup.rmdir()
    _, done, failed = outcome.strip().splitlines()[-1].split()
    assert (int(failed), outcome) == (0, f"result {done} 0\n")
    assert int(done) > 10
    assert "istio_tcp_connections_opened_total{" in carried
    wait_until(
        "the supervisor's agent is back",
        lambda: agents.curl_node("n1", "http://127.0.0.1:15021/healthz/ready").startswith("ready"),
        90,
    )
