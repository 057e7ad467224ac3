"""A local mesh without a data plane, driven as a user drives it: by `ambientctl` and a folder of manifests."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from daemonset.local import cleanup

ROOT = Path(__file__).resolve().parents[3]
_numbers = itertools.count()

NAMESPACE = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
"""

# Answers every request with the pod's name, on IPv4 and IPv6.
SERVER = """
import http.server, os, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = (os.environ['HOSTNAME'] + ' ' + os.environ.get('GREETING', '')).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Server(('::', int(sys.argv[1])), Handler).serve_forever()
"""


def deployment(name: str, replicas: int = 1, greeting: str = "hello", namespace: str = "shop") -> str:
    """A Deployment of HTTP servers on port 8080 (port name: web) with a readiness probe."""
    program = json.dumps(SERVER)
    return f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      containers:
        - name: server
          command: [python3, -c, {program}, "8080"]
          env: [{{name: GREETING, value: "{greeting}"}}]
          ports: [{{name: web, containerPort: 8080}}]
          readinessProbe: {{httpGet: {{port: web}}, periodSeconds: 1}}
"""


def service(name: str, extra: str = "", namespace: str = "shop") -> str:
    """A Service on port 80 in front of the Deployment of that name."""
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{app: {name}}}
  ports: [{{port: 80, targetPort: web}}]
  {extra}
"""


def sleeper(name: str, extra: str = "", namespace: str = "shop", labels: str = "{}") -> str:
    """A Pod that does nothing."""
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {labels}}}
spec:
  {extra}
  containers: [{{name: main, command: [sleep, infinity]}}]
"""


@dataclass
class Mesh:
    """A mesh and its folder."""

    name: str
    folder: Path
    flags: tuple[str, ...] = ("--no-mesh",)
    upped: bool = field(default=False)

    def ctl(self, verb: str, *words: str) -> "subprocess.CompletedProcess[str]":
        """Runs ambientctl; never raises on its status."""
        command = [sys.executable, "-m", "daemonset.ctl", verb, "--mesh", self.name, *words]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, timeout=90, env=env)

    def write(self, file: str, *documents: str) -> None:
        """Writes a file of the folder; without documents, removes it."""
        path = self.folder / file
        if documents:
            path.write_text("\n---\n".join(documents))
        else:
            path.unlink()

    def up(self, *flags: str) -> str:
        """`ambientctl up`, which has to succeed."""
        done = self.ctl("up", *self.flags, *flags, str(self.folder))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def exec(self, pod: str, *command: str) -> "subprocess.CompletedProcess[str]":
        """Runs a program in a pod."""
        return self.ctl("exec", pod, "--", *command)

    def get(self, pod: str, url: str, *flags: str) -> str:
        """What curl in the pod gets; its error if it gets nothing."""
        done = self.exec(pod, "curl", "-sS", "--max-time", "5", *flags, url)
        return done.stdout or done.stderr

    def status(self) -> dict[str, Any]:
        """`ambientctl status --json`."""
        found: dict[str, Any] = json.loads(self.ctl("status", "--json").stdout)
        return found

    def pods(self, prefix: str) -> list[dict[str, Any]]:
        """Status of the pods whose NAMESPACE/NAME begins so."""
        return [pod for name, pod in self.status()["pods"].items() if name.startswith(prefix)]

    def object(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        """An object as the control plane sees it."""
        path = Path("/run/ambientlite") / self.name / "objects" / f"{kind}.{namespace}.{name}.yaml"
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def down(self) -> None:
        """`ambientctl down`, which has to succeed."""
        done = self.ctl("down")
        assert done.returncode == 0, done.stderr


def wait_until(what: str, look: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def processes_of(mesh: Mesh) -> list[str]:
    """Command lines of living processes in the mesh's cgroups (a dead one that init has yet to reap has none)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"/ambientlite/{mesh.name}/" in (folder / "cgroup").read_text():
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return list(filter(None, found))


def make_mesh(folder: Path) -> Mesh:
    """A mesh with a name of its own and an empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return Mesh(f"t{os.getpid()}-{next(_numbers)}", folder)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    """A mesh that is not up yet; whatever the test leaves is removed."""
    made = make_mesh(tmp_path / "manifests")
    yield made
    cleanup.clean(made.name)


@pytest.fixture
def second_mesh(tmp_path: Path) -> Iterator[Mesh]:
    """Another one."""
    made = make_mesh(tmp_path / "manifests2")
    yield made
    cleanup.clean(made.name)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A running mesh: two nodes, two web servers behind a service, a client on each node."""
    made = make_mesh(tmp_path_factory.mktemp("shop"))
    made.write("namespace.yaml", NAMESPACE)
    made.write("web.yaml", deployment("web", 2), service("web", "ipFamilyPolicy: PreferDualStack"))
    made.write("headless.yaml", service("web-all", "clusterIP: None").replace("app: web-all", "app: web"))
    made.write("nobody.yaml", service("nobody"))
    made.write("one.yaml", sleeper("one", "nodeName: n1"), sleeper("two", "nodeName: n2"))
    try:
        made.up()
        yield made
    finally:
        cleanup.clean(made.name)
