"""A local mesh of two nodes in which one agent is ours (n1) and the other is Istio's (n2)."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from daemonset.demo.mesh import Mesh
from tests.interop.ztunnel import redirect
from tests.interop.ztunnel.binary import binary

ROOT = Path(__file__).resolve().parents[3]
APP = Path(__file__).with_name("app.py")
OURS, THEIRS = "n1", "n2"

_NAMESPACES = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
"""


def pod(name: str, node: str, *command: str, namespace: str = "shop", service: str = "") -> str:
    """A pod with a service account of its name, and perhaps a service in front of the applications' ports."""
    labels = f"{{app: {name}, version: v1}}"
    documents = [
        f"apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: {namespace}}}",
        f"""apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {labels}}}
spec:
  nodeName: {node}
  serviceAccountName: {name}
  containers:
    - name: main
      command: {json.dumps(command or ("sleep", "infinity"))}""",
    ]
    if service:
        ports = ", ".join(f"{{name: p{p}, port: {p}, targetPort: {p}}}" for p in (7000, 7001, 7002, 7003))
        documents[1] += "\n      readinessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1}"
        documents.append(
            f"""apiVersion: v1
kind: Service
metadata: {{name: {service}, namespace: {namespace}}}
spec:
  selector: {{app: {name}}}
  ipFamilyPolicy: PreferDualStack
  ports: [{ports}]"""
        )
    return "\n---\n".join(documents)


def allow(name: str, app: str, *accounts: str) -> str:
    """An ALLOW policy: the service accounts of `shop` that may call the pods of `app`."""
    principals = json.dumps([f"cluster.local/ns/shop/sa/{account}" for account in accounts])
    return f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: {app}}}}}
  rules: [{{from: [{{source: {{principals: {principals}}}}}]}}]
"""


STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""


class MixedMesh(Mesh):
    """`ambientctl`'s mesh with another agent on some nodes."""

    __slots__ = ()

    def launch(self, **environment: str) -> None:
        """Starts the mesh. `environment` is given to both agents (SECRET_TTL, RUST_LOG, ...)."""
        agent = self.folder.parent / "agent"
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
        ours = f"exec {shlex.quote(sys.executable)} -m ztunnel proxy ztunnel"
        agent.write_text(
            f'#!/bin/sh\n{exports}test "$NODE_NAME" = {THEIRS} && exec {shlex.quote(str(binary()))} proxy ztunnel\n{ours}\n'
        )
        agent.chmod(0o755)
        self.write("00-namespaces.yaml", _NAMESPACES)
        python = (sys.executable, "-u", str(APP), "serve")
        for node, prefix in ((OURS, "our"), (THEIRS, "rust")):
            self.write(
                f"10-{prefix}-server.yaml", pod(f"{prefix}-server", node, *python, service=f"{prefix}-web")
            )
            self.write(f"20-{prefix}-client.yaml", pod(f"{prefix}-client", node))
            self.write(f"20-{prefix}-guest.yaml", pod(f"{prefix}-guest", node))
        self.write("30-stranger.yaml", pod("stranger", OURS, namespace="outside"))
        self.up(AMBIENT_AGENT_COMMAND=str(agent))
        self.steer()

    def up(self, **environment: str) -> None:
        """`ambientctl up` on the folder as it is now."""
        command = [sys.executable, "-m", "daemonset.ctl", "up", "--mesh", self.name, str(self.folder)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=env)
        assert done.returncode == 0, done.stdout + done.stderr + self.tails()

    def tails(self) -> str:
        """The ends of the logs, for a failure's text."""
        logs = sorted(Path("/run/ambientlite", self.name, "logs").glob("*.log"))
        return "".join(f"\n--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def steer(self) -> None:
        """Redirects the pods of the other agent's node to it, now that it listens."""
        state = self.status()
        for found in state["pods"].values():
            if found["node"] == THEIRS and found["enrolled"]:
                redirect.install(found["netns"], state["nodes"][THEIRS]["addresses"])

    def page(self, node: str, path: str, *flags: str) -> str:
        """What the node's agent serves on loopback: port and path."""
        words = ("ip", "netns", "exec", self.netns(node), "curl", "-s", *flags, f"http://localhost:{path}")
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout

    def dump(self, node: str) -> dict[str, Any]:
        """The agent's configuration."""
        found: dict[str, Any] = json.loads(self.page(node, "15000/config_dump"))
        return found

    def ready(self, node: str) -> str:
        """The status of the agent's readiness page."""
        return self.page(node, "15021/healthz/ready", "-o", "/dev/null", "-w", "%{http_code}")

    def clients(self) -> dict[str, dict[str, Any]]:
        """What the control plane knows about its clients, by node."""
        fabric = f"al-{self.name}-fabric"
        address = self.control_plane
        words = ("ip", "netns", "exec", fabric, "curl", "-sS", f"http://{address}:15014/debug/clients")
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)
        return {client["nodeName"]: client for client in json.loads(done.stdout)}

    @property
    def control_plane(self) -> str:
        """Its address."""
        xds = Path("/proc", str(self.agent_pid(THEIRS)), "environ").read_text()
        return (
            next(v for v in xds.split("\0") if v.startswith("XDS_ADDRESS=")).split("/")[2].rsplit(":", 1)[0]
        )

    def log(self, node: str) -> str:
        """All that the agent wrote."""
        return self.must("logs", f"ztunnel/{node}")

    def run(self, where: str, command: str, *words: str, seconds: float = 60.0) -> dict[str, Any]:
        """One of the clients of app.py in a pod; what it prints."""
        done = self.exec(where, sys.executable, str(APP), command, *words, timeout=seconds)
        assert done.returncode == 0, f"{command} in {where}: {done.stderr.strip()[-600:]}"
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def answers(self, where: str, host: str) -> bool:
        """Whether an echo comes back."""
        return self.run(where, "attempt", host, "7000").get("got") == "ping"

    def ctl(self, *words: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """`ambientctl`, run from this source tree."""
        verb, *rest = words
        command = [sys.executable, "-m", "daemonset.ctl", verb, "--mesh", self.name, *rest]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)
