"""A node of a cluster: own discovery, real capture, discovery and certificates from `istiodlite serve --kube`, and
traffic under a policy. Needs an API server."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.kube.conftest import Cluster, KubeServing
from tests.netns.agent.conftest import TALK
from tests.netns.kube.api import Real
from tests.netns.kube.conftest import KubeNode
from tests.support.kubelet import Sandbox, kubelet
from tests.support.serving import ROOT, wait_until
from tests.support.ztunnelprocess import ZtunnelProcess

pytestmark = [pytest.mark.root, pytest.mark.kube]

ECHO = """
import socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(self.client_address[0].removeprefix('::ffff:').encode() + b' ' + line)
class Server(socketserver.ThreadingTCPServer):
    address_family, allow_reuse_address, daemon_threads = 10, True, True
server = Server(('::', 7000), Echo)
print('ready', flush=True)
server.serve_forever()
"""
EXCLUDE_INBOUND = "traffic.sidecar.istio.io/excludeInboundPorts"


# Prints what comes back, however long it takes.
PATIENT = """
import socket, sys
s = socket.create_connection((sys.argv[1], 7000))
print('connected', flush=True)
s.sendall(b'patient\\n')
print(s.makefile().readline().strip(), flush=True)
"""


@contextlib.contextmanager
def fd_store(path: Path) -> Iterator[None]:
    """As the manifest starts it: root without any capability."""
    words = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "ebpf.fdstore"]
    with subprocess.Popen([*words, "--socket", str(path)], cwd=ROOT) as store:
        try:
            wait_until(path.is_socket, "the fd store listens")
            yield
            assert store.poll() is None, "it serves to the end"
        finally:
            store.kill()


@pytest.fixture
def mesh(cluster: Cluster, serving: KubeServing, tmp_path: Path) -> Iterator[KubeNode]:
    """The agent runs, with its service account's rights at API server and control plane."""
    folder = tmp_path / "agent"
    folder.mkdir()
    api = Real(folder, cluster)
    (folder / "root.pem").write_bytes(serving.root())
    (folder / "token").write_text(cluster.token("istio-system", "ztunnel", "istio-ca", api.agent))
    settings = {
        "NODE_NAME": api.node,
        "POD_NAME": api.agent["metadata"]["name"],
        "XDS_ADDRESS": f"https://127.0.0.1:{serving.port}",
        "ALT_XDS_HOSTNAME": "istiod.istio-system.svc",
        "ALT_CA_HOSTNAME": "istiod.istio-system.svc",
        "XDS_ROOT_CA": str(folder / "root.pem"),
        "CA_ROOT_CA": str(folder / "root.pem"),
        "AUTH_TOKEN": str(folder / "token"),
        "AMBIENT_ENROL": "kubernetes",
        "KUBECONFIG": str(api.kubeconfig),
        "AMBIENT_FD_STORE": str(folder / "fdstore" / "socket"),
    }
    agent = ZtunnelProcess(folder, **settings)
    agent.prepare()
    try:
        with kubelet(agent.cgroup) as kube, fd_store(folder / "fdstore" / "socket"):
            agent.start()
            yield KubeNode(api, kube, agent, api.node)
            agent.stop()
    finally:
        agent.clear()
        api.close()
    assert "Traceback" not in agent.log, agent.log


def talk(source: Sandbox, target: Sandbox, text: str) -> str:
    return source.ask(TALK, target.address, "7000", text)


def entries(mesh: KubeNode, **wanted: str) -> list[str]:
    """Lines of the access log with these fields."""
    lines = [line for line in mesh.agent.log.splitlines() if "\taccess\t" in line]
    return [
        line
        for line in lines
        if all(
            re.search(rf'(?:\s){re.escape(key)}="?{re.escape(value)}"?(?:\s|$)', line)
            for key, value in wanted.items()
        )
    ]


def test_traffic_of_discovered_pods_is_tunnelled_and_authorised_and_plain_again_without_the_label(
    mesh: KubeNode, cluster: Cluster
) -> None:
    mesh.label("ambient")
    client, guest, server = (
        mesh.run(name, serviceAccountName=name) for name in ("client", "guest", "server")
    )
    server.run(ECHO)
    mesh.until_in("client", "guest", "server")
    namespace = mesh.api.namespace
    identity = f"spiffe://cluster.local/ns/{namespace}/sa/"

    def through_tunnel() -> bool:
        assert talk(client, server, "hi") == f"{client.address} hi"
        return bool(entries(mesh, direction="inbound", **{"src.identity": f"{identity}client"}))

    mesh.agent.until(through_tunnel, "the control plane has told that both speak HBONE")
    principal = f"cluster.local/ns/{namespace}/sa/client"
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "callers", "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"app": "server"}},
            "rules": [{"from": [{"source": {"principals": [principal]}}]}],
        },
    }
    cluster.put(policy)
    mesh.agent.until(lambda: "knock" not in talk(guest, server, "knock"), "the policy refuses the guest")
    refused = {"src.identity": f"{identity}guest", "reason": "policy_no_match"}
    mesh.agent.until(lambda: entries(mesh, **refused), "and the log says so")
    assert talk(client, server, "yes") == f"{client.address} yes"

    # Annotations of pods are followed: with the port excluded, the stranger's plaintext meets no policy.
    stranger = mesh.run("stranger", mode="none")
    assert "knock" not in talk(stranger, server, "knock"), "captured, without identity"
    excluded = {EXCLUDE_INBOUND: "7000"}
    mesh.api.put(mesh.body("server", ip=server.address, serviceAccountName="server", annotations=excluded))
    mesh.agent.until(lambda: talk(stranger, server, "now").endswith(" now"), "the port is excluded")

    mesh.label("")
    for name in ("client", "guest", "server"):
        mesh.until_out(name)
    before = len(entries(mesh))
    assert talk(guest, server, "plain") == f"{guest.address} plain"
    assert len(entries(mesh)) == before
    assert json.dumps(mesh.agent.page("/connections")) == "[]"


def test_new_connections_wait_in_the_fd_store_while_a_killed_agent_is_away(mesh: KubeNode) -> None:
    mesh.label("ambient")
    client, server = (
        mesh.run("client", serviceAccountName="client"),
        mesh.run("server", serviceAccountName="server"),
    )
    server.run(ECHO)
    mesh.until_in("client", "server")
    mesh.agent.until(lambda: talk(client, server, "hi") == f"{client.address} hi", "traffic flows")
    mesh.agent.kill()
    # Over IPv6 a connection would be refused at once without the store (docs/capture.md).
    waiting = client.run(PATIENT, server.address6)
    mesh.agent.start()
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == f"{client.address6} patient\n"
