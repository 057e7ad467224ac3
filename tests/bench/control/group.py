"""Group `control`: build, spread and take in a mesh of 50,000 workloads."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.bench import results
from tests.bench.control import ztunnel
from tests.bench.machine import busy_seconds, facts
from tests.bench.namespace import Namespace
from tests.bench.native import BuildError
from tests.bench.results import Row, Sample, Samples
from tests.bench.rounds import Plan, describe, say

Json = dict[str, Any]
# What each figure is meant to stay below, on a quiet machine with two cores.
TARGETS = {
    "build-5000": 5.0,
    "change-to-last-500": 0.3,
    "change-to-last-1000": 0.6,
    "istiodlite-rss": 400.0,
    "ztunnel-ready-50000": 6.0,
    "ztunnel-rss-50000": 250.0,
    "ztunnel-change": 0.002,
    "ztunnel-stall-p99": 0.02,
}
_ROWS = tuple(
    Row(case, "MB" if "rss" in case else "s", "lower", {"build-5000": "build"}.get(case)) for case in TARGETS
)
_NODES = 500
# One per cent of the workloads a second, in pushes as a quiet time of 100 ms lets through.
_SIZE, _PAUSE = 100, 0.2


class _Program:
    """A process that answers lines with JSON lines."""

    def __init__(self, where: Namespace, name: str, *arguments: str) -> None:
        self._name = name
        self._process = subprocess.Popen(
            where.command([sys.executable, "-m", f"tests.bench.control.{name}", *arguments]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.first = self.answer()

    def answer(self) -> Json:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BuildError(f"{self._name} ended with status {self._process.wait()}")
        found: Json = json.loads(line)
        return found

    def ask(self, line: str) -> Json:
        self.send(line)
        return self.answer()

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def _program(where: Namespace, name: str, *arguments: str) -> Iterator[_Program]:
    program = _Program(where, name, *arguments)
    try:
        yield program
    finally:
        program.end()


def _agent_figures(
    where: Namespace, server: _Program, data: str, seconds: float
) -> Iterator[tuple[str, Sample]]:
    with _program(where, "agent", str(server.first["port"]), data, "node-0") as agent:
        yield "ztunnel-ready-50000", Sample(agent.first["ready_s"], agent.first["ready_cpu_s"])
        begin = time.monotonic()
        server.ask(f"churn {int(2 * seconds / _PAUSE)} {_SIZE} {_PAUSE}")
        time.sleep(_PAUSE)
        churned = agent.ask(f"since {begin}")
        begin = time.monotonic()
        server.ask("churn 20 1 0.05")
        time.sleep(_PAUSE)
        single = sorted(took for size, took in agent.ask(f"since {begin}")["changes"] if size == 1)
        yield "ztunnel-rss-50000", Sample(max(agent.first["mb"], churned["mb"]))
        yield "ztunnel-change", Sample(single[len(single) // 2], p99_us=single[-1] * 1e6)
        yield "ztunnel-stall-p99", Sample(max(agent.first["late_p99_s"], churned["late_p99_s"]))


def _spread(server: _Program, groups: list[_Program], seconds: float) -> Sample:
    """The time from objects to the last stream, of the slowest push in a hundred; p50 and p99 beside it."""
    pushed = server.ask(f"churn {max(10, int(4 * seconds / _PAUSE))} {_SIZE} {_PAUSE}")["pushes"]
    for group in groups:
        group.send(f"pushes {pushed[0][0]} {pushed[-1][0]}")
    answers = [group.answer()["last"] for group in groups]
    took = sorted(max(answer[str(number)] for answer in answers) - seen for number, seen in pushed)
    p99 = took[min(len(took) - 1, len(took) * 99 // 100)]
    return Sample(p99, p50_us=took[len(took) // 2] * 1e6, p99_us=p99 * 1e6)


def _round(wanted: set[str], seconds: float) -> Iterator[tuple[str, str, Sample]]:
    """(case, variant, sample)"""
    with ExitStack() as stack:
        where = stack.enter_context(Namespace("control"))
        data = stack.enter_context(tempfile.TemporaryDirectory(prefix="albench-control-"))
        server = stack.enter_context(_program(where, "server", data, str(_NODES)))
        yield "build-5000", results.SUBJECT, Sample(server.first["wall_s"], server.first["cpu_s"])
        if any(case.startswith("ztunnel") for case in wanted):
            for case, sample in _agent_figures(where, server, data, seconds):
                yield case, results.SUBJECT, sample
            if ztunnel.absent() is None:
                for case, sample in ztunnel.measure(
                    where.command, server.first["port"], data, _NODES
                ).items():
                    yield case, "ztunnel", sample
        groups: list[_Program] = []
        for case in ("change-to-last-500", "change-to-last-1000"):
            if case in wanted or (case.endswith("500") and "istiodlite-rss" in wanted):
                while len(groups) * _NODES < int(case.rpartition("-")[2]):
                    server.ask(f"versions {data}/versions")
                    arguments = (str(server.first["port"]), data, f"{data}/versions", str(_NODES))
                    groups.append(stack.enter_context(_program(where, "streams", *arguments)))
                yield case, results.SUBJECT, _spread(server, groups, seconds)
                if case.endswith("500"):
                    yield "istiodlite-rss", results.SUBJECT, Sample(server.ask("memory")["mb"])


def _chosen(names: str | None) -> set[str]:
    wanted = set(names.split(",")) if names else set(TARGETS)
    if unknown := sorted(wanted - set(TARGETS)):
        raise BuildError(f"no row {unknown[0]}: there are {', '.join(TARGETS)}")
    return wanted


def _measure(wanted: set[str], plan: Plan) -> Mapping[str, Samples]:
    samples = {case: Samples() for case in TARGETS}
    if ztunnel.absent() is None:
        for case in TARGETS.keys() - ztunnel.CASES:
            samples[case].absent["ztunnel"] = "only time and memory of an agent are compared"
    rows = {row.case: row for row in _ROWS}
    for turn in range(plan.rounds):
        begin, busy = time.monotonic(), busy_seconds()
        for case, variant, sample in _round(wanted, plan.seconds):
            samples[case].add(variant, sample)
            meant = f"target {TARGETS[case]}" if variant == results.SUBJECT else variant
            say(f"round {turn + 1}: {case}: {describe(rows[case], sample)} ({meant})")
        share = (busy_seconds() - busy) / ((time.monotonic() - begin) * (os.cpu_count() or 1))
        say(f"round {turn + 1}: processors {share:.0%} busy, with this benchmark")
    return samples


def run_control(root: Path, options: argparse.Namespace, plan: Plan) -> Json:
    """The control plane and a node agent with 5,000 services and 50,000 workloads; Istio's ztunnel as another agent."""
    wanted = _chosen(options.cases)
    samples = _measure(wanted, plan)
    rows = [(row, samples[row.case]) for row in _ROWS if row.case in wanted]
    method: Json = {
        "rounds": plan.rounds,
        "services": 5_000,
        "workloads": 50_000,
        "agents": f"{_NODES} on one stream and connection each, TLS, connecting with all versions known",
        "churn": f"{_SIZE} workloads every {_PAUSE} s; the quiet time before a push is not counted",
        "ztunnel": "its time is from the start of its process; ours from the start of its stream",
        "targets": ", ".join(f"{case} {limit:g}" for case, limit in TARGETS.items()),
    }
    problem = ztunnel.absent()
    absent = {"ztunnel": problem} if problem else {}
    variants = [results.SUBJECT] if problem else [results.SUBJECT, "ztunnel"]
    return results.document("control", facts(root, {}), method, rows, variants, absent)
