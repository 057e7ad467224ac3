"""A local mesh of two nodes with agents: real capture, real engine, real control plane."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemonset.local import cleanup
from tests.netns.local.conftest import Mesh, make_mesh, service, wait_until

NAMESPACES = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
"""

# Answers every line with the client's address and the line; `hold` keeps connections open as long as clients do.
ECHO = """
import socketserver, sys
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(self.client_address[0].removeprefix('::ffff:').encode() + b' ' + line)
class Server(socketserver.ThreadingTCPServer):
    address_family, allow_reuse_address, daemon_threads = 10, True, True
Server(('::', 7000), Echo).serve_forever()
"""

# Sends a line, prints the answer, then waits for more lines to send; tells how the connection ended.
TALK = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30)
f = s.makefile('rwb')
try:
    for line in (sys.argv[3:] or sys.stdin):
        f.write(line.strip().encode() + b'\\n'); f.flush()
        answer = f.readline()
        print(answer.decode().strip() if answer else 'closed', flush=True)
except OSError as error:
    print('error', error, flush=True)
"""


def pod(name: str, node: str, command: str, namespace: str = "shop", *, port: int = 0) -> str:
    """A Pod on a node, with a service account of its own name."""
    # A text of several lines is a Python program.
    words = ["python3", "-u", "-c", command] if "\n" in command else shlex.split(command)
    command_line = json.dumps(words)
    probe = f"readinessProbe: {{tcpSocket: {{port: {port}}}, periodSeconds: 1}}" if port else ""
    ports = f"ports: [{{name: web, containerPort: {port}}}]" if port else ""
    return f"""
apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}, namespace: {namespace}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  serviceAccountName: {name}
  containers:
    - name: main
      command: {command_line}
      {ports}
      {probe}
"""


class AgentMesh:
    """The mesh, and what its agents say."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def talk(self, source: str, host: str, port: int, *lines: str) -> str:
        """Lines sent from a pod, and what came back."""
        done = self.mesh.exec(source, "python3", "-c", TALK, host, str(port), *lines)
        return (done.stdout + done.stderr).strip()

    def address(self, name: str) -> str:
        """The pod's IPv4 address."""
        return str(self.mesh.status()["pods"][name]["addresses"][0])

    def agent_log(self, node: str) -> list[str]:
        """The lines of a node's agent."""
        return self.mesh.ctl("logs", f"ztunnel/{node}").stdout.splitlines()

    def access(self, node: str, **wanted: str) -> dict[str, str]:
        """The newest access log entry with these fields."""
        found: list[dict[str, str]] = []

        def look() -> bool:
            entries = [fields(line) for line in self.agent_log(node) if "\taccess\t" in line]
            found[:] = [e for e in entries if wanted.items() <= e.items()]
            return bool(found)

        wait_until(f"access log of {node} with {wanted}", look)
        return found[-1]

    def curl_node(self, node: str, url: str, *flags: str) -> str:
        """An HTTP page of the node's agent, asked from inside its namespace."""
        netns = self.mesh.status()["nodes"][node]["netns"]
        done = subprocess.run(
            ["ip", "netns", "exec", netns, "curl", "-s", *flags, url],
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout


def through_tunnel(agents: AgentMesh) -> None:
    """Wait until discovery has reached both agents: connections use the tunnel."""

    def look() -> bool:
        agents.talk("shop/client", "echo.shop", 70, "ready?")
        return any("dst.hbone_addr" in line and "client" in line for line in agents.agent_log("n1"))

    wait_until("connections use the tunnel", look)


def fields(line: str) -> dict[str, str]:
    """Key-value fields of a log line, unquoted."""
    pairs = re.findall(r'([\w.]+)=("(?:[^"\\]|\\.)*"|\S+)', line)
    return {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}


def manifests(mesh: Mesh) -> None:
    """Two nodes: client, guest and near on n1; echo on n2; a stranger outside the mesh."""
    mesh.write("namespaces.yaml", NAMESPACES)
    mesh.write(
        "echo.yaml", pod("echo", "n2", ECHO, port=7000), service("echo").replace("port: 80", "port: 70")
    )
    mesh.write(
        "near.yaml", pod("near", "n1", ECHO, port=7000), service("near").replace("port: 80", "port: 70")
    )
    mesh.write(
        "clients.yaml",
        pod("client", "n1", "sleep infinity"),
        pod("guest", "n1", "sleep infinity"),
        pod("stranger", "n1", "sleep infinity", "outside"),
    )


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentMesh]:
    """A running mesh with agents, all pods enrolled."""
    mesh = make_mesh(tmp_path_factory.mktemp("agents"))
    mesh.flags = ()
    manifests(mesh)
    try:
        mesh.up()
        made = AgentMesh(mesh)
        wait_until("pods enrolled", lambda: enrolled(mesh) >= 4, 30)
        yield made
    finally:
        logs = Path("/run/ambientlite") / mesh.name / "logs"
        for log in sorted(logs.glob("*.log")):
            print(f"== {log.name}\n{log.read_text()[-6000:]}")
        cleanup.clean(mesh.name)


def enrolled(mesh: Mesh) -> int:
    """How many pods the agents have acknowledged."""
    return sum(found["enrolment"] == "in" for found in mesh.status()["pods"].values())
