"""Drives group `upgrade`: a local mesh of two nodes, its agents replaced and then killed in turn, under load."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from daemonset.local.node import FD_STORE
from tests.bench import results
from tests.bench.machine import busy_seconds, facts
from tests.bench.mesh import wait_for
from tests.bench.results import Row, Sample, Samples
from tests.bench.rounds import Plan, say
from tests.bench.testbed import MeasurementError

Json = dict[str, Any]
PORT = 7000
NODES = ("n1", "n2")
WITHOUT = "without-fdstore"
VARIANTS: Mapping[str, Mapping[str, str]] = {results.SUBJECT: {}, WITHOUT: {FD_STORE: ""}}
ROWS = (
    Row("upgrade-failed", "connection", "lower"),
    Row("upgrade-lost-sessions", "session", "lower"),
    Row("upgrade-longest-wait", "s", "lower"),
    Row("kill-failed", "connection", "lower"),
    Row("kill-longest-wait", "s", "lower"),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done: upgrades and kills, new connections a second, long sessions."""

    upgrades: int = 20
    kills: int = 5
    rate: float = 500
    sessions: int = 100


def manifests(root: Path) -> list[Json]:
    """A client on the first node that waits to be used, the echo on the second."""
    echo = ["env", f"PYTHONPATH={root}", sys.executable, "-m", "tests.bench.upgrade.echo", str(PORT)]
    commands = {"client": ["sleep", "infinity"], "server": echo}
    labels = {"istio.io/dataplane-mode": "ambient"}
    made: list[Json] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bench", "labels": labels}}
    ]
    for (name, command), node in zip(commands.items(), NODES, strict=True):
        container: Json = {"name": name, "command": command}
        if name == "server":
            container["readinessProbe"] = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
        made.append(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "bench"},
                "spec": {"nodeName": node, "containers": [container]},
            }
        )
    return made


class Mesh:
    """A local mesh of its own name, by `ambientctl`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.name = f"albench-{os.getpid()}"
        self._environment = os.environ | dict(environment)

    def ctl(self, verb: str, *words: str) -> str:
        """Runs a command; MeasurementError with its complaint."""
        command = [sys.executable, "-m", "daemonset.ctl", verb, "--mesh", self.name, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=self._environment)
        if done.returncode:
            raise MeasurementError(f"ambientctl {verb}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def status(self) -> Json:
        """As `ambientctl status --json`."""
        found: Json = json.loads(self.ctl("status", "--json"))
        return found

    def kill(self, node: str) -> None:
        """SIGKILL for a node's agent; returns when the next one serves its pods."""
        pid = self.status()["nodes"][node]["agent"]["pid"]
        os.kill(pid, signal.SIGKILL)

        def is_back() -> bool:
            agent = self.status()["nodes"][node]["agent"]
            return agent["pid"] not in (0, pid) and agent["connected"]

        wait_for(f"another agent on {node}", is_back, 60)

    @contextmanager
    def load(self, root: Path, size: Size) -> Iterator[Driver]:
        """The load in the client's pod."""
        (address, *_) = self.status()["pods"]["bench/server"]["addresses"]
        program = [sys.executable, "-m", "tests.bench.upgrade.load", address, str(PORT)]
        inside = ["env", f"PYTHONPATH={root}", *program, str(size.rate), str(size.sessions)]
        command = [sys.executable, "-m", "daemonset.ctl", "exec", "--mesh", self.name, "bench/client", "--"]
        pipe = subprocess.PIPE
        with subprocess.Popen([*command, *inside], stdin=pipe, stdout=pipe, text=True) as process:
            try:
                yield Driver(process)
            finally:
                process.kill()


class Driver:
    """The load's process; see `load`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, command: str) -> Json:
        """The answer to `mark` or `sessions`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise MeasurementError("the load has ended")
        found: Json = json.loads(answer)
        return found


@contextmanager
def mesh_up(root: Path, environment: Mapping[str, str]) -> Iterator[Mesh]:
    """A running mesh; nothing is left of it."""
    mesh = Mesh(environment)
    with tempfile.TemporaryDirectory(prefix="albench-upgrade-") as folder:
        (Path(folder) / "bench.yaml").write_text(yaml.safe_dump_all(manifests(root)))
        try:
            mesh.ctl("up", folder)
            yield mesh
        finally:
            mesh.ctl("down")


def steady(driver: Driver) -> None:
    """Until nothing fails and every session lives."""

    def quiet() -> bool:
        driver.ask("sessions")
        driver.ask("mark")
        told = driver.ask("mark")
        return bool(told["done"] and not told["failed"] and not told["lost"])

    wait_for("the load runs without failures", quiet, 60)


def measure(root: Path, size: Size, environment: Mapping[str, str]) -> tuple[Json, Json]:
    """What the load noticed over upgrades, and over kills."""
    with mesh_up(root, environment) as mesh, mesh.load(root, size) as driver:
        steady(driver)
        for number in range(size.upgrades):
            mesh.ctl("upgrade", NODES[number % 2])
        upgraded = driver.ask("mark")
        # Agents that have not crashed before: those the supervisor starts again without a pause.
        mesh.ctl("upgrade")
        killed: Json = {}
        for number in range(size.kills):
            node = NODES[number % 2]
            if number >= len(NODES):
                mesh.ctl("upgrade", node)
            steady(driver)
            mesh.kill(node)
            one = driver.ask("mark")
            killed = {
                "done": killed.get("done", 0) + one["done"],
                "failed": killed.get("failed", 0) + one["failed"],
                "failures": [*killed.get("failures", []), one["failures"]],
                "longest": max(killed.get("longest", 0.0), one["longest"]),
                "lost": [*killed.get("lost", []), one["lost"]],
            }
    return upgraded, killed


def samples_of(upgraded: Json, killed: Json) -> dict[str, Sample]:
    """Figures by row."""
    return {
        "upgrade-failed": Sample(upgraded["failed"]),
        "upgrade-lost-sessions": Sample(upgraded["lost"]),
        "upgrade-longest-wait": Sample(upgraded["longest"]),
        "kill-failed": Sample(killed["failed"]),
        "kill-longest-wait": Sample(killed["longest"]),
    }


def run_upgrade(root: Path, options: argparse.Namespace, plan: Plan) -> Json:
    """20 rolling upgrades and 5 SIGKILLs under 500 new connections a second beside 100 long sessions."""
    size = Size(2, 1, 50, 10) if options.quick else Size()
    collected = {row.case: Samples() for row in ROWS}
    told: dict[str, list[str]] = {name: [] for name in VARIANTS}
    busy: list[float] = []
    for turn in range(1 if options.quick else plan.rounds):
        order = list(VARIANTS.items())
        for name, environment in order if turn % 2 == 0 else reversed(order):
            began = busy_seconds()
            try:
                upgraded, killed = measure(root, size, environment)
            except MeasurementError as error:
                say(f"round {turn + 1}: {name}: no figure: {error}")
                for row in ROWS:
                    collected[row.case].fail(name, f"round {turn + 1}: {error}")
                continue
            busy.append(busy_seconds() - began)
            say(f"round {turn + 1}: {name}: upgrades {upgraded}; kills {killed}")
            told[name].append(f"{upgraded['done']:,} over upgrades, {killed['done']:,} over kills")
            for case, sample in samples_of(upgraded, killed).items():
                collected[case].add(name, sample)
    method: Json = {
        "rounds": plan.rounds,
        "upgrades": size.upgrades,
        "kills": f"{size.kills}, each of an agent that had not crashed before",
        "load": f"{size.rate:g} new connections a second, {size.sessions} sessions with a line each second",
        "wait": "from the wish to connect to the answer of the far end, the longest of all",
        "path": "pod on n1 to pod on n2, IPv4; the nodes' agents in turn",
        **{f"good connections of {name}": "; ".join(lines) for name, lines in told.items()},
    }
    rows = [(row, collected[row.case]) for row in ROWS]
    return results.document("upgrade", facts(root, {}), method, rows, list(VARIANTS), {})
