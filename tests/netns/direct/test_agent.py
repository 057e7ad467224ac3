"""The direct path as pods, logs, metrics and policies see it, on a real mesh."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.netns.agent.conftest import ECHO, TALK, AgentMesh, pod
from tests.netns.agent.test_agent import SPIFFE, policy
from tests.netns.direct.conftest import counters
from tests.netns.local.conftest import wait_until
from ztunnel.enrol.settings import ACCELERATE
from ztunnel.whatif import DIRECT

pytestmark = pytest.mark.root

PATH = "connection_path"


def samples(agents: AgentMesh, reporter: str, **labels: str) -> dict[str, float]:
    """The four traffic counters of client -> near, from one side."""
    text = agents.curl_node("n1", "http://127.0.0.1:15020/metrics")
    wanted = {"reporter": reporter, "source_workload": "client", "destination_workload": "near", **labels}
    rows = [
        row for row in text.splitlines() if all(f'{name}="{value}"' in row for name, value in wanted.items())
    ]
    names = ("connections_opened", "connections_closed", "received_bytes", "sent_bytes")
    return {
        name: sum(
            float(row.rpartition(" ")[2]) for row in rows if row.startswith(f"istio_tcp_{name}_total{{")
        )
        for name in names
    }


@pytest.mark.parametrize("to", ["service", "pod", "pod v6"])
def test_log_lines_are_those_of_a_relayed_connection_and_say_direct(never: AgentMesh, to: str) -> None:
    status = never.mesh.status()["pods"]
    family = (lambda a: ":" in a) if to == "pod v6" else (lambda a: ":" not in a)
    client, near = (next(filter(family, status[f"shop/{name}"]["addresses"])) for name in ("client", "near"))
    host, port = ("near.shop", 70) if to == "service" else (near, 7000)
    before, line = counters(never)["direct"], f"hello {to} {time.monotonic_ns()}"
    assert never.talk("shop/client", host, port, line) == f"{client} {line}"
    assert counters(never)["direct"] == before + 1
    sent, received = len(line) + 1, len(client) + len(line) + 2
    shown = f"[{near}]:7000" if ":" in near else f"{near}:7000"
    both = {
        PATH: "direct",
        "dst.addr": shown,
        "src.identity": SPIFFE + "client",
        "dst.identity": SPIFFE + "near",
        "src.workload": "client",
        "dst.workload": "near",
        "dst.service": "near.shop.svc.cluster.local",
    }
    if to == "pod v6" or to == "pod":
        outbound = never.access(
            "n1", direction="outbound", **{k: v for k, v in both.items() if k != "dst.service"}
        )
    else:
        outbound = never.access("n1", direction="outbound", **both)
    inbound = never.access("n1", direction="inbound", **both)
    assert (outbound["bytes_sent"], outbound["bytes_recv"]) == (str(sent), str(received))
    assert (inbound["bytes_sent"], inbound["bytes_recv"]) == (str(received), str(sent))
    assert outbound["src.addr"] == inbound["src.addr"]
    assert "dst.hbone_addr" not in outbound
    asked = f"{host}:{port}" if ":" not in host else f"[{host}]:{port}"
    assert DIRECT in never.mesh.ctl("explain", "--from", "shop/client", "--to", asked).stdout.splitlines()


@pytest.mark.parametrize("reporter", ["source", "destination"])
def test_metrics_count_exactly_under_the_label_direct(never: AgentMesh, reporter: str) -> None:
    identities = {"source_principal": SPIFFE + "client", "destination_principal": SPIFFE + "near"}
    labels = {PATH: "direct", **identities}
    client = never.address("shop/client")
    before = samples(never, reporter, **labels)
    for _ in range(3):
        never.talk("shop/client", "near.shop", 70, "12345")
    each = {"connections_opened": 1, "connections_closed": 1, "received_bytes": 6}
    each["sent_bytes"] = len(f"{client} 12345\n")
    expected = {name: before[name] + 3 * value for name, value in each.items()}
    wait_until(f"counters reach {expected}", lambda: samples(never, reporter, **labels) == expected)
    assert not any(samples(never, reporter, **{PATH: "proxy"}).values())


def test_other_nodes_and_strangers_do_not_go_direct(never: AgentMesh) -> None:
    before = counters(never)["direct"]
    assert never.talk("shop/client", "echo.shop", 70, "far").endswith("far")
    assert "dst.hbone_addr" in never.access("n1", direction="outbound", **{"dst.workload": "echo"})
    assert never.talk("outside/stranger", "near.shop", 70, "hi").endswith("hi")
    assert counters(never)["direct"] == before


def test_a_port_that_no_service_names_is_left_to_the_proxy(never: AgentMesh) -> None:
    near = never.address("shop/near")
    assert "hi" not in never.talk("shop/client", near, 7999, "hi")
    assert PATH not in never.access("n1", direction="inbound", reason="connect_refused")


def bytes_of(agents: AgentMesh, account: str) -> set[tuple[int, int]]:
    """Sent and received so far by open connections of a client, at both ends."""
    live = json.loads(agents.curl_node("n1", "http://127.0.0.1:15000/connections"))
    return {(c["bytesSent"], c["bytesReceived"]) for c in live if c["sourceIdentity"] == SPIFFE + account}


class Talker:
    """A pod's session with near, over which lines are sent one by one."""

    def __init__(self, agents: AgentMesh, pod: str) -> None:
        talk = [sys.executable, "-m", "daemonset.ctl", "exec", "--mesh", agents.mesh.name, pod, "--"]
        command = [*talk, "python3", "-u", "-c", TALK, "near.shop", "70"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, line: str) -> str:
        """What comes back; empty once the session has ended."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return ""
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(60)


def test_a_policy_ends_direct_connections_that_it_forbids_and_only_those(never: AgentMesh) -> None:
    before = counters(never)["direct"]
    kept, cut = Talker(never, "shop/client"), Talker(never, "shop/guest")
    try:
        assert kept.say("one").endswith("one")
        assert cut.say("one").endswith("one")
        assert counters(never)["direct"] == before + 2
        live = json.loads(never.curl_node("n1", "http://127.0.0.1:15000/connections"))
        assert sum(c["sourceIdentity"] == SPIFFE + "guest" for c in live) == 2
        both_ways = {(4, len(never.address("shop/guest")) + 5), (len(never.address("shop/guest")) + 5, 4)}
        wait_until(
            "the bytes of open connections are known", lambda: bytes_of(never, "guest") == both_ways, 30
        )
        never.mesh.write("policy.yaml", policy("near-callers", "near", "client"))
        never.mesh.up()
        entry = never.access("n1", reason="policy_changed")
        assert (entry[PATH], entry["policy"], entry["src.workload"]) == (
            "direct",
            "shop/near-callers",
            "guest",
        )
        assert "two" not in cut.say("two")
        assert kept.say("two").endswith("two")
        assert "hi" not in never.talk("shop/guest", "near.shop", 70, "hi")
        assert DIRECT not in never.mesh.ctl("explain", "--from", "shop/guest", "--to", "near.shop:70").stdout
        refused = never.access("n1", direction="inbound", reason="policy_no_match")
        assert PATH not in refused
        assert never.talk("shop/client", "near.shop", 70, "hi").endswith("hi")
        assert never.access("n1", direction="outbound", **{PATH: "direct", "src.workload": "client"})
    finally:
        kept.close()
        cut.close()
        never.mesh.write("policy.yaml")
        never.mesh.up()
    wait_until(
        "the guest goes direct again", lambda: "hi" in never.talk("shop/guest", "near.shop", 70, "hi"), 10
    )


def test_a_killed_agent_leaves_direct_connections_and_its_successor_knows_them(never: AgentMesh) -> None:
    talker = Talker(never, "shop/client")
    try:
        assert talker.say("one").endswith("one")
        former = never.mesh.status()["nodes"]["n1"]["agent"]["pid"]
        os.kill(former, signal.SIGKILL)
        assert talker.say("alone").endswith("alone")
        wait_until(
            "another agent",
            lambda: never.mesh.status()["nodes"]["n1"]["agent"]["pid"] not in (0, None, former),
            20,
        )

        def known() -> bool:
            answer = never.curl_node("n1", "http://127.0.0.1:15000/connections")
            live = json.loads(answer) if answer else []
            return any(c["sourceIdentity"] == SPIFFE + "client" for c in live)

        wait_until("the successor knows the connection", known)
        assert talker.say("two").endswith("two")
    finally:
        talker.close()
    client = never.address("shop/client")
    sent = sum(len(line) + 1 for line in ("one", "alone", "two"))
    entry = never.access("n1", direction="outbound", bytes_sent=str(sent))
    assert (entry[PATH], entry["bytes_recv"]) == ("direct", str(sent + 3 * (len(client) + 1)))


def test_policy_that_comes_while_no_agent_is_there_ends_what_the_former_allowed(never: AgentMesh) -> None:
    kept, cut = Talker(never, "shop/client"), Talker(never, "shop/guest")
    try:
        wait_until(
            "both go direct", lambda: kept.say("one").endswith("one") and cut.say("one").endswith("one")
        )
        os.kill(never.mesh.status()["nodes"]["n1"]["agent"]["pid"], signal.SIGKILL)
        never.mesh.write("policy.yaml", policy("near-callers", "near", "client"))
        never.mesh.up()
        # The log may have such an entry from before, so the session itself is asked.
        wait_until("the guest's session ends", lambda: "two" not in cut.say("two"), 60)
        entry = never.access("n1", direction="inbound", reason="policy_changed")
        assert (entry[PATH], entry["src.workload"]) == ("direct", "guest")
        assert kept.say("two").endswith("two")
    finally:
        kept.close()
        cut.close()
        never.mesh.write("policy.yaml")
        never.mesh.up()


_SERVICE = """---
apiVersion: v1
kind: Service
metadata: {name: quick, namespace: shop}
spec: {selector: {app: quick}, ports: [{name: tcp, port: 70, targetPort: 7000}]}
"""


def test_pods_that_ask_are_accelerated_and_the_log_has_every_byte(never: AgentMesh) -> None:
    """A pod's own annotation, and that of the other end."""
    asked = f"annotations: {{{ACCELERATE}: 'true'}}"
    for name, text in (
        ("quick", pod("quick", "n1", ECHO, port=7000) + _SERVICE),
        ("asker", pod("asker", "n1", "sleep infinity")),
    ):
        labels = f"labels: {{app: {name}}}"
        never.mesh.write(f"{name}.yaml", text.replace(labels, f"{labels}, {asked}", 1))
    try:
        never.mesh.up()

        def accelerated() -> bool:
            before = counters(never)["turbo"]
            never.talk("shop/asker", "quick.shop", 70, "ready?")
            return counters(never)["turbo"] == before + 2

        wait_until("they are accelerated", accelerated, 60)
        before, line = counters(never)["turbo"], f"hello {time.monotonic_ns()}"
        asker = never.address("shop/asker")
        assert never.talk("shop/asker", "quick.shop", 70, line) == f"{asker} {line}"
        sent = len(line) + 1
        for direction, told in (("outbound", "bytes_sent"), ("inbound", "bytes_recv")):
            wanted = {"src.workload": "asker", told: str(sent), PATH: "direct"}
            entry = never.access("n1", direction=direction, **wanted)
            assert {entry["bytes_sent"], entry["bytes_recv"]} == {str(sent), str(sent + len(asker) + 1)}
        never.talk("shop/asker", "near.shop", 70, "one end")
        never.talk("shop/client", "quick.shop", 70, "the other end")
        assert counters(never)["turbo"] == before + 2
    finally:
        never.mesh.write("quick.yaml")
        never.mesh.write("asker.yaml")
        never.mesh.up()
