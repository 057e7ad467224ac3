"""Group `mesh`: the real thing. Two pods on two nodes of the local mesh, enrolled (ours) and not enrolled (none).

The same pods, links and load both times: between the halves of a round only the namespace's label changes. CPU time
is that of both nodes' agents (ztunnel), the control plane's is not counted. What is measured over is checked before
every half: enrolled, the server pod has an HBONE connection; not enrolled, it has none.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from daemonset.local import cgroups, names
from daemonset.local.node import AGENT_COMMAND
from tests.bench import native, results, rounds
from tests.bench.cases import Case, bulk, connections, exchange
from tests.bench.machine import facts
from tests.bench.openssl import engine_openssl, libraries
from tests.bench.process import process_cpu, process_rss
from tests.bench.results import Row, Samples
from tests.bench.rounds import Plan, say
from tests.bench.testbed import HBONE_PORT, SERVER_PORT, MeasurementError, Rig

MESH, NAMESPACE = "albench", "bench"
NODES = {"client": "n1", "server": "n2"}
ENROLLED = {"ours": True, "none": False}
PATIENCE_S = 30.0
ESTABLISHED = "01"

Json = dict[str, Any]


def manifests(load: Path, *, enrolled: bool) -> list[Json]:
    """Namespace, a client that waits to be used, and the load generator as server."""
    labels = {"istio.io/dataplane-mode": "ambient"} if enrolled else {}
    commands = {
        "client": ["sleep", "infinity"],
        "server": [str(load), "serve", f"0.0.0.0:{SERVER_PORT}"],
    }
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": labels},
    }
    return [namespace, *(_pod(name, commands[name]) for name in NODES)]


def _pod(name: str, command: Sequence[str]) -> Json:
    container: Json = {"name": name, "command": list(command)}
    if name == "server":
        container["ports"] = [{"containerPort": SERVER_PORT}]
        container["readinessProbe"] = {"tcpSocket": {"port": SERVER_PORT}, "periodSeconds": 1}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": {"nodeName": NODES[name], "containers": [container]},
    }


@dataclass(frozen=True, slots=True)
class Agent:
    """A node's agent, by its process id."""

    pid: int

    def cpu(self) -> float:
        try:
            return process_cpu(self.pid)
        except OSError:
            raise MeasurementError("an agent has ended") from None

    def rss(self) -> float:
        return process_rss(self.pid)


def established(table: str, port: int) -> int:
    """Connections to local `port` in the text of /proc/net/tcp."""
    lines = (line.split() for line in table.splitlines()[1:])
    return sum(1 for f in lines if f[3] == ESTABLISHED and int(f[1].rsplit(":", 1)[1], 16) == port)


def wait_for(what: str, look: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    """Until `look` is true; MeasurementError after `seconds`."""
    end = time.monotonic() + seconds
    while not look():
        if time.monotonic() > end:
            raise MeasurementError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)


class LocalMesh(Rig):
    """A local mesh with the two pods, as a place to run loads in."""

    def __init__(self, folder: Path, load: Path, libraries: Mapping[str, str]) -> None:
        """`libraries`: environment that makes the agents load another OpenSSL."""
        self.folder, self.load_program = folder, load
        self._environment = dict(os.environ)
        if libraries:
            words = ["env", *(f"{name}={value}" for name, value in libraries.items()), sys.executable]
            self._environment[AGENT_COMMAND] = shlex.join([*words, "-m", "ztunnel", "proxy", "ztunnel"])
        self.enrolled = False
        self.entry = ""
        self._prefix: list[str] = []

    def pin(self, cpu: int | None) -> None:
        """Puts every process of the mesh, and the loads to come, on one CPU, or on all again."""
        everywhere = set(range(os.cpu_count() or 1))
        for process in self.processes:
            for task in Path(f"/proc/{process.pid}/task").glob("*"):
                with suppress(OSError):
                    os.sched_setaffinity(int(task.name), everywhere if cpu is None else {cpu})
        self._prefix = [] if cpu is None else ["taskset", "-c", str(cpu)]

    @property
    def processes(self) -> Sequence[Agent]:
        root = names.mesh_cgroup(cgroups.find(), MESH)
        return [Agent(pid) for pid in cgroups.members(root)]

    @property
    def proxies(self) -> Sequence[Agent]:
        return self.agents() if self.enrolled else []

    def agents(self) -> list[Agent]:
        """Every process of both nodes' agents."""
        mount = cgroups.find()
        folders = [names.node_cgroup(mount, MESH, node) / "agent" for node in NODES.values()]
        return [Agent(pid) for folder in folders for pid in cgroups.members(folder)]

    def load_command(self, *arguments: str) -> list[str]:
        inside = [f"{NAMESPACE}/client", "--", str(self.load_program), *arguments]
        return [*self._prefix, sys.executable, "-m", "daemonset.ctl", "exec", "--mesh", MESH, *inside]

    def ctl(self, *words: str, seconds: float = 120) -> None:
        """Runs `ambientctl VERB --mesh ...`; MeasurementError with its complaint."""
        verb, *rest = words
        command = [sys.executable, "-m", "daemonset.ctl", verb, "--mesh", MESH, *rest]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, env=self._environment
            )
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"ambientctl {verb} did not end within {seconds:.0f} s") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise MeasurementError(f"ambientctl {verb}: {said[-1] if said else done.returncode}")

    def apply(self, *, enrolled: bool) -> None:
        """Brings the mesh to the wanted state and proves that traffic goes the wanted way."""
        text = yaml.safe_dump_all(manifests(self.load_program, enrolled=enrolled))
        (self.folder / "bench.yaml").write_text(text)
        self.ctl("up", str(self.folder))
        self.enrolled = enrolled
        if not self.entry:
            self.entry = f"{self._pod_address()}:{SERVER_PORT}"
            self._choose_reno()
        wanted = "through HBONE" if enrolled else "past the mesh"
        wait_for(f"traffic goes {wanted}", self._traffic_as_wanted)

    def _traffic_as_wanted(self) -> bool:
        try:
            self.load("rr", "--seconds", "0.1")
        except MeasurementError:
            return False
        table = self._inside("server", "cat /proc/net/tcp /proc/net/tcp6")
        return (established(table, HBONE_PORT) > 0) == self.enrolled

    def _inside(self, pod: str, script: str) -> str:
        netns = names.NETNS_DIR / names.pod_netns(MESH, NAMESPACE, pod)
        command = ["nsenter", f"--net={netns}", "sh", "-ec", script]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def _pod_address(self) -> str:
        path = names.run_dir(MESH) / "objects" / f"pod.{NAMESPACE}.server.yaml"
        return str(yaml.safe_load(path.read_text())["status"]["podIP"])

    def _choose_reno(self) -> None:
        # All sockets of the data path live in the pods' namespaces; bbr, where it is the default, paces.
        for pod in NODES:
            self._inside(pod, "echo reno > /proc/sys/net/ipv4/tcp_congestion_control")
            self._inside(pod, "echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse")


def mesh_cases() -> list[Case]:
    """All cases of group `mesh`; the same loads as in group `hbone`."""
    return [
        bulk("up", 1),
        bulk("up", 8),
        bulk("down", 1),
        exchange(1, 64, "64b"),
        exchange(32, 64, "64b"),
        connections("conn-warm", cold=False),
    ]


def measure(mesh: LocalMesh, cases: Sequence[Case], plan: Plan) -> list[tuple[Row, Samples]]:
    """Rounds of two halves, in alternating order."""
    samples = {row.case: Samples() for case in cases for row in case.rows}
    for turn in range(plan.rounds):
        for variant in ("ours", "none") if turn % 2 == 0 else ("none", "ours"):
            say(f"round {turn + 1}: {variant}")
            try:
                mesh.apply(enrolled=ENROLLED[variant])
                if turn == 0:
                    mesh.load(*rounds.INTEGRITY)
            except MeasurementError as error:
                say(f"  no figures: {error}")
                for collected in samples.values():
                    collected.fail(variant, f"round {turn + 1}: {error}")
                continue
            for case in cases:
                _measure_case(mesh, case, variant, plan, samples)
    return [(row, samples[row.case]) for case in cases for row in case.rows]


def _measure_case(mesh: LocalMesh, case: Case, variant: str, plan: Plan, samples: dict[str, Samples]) -> None:
    try:
        mesh.pin(plan.pin if case.pinned else None)
        got = case.measure(mesh, plan.seconds)
    except MeasurementError as error:
        say(f"  {case.name}: no figure: {error}")
        for row in case.rows:
            samples[row.case].fail(variant, str(error))
        return
    for row in case.rows:
        samples[row.case].add(variant, got[row.case])
        say(f"  {row.case}: {rounds.describe(row, got[row.case])}")


def run_mesh(root: Path, options: argparse.Namespace, plan: Plan) -> Json:
    """Two pods on two nodes of the local mesh: enrolled against not enrolled."""
    chosen = options.cases.split(",") if options.cases else None
    cases = [case for case in mesh_cases() if chosen is None or case.name in chosen]
    load = native.build(options.out / "bin") / "load"
    folder = Path(tempfile.mkdtemp(prefix="albench-mesh-"))
    environment = libraries(options)
    mesh = LocalMesh(folder, load, environment)
    try:
        mesh.ctl("down")
        measured = measure(mesh, cases, plan)
    finally:
        subprocess.run(
            [sys.executable, "-m", "daemonset.ctl", "down", "--mesh", MESH], capture_output=True, timeout=120
        )
        shutil.rmtree(folder, ignore_errors=True)
    machine = facts(root, {}) | {"openssl": engine_openssl(environment)}
    method = {
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "halves": "same pods, namespace label changed between them",
        "requests and connections": rounds.where(plan.pin),
        "path": f"pod on {NODES['client']} to pod on {NODES['server']}, by pod address",
        "congestion control": "reno",
    }
    return results.document("mesh", machine, method, measured, list(ENROLLED), {})
