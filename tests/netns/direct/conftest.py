"""A local mesh whose agents run with SAME_NODE_ENCRYPTION=never."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemonset.local import cleanup
from ebpf import bpf, maps
from ebpf.capture import Capture
from tests.netns.agent.conftest import AgentMesh, enrolled, manifests, pod
from tests.netns.capture import apps
from tests.netns.capture.lab import Lab, wait_for
from tests.netns.direct.bench import PORT, Bench
from tests.netns.direct.host import Host
from tests.netns.local.conftest import make_mesh, wait_until
from tests.support import sanitized


def counters(agents: AgentMesh, node: str = "n1") -> dict[str, int]:
    """The kernel's counters of capture."""
    text = agents.curl_node(node, "http://127.0.0.1:15020/metrics")
    rows = [row for row in text.splitlines() if row.startswith("ambient_capture_total{")]
    return {row.split('"')[1]: int(float(row.rpartition(" ")[2])) for row in rows}


@pytest.fixture(scope="module")
def never(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentMesh]:
    """client, guest and near on n1 (near with a service), echo on n2, a stranger outside the mesh."""
    with _mesh(tmp_path_factory.mktemp("direct")) as made:
        yield made


@pytest.fixture(scope="module")
def shorter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentMesh]:
    """`never`, with the short cut past the host."""
    with _mesh(tmp_path_factory.mktemp("shorter"), "AMBIENT_REDIRECT_PEER=true") as made:
        yield made


@contextlib.contextmanager
def _mesh(folder: Path, *settings: str) -> Iterator[AgentMesh]:
    mesh = make_mesh(folder)
    mesh.flags = ()
    manifests(mesh)
    mesh.write("nearby.yaml", pod("other", "n1", "sleep infinity"))
    with pytest.MonkeyPatch.context() as patch:
        chosen = " ".join(("SAME_NODE_ENCRYPTION=never", *settings))
        agent = f"/usr/bin/env {chosen} {shlex.join(sanitized.agent_command())}"
        patch.setenv("AMBIENT_AGENT_COMMAND", agent)
        try:
            mesh.up()
            made = AgentMesh(mesh)
            wait_until("pods enrolled", lambda: enrolled(mesh) >= 5, 30)
            wait_until("the direct path is in use", lambda: _goes_direct(made))
            yield made
        finally:
            logs = Path("/run/ambientlite") / mesh.name / "logs"
            for log in sorted(logs.glob("ztunnel*.log")):
                print(f"== {log.name}\n{log.read_text()[-8000:]}")
            cleanup.clean(mesh.name)


def _goes_direct(agents: AgentMesh) -> bool:
    before = counters(agents).get("direct", 0)
    agents.talk("shop/client", "near.shop", 70, "ready?")
    return counters(agents).get("direct", 0) > before


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Host]:
    built = Host(lab)
    yield built
    built.close()


@pytest.fixture
def capture(lab: Lab) -> Iterator[Capture]:
    made = Capture.open(
        cgroup=lab.cgroup, pin_dir=lab.pin_dir, agent_pid=os.getpid(), cache_dir=lab.cache_dir
    )
    yield made
    made.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


@pytest.fixture(scope="module")
def made(lab: Lab) -> Iterator[Bench]:
    capture = Capture.open(
        cgroup=lab.cgroup, pin_dir=lab.pin_dir, agent_pid=os.getpid(), cache_dir=lab.cache_dir
    )
    first, second = (capture.enrol(pod.network()) for pod in lab.pods[:2])
    lab.servers.serve(first.outbound, "outbound")
    lab.servers.serve(second.inbound, "inbound")
    found = [lab.app(pod) for pod in lab.pods]
    for app in found:
        app.call(apps.serve, PORT, "app")
    capture.direct.enable()
    yield Bench(lab, capture, first, second, *found)
    capture.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


@pytest.fixture
def bench(made: Bench) -> Bench:
    """With its pairs in force, and no events left over from another test."""
    made.capture.direct.suspend()
    made.capture.direct.set_pairs(made.pairs())
    made.capture.direct.renew(60)
    settle(made)
    return made


def settle(made: Bench) -> None:
    """Until another test's connections have ended and been told of; those that a failed test left open are forgotten."""
    fd = made.capture._kernel.maps["direct_conns"]
    with contextlib.suppress(AssertionError):
        wait_for(lambda: not list(bpf.map_keys(fd, maps.LAYOUT["direct_conns"].key_size)), "quiet", 5)
    for connection in made.capture.direct.live():
        made.capture.direct.forget(connection)
    while made.capture.direct.take():
        pass
