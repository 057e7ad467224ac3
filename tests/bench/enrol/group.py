"""Drives group `enrol`: a node (`tests.support.churn`) on which pods come and go for as long as a figure takes."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.bench import results
from tests.bench.machine import busy_seconds, facts
from tests.bench.results import Row, Sample, Samples
from tests.bench.rounds import Plan, say
from tests.support.churn import Churn, Node, node

ROW = Row("enrol-churn", "pod/s", "higher", "pod")
ALIVE = 20
PODS, QUICK = 600, 40
"""For each figure."""


def sample_of(seen: Churn, foreign: float) -> Sample:
    """The rate; the agent's CPU time for a pod; how long the CNI agent waits until a pod is in."""
    added = sorted(seen.adds)
    return Sample(
        seen.pods / seen.took,
        seen.cpu / seen.pods,
        p50_us=added[len(added) // 2] * 1e6,
        p99_us=added[len(added) * 99 // 100] * 1e6,
        foreign_cpu=foreign,
    )


def measure(one: Node, pods: int) -> Sample:
    """One figure."""
    busy, spent = busy_seconds(), one.cpu()
    seen = one.churn(pods, ALIVE)
    foreign = max(0.0, busy_seconds() - busy - (one.cpu() - spent))
    say(f"{ROW.case}: {seen}")
    return sample_of(seen, min(1.0, foreign / (seen.took * (os.cpu_count() or 1))))


def run_enrol(root: Path, options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """Pods come and go at the whole agent: ZDS, capture, listeners, a certificate for each."""
    pods = QUICK if options.quick else PODS
    rounds = 1 if options.quick else plan.rounds
    samples = Samples()
    if options.first:  # with all that is started from here on
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    with tempfile.TemporaryDirectory(prefix="albench-") as work, node(Path(work), pods * rounds) as one:
        for _ in range(rounds):
            samples.add(results.SUBJECT, measure(one, pods))
    method = {
        "rounds": rounds,
        "pods of a round": f"{pods}, {ALIVE} at once, each with a network namespace and a certificate of its own",
        "requests": "one after the other, as from Istio's CNI agent; latency: from Add to its acknowledgement",
        "certificates": "from istiodlite, on the same machine",
        "priority": "real time" if options.first else "ordinary",
        "CPU time": "the agent's alone; the kernel's threads that take namespaces away count as foreign",
    }
    return results.document("enrol", facts(root, {}), method, [(ROW, samples)], [results.SUBJECT], {})
