"""Connections between pods whose agent has everything from istiod: discovery, policies, certificates."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.istiod.pods import CLIENT_IP, SERVER_IP, Pair, pair
from tests.interop.istiod.process import Istiod
from tests.interop.istiod.test_agent import launch
from tests.interop.istiod.test_protocol import Node
from tests.interop.kube.conftest import Cluster
from tests.support.cni import CniAgent, CniPod
from tests.support.ports import free_port
from tests.support.serving import wait_until
from tests.support.ztunnelprocess import ZtunnelProcess

pytestmark = [pytest.mark.istiod, pytest.mark.root]
NODE = "traffic-n1"
SECURITY = "security.istio.io/v1"
# Half of the life is over 15 s after issue: istiod dates certificates back by two minutes.
TTL = "150s"


@dataclass
class Traffic:
    """The agent, its pods and the namespace they are in."""

    cluster: Cluster
    agent: ZtunnelProcess
    pods: Pair
    namespace: str
    stats: int

    def meshed(self) -> str:
        return self.pods.ask(self.agent.cgroup / "pods")

    def plain(self) -> str:
        """From a process that no agent captures."""
        return self.pods.ask(None)

    def put(self, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        body = {
            "apiVersion": SECURITY,
            "kind": kind,
            "metadata": {"name": "traffic", "namespace": self.namespace},
        }
        self.cluster.put({**body, "spec": spec})
        return body

    def serials(self) -> dict[str, str]:
        """Serial number of the certificate of each identity."""
        dump = self.agent.dump() or {"certificates": []}
        return {
            one["identity"]: one["certChain"][0]["serialNumber"]
            for one in dump["certificates"]
            if one["state"] == "Available"
        }

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.stats}/metrics", timeout=30) as page:
            return str(page.read().decode())


AGENT = {"nodeName": NODE, "serviceAccountName": "ztunnel", "containers": [{"name": "c", "image": "none"}]}


def pod(namespace: str, name: str, ip: str, annotated: bool = True) -> dict[str, Any]:
    annotations = {"ambient.istio.io/redirection": "enabled"} if annotated else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app": name},
            "annotations": annotations,
        },
        "spec": {
            "nodeName": NODE,
            "serviceAccountName": name,
            "containers": [{"name": "c", "image": "none"}],
        },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


@pytest.fixture(scope="module")
def traffic(cluster: Cluster, istiod: Istiod, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traffic]:
    folder = tmp_path_factory.mktemp("traffic")
    namespace = cluster.namespace()
    made = cluster.put(
        {**pod("istio-system", f"ztunnel-{NODE}", "192.0.2.220", annotated=False), "spec": AGENT}
    )
    token = cluster.token("istio-system", "ztunnel", "istio-ca", made)
    bodies = []
    for name, ip in (("client", CLIENT_IP), ("server", SERVER_IP)):
        cluster.put(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
        )
        bodies.append(cluster.put(pod(namespace, name, ip)))
    stats = free_port()
    cni = CniAgent(folder / "zds.sock")
    try:
        with pair() as pods:
            for body, netns in zip(bodies, (pods.client, pods.server), strict=True):
                meta = body["metadata"]
                cni.pods[meta["uid"]] = CniPod(
                    meta["uid"], meta["name"], namespace, meta["name"], Path("/run/netns") / netns
                )
            node = Node(NODE, f"ztunnel-{NODE}", token)
            settings = {"INPOD_UDS": str(cni.path), "STATS_PORT": str(stats), "SECRET_TTL": TTL}
            with launch(folder / "agent", istiod, node, **settings) as agent:
                assert cni.accept() == ["", "", ""]
                agent.until(agent.ready, "ready with its pods")
                (agent.cgroup / "pods").mkdir()
                try:
                    yield Traffic(cluster, agent, pods, namespace, stats)
                finally:
                    (agent.cgroup / "pods").rmdir()
                assert "Traceback" not in agent.log, agent.log
    finally:
        cni.close()
        # Where nothing collects what was in a namespace, the next run's pods would share their addresses with these.
        for body in bodies:
            cluster.delete(body)
        cluster.delete(pod("istio-system", f"ztunnel-{NODE}", ""))


def counted(traffic: Traffic, *labels: str) -> bool:
    return any(
        line.startswith("istio_tcp_connections_opened_total{") and all(label in line for label in labels)
        for line in traffic.metrics().splitlines()
    )


def test_a_connection_goes_by_hbone_under_istiods_identities(traffic: Traffic) -> None:
    wait_until(lambda: traffic.meshed() == "got ping", lambda: traffic.agent.log[-3000:])
    names = [
        f'source_principal="spiffe://cluster.local/ns/{traffic.namespace}/sa/client"',
        f'destination_principal="spiffe://cluster.local/ns/{traffic.namespace}/sa/server"',
        'connection_security_policy="mutual_tls"',
    ]
    for reporter in ("source", "destination"):
        wait_until(lambda r=reporter: counted(traffic, f'reporter="{r}"', *names), traffic.metrics)


def test_istiods_policies_are_enforced(traffic: Traffic) -> None:
    wait_until(lambda: traffic.meshed() == "got ping", lambda: traffic.agent.log[-3000:])
    principal = f"cluster.local/ns/{traffic.namespace}/sa/client"
    rules = [{"from": [{"source": {"principals": [principal]}}]}]
    made = traffic.put("AuthorizationPolicy", {"action": "DENY", "rules": rules})
    wait_until(lambda: traffic.meshed() != "got ping", "the client is refused")
    assert traffic.plain() == "got ping", "the rule is about an identity"
    traffic.put("AuthorizationPolicy", {"action": "ALLOW", "rules": rules})
    wait_until(lambda: traffic.meshed() == "got ping", "the client is let in")
    wait_until(lambda: traffic.plain() != "got ping", "nobody else is")
    traffic.cluster.delete(made)
    wait_until(lambda: traffic.plain() == "got ping", "everybody is")


def test_strict_shuts_out_who_has_no_identity(traffic: Traffic) -> None:
    wait_until(lambda: traffic.plain() == "got ping", "plaintext passes")
    made = traffic.put("PeerAuthentication", {"mtls": {"mode": "STRICT"}})
    wait_until(lambda: traffic.plain() != "got ping", "plaintext is refused")
    assert traffic.meshed() == "got ping"
    traffic.cluster.delete(made)
    wait_until(lambda: traffic.plain() == "got ping", "plaintext passes again")


def test_certificates_are_renewed_and_no_connection_fails(traffic: Traffic) -> None:
    before = wait_until(lambda: len(traffic.serials()) == 2 and traffic.serials(), "both certificates")

    def renewed() -> bool:
        assert traffic.meshed() == "got ping"
        return all(traffic.serials().get(name) not in (None, serial) for name, serial in before.items())

    wait_until(renewed, "both certificates are new ones")
    assert traffic.meshed() == "got ping"
