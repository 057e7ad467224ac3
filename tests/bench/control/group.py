"""Group `control`: build, spread and take in a mesh of 50,000 workloads."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.bench import results
from tests.bench.control import planes, ztunnel
from tests.bench.control.program import Json, Program, program
from tests.bench.machine import busy_seconds, facts
from tests.bench.namespace import Namespace
from tests.bench.native import BuildError
from tests.bench.results import Row, Sample, Samples
from tests.bench.rounds import Plan, describe, say

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
_CASES = (*TARGETS, *planes.CASES)
_COSTS = {"build-5000": "build", "kube-ready-50000": "start"}
_ROWS = tuple(Row(case, "MB" if "rss" in case else "s", "lower", _COSTS.get(case)) for case in _CASES)
_NODES = 500
# One per cent of the workloads a second, in pushes as a quiet time of 100 ms lets through.
_SIZE, _PAUSE = 100, 0.2


def _agent_figures(
    where: Namespace, server: Program, data: str, seconds: float
) -> Iterator[tuple[str, Sample]]:
    with program(where.command, "agent", str(server.first["port"]), data, "node-0") as agent:
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


def _spread(server: Program, groups: list[Program], seconds: float) -> Sample:
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
        server = stack.enter_context(program(where.command, "server", data, str(_NODES)))
        yield "build-5000", results.SUBJECT, Sample(server.first["wall_s"], server.first["cpu_s"])
        if any(case.startswith("ztunnel") for case in wanted):
            for case, sample in _agent_figures(where, server, data, seconds):
                yield case, results.SUBJECT, sample
            if ztunnel.absent() is None:
                for case, sample in ztunnel.measure(
                    where.command, server.first["port"], data, _NODES
                ).items():
                    yield case, "ztunnel", sample
        groups: list[Program] = []
        for case in ("change-to-last-500", "change-to-last-1000"):
            if case in wanted or (case.endswith("500") and "istiodlite-rss" in wanted):
                while len(groups) * _NODES < int(case.rpartition("-")[2]):
                    server.ask(f"versions {data}/versions")
                    arguments = (str(server.first["port"]), data, f"{data}/versions", str(_NODES))
                    groups.append(stack.enter_context(program(where.command, "streams", *arguments)))
                yield case, results.SUBJECT, _spread(server, groups, seconds)
                if case.endswith("500"):
                    yield "istiodlite-rss", results.SUBJECT, Sample(server.ask("memory")["mb"])


def _chosen(names: str | None) -> set[str]:
    wanted = set(names.split(",")) if names else set(_CASES)
    if unknown := sorted(wanted - set(_CASES)):
        raise BuildError(f"no row {unknown[0]}: there are {', '.join(_CASES)}")
    return wanted


def _absent(samples: Mapping[str, Samples], planes_absent: Mapping[str, str]) -> None:
    """Which variant has no figure in which row, and why."""
    for case in _CASES:
        if case in planes.CASES:
            samples[case].absent.update(planes_absent)
            samples[case].absent["ztunnel"] = "a control plane's row"
        else:
            samples[case].absent["istiod"] = "istiod takes its objects from a cluster only"
            if case not in ztunnel.CASES:
                samples[case].absent["ztunnel"] = "only time and memory of an agent are compared"


def _measure(wanted: set[str], plan: Plan, planes_absent: Mapping[str, str]) -> Mapping[str, Samples]:
    samples = {case: Samples() for case in _CASES}
    _absent(samples, planes_absent)
    rows = {row.case: row for row in _ROWS}
    for turn in range(plan.rounds):
        begin, busy = time.monotonic(), busy_seconds()

        def add(case: str, variant: str, sample: Sample, turn: int = turn) -> None:
            samples[case].add(variant, sample)
            target = TARGETS.get(case) if variant == results.SUBJECT else None
            meant = variant if target is None else f"target {target}"
            say(f"round {turn + 1}: {case}: {describe(rows[case], sample)} ({meant})")

        if wanted & TARGETS.keys():
            for case, variant, sample in _round(wanted, plan.seconds):
                add(case, variant, sample)
        for variant in planes.VARIANTS:
            if not wanted & set(planes.CASES) or variant in planes_absent:
                continue
            try:
                for case, sample in planes.measure(variant):
                    add(case, variant, sample)
            except BuildError as error:
                for case in planes.CASES:
                    samples[case].fail(variant, f"round {turn + 1}: {error}")
        share = (busy_seconds() - busy) / ((time.monotonic() - begin) * (os.cpu_count() or 1))
        say(f"round {turn + 1}: processors {share:.0%} busy, with this benchmark")
    return samples


def run_control(root: Path, options: argparse.Namespace, plan: Plan) -> Json:
    """The control plane and a node agent with 5,000 services and 50,000 workloads; Istio's istiod as another control
    plane and its ztunnel as another agent."""
    wanted = _chosen(options.cases)
    without = planes.absent()
    samples = _measure(wanted, plan, without)
    rows = [(row, samples[row.case]) for row in _ROWS if row.case in wanted]
    method: Json = {
        "rounds": plan.rounds,
        "services": 5_000,
        "workloads": 50_000,
        "agents": f"{_NODES} on one stream and connection each, TLS, connecting with all versions known",
        "churn": f"{_SIZE} workloads every {_PAUSE} s; the quiet time before a push is not counted",
        "ztunnel": "its time is from the start of its process; ours from the start of its stream",
        **planes.METHOD,
        "targets": ", ".join(f"{case} {limit:g}" for case, limit in TARGETS.items()),
    }
    missing = {"ztunnel": ztunnel.absent(), "istiod": without.get("istiod")}
    absent = {name: reason for name, reason in missing.items() if reason}
    variants = [results.SUBJECT, *(name for name in missing if name not in absent)]
    return results.document("control", facts(root, {}), method, rows, variants, absent)
