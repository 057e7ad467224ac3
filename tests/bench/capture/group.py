"""Group `capture`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tests.bench import rounds
from tests.bench.capture.cases import DIRECT, TURBO, capture_cases
from tests.bench.capture.pods import Pods
from tests.bench.capture.session import figure_in
from tests.bench.capture.together import SLICE_S, together_in
from tests.bench.capture.variants import PROXIES, capture_variants
from tests.bench.hbone import chosen, testbed
from tests.bench.machine import facts
from tests.bench.native import BuildError
from tests.bench.openssl import engine_openssl
from tests.bench.results import document
from tests.bench.rounds import Plan, say


def _variants(names: str | None) -> list[str]:
    every = capture_variants()
    wanted = names.split(",") if names else list(every)
    if unknown := [name for name in wanted if name not in every]:
        raise BuildError(f"no variant {unknown[0]}: there are {', '.join(every)}")
    return wanted


def twin(case: str, variant: str) -> str | None:
    """Only ours is accelerated: for proxies a row of acceleration is that of the direct path."""
    same = case.startswith(TURBO) and variant in PROXIES
    return case.replace(TURBO, DIRECT) if same else None


def run_capture(root: Path, options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """The cost of capture, and two pods of one node: direct, through proxies, and without a mesh."""
    cases = chosen(capture_cases(), options.cases)
    every = capture_variants()
    wanted = _variants(options.variants)
    absent = {name: reason for name in wanted if (reason := every[name].absent())}
    for name, reason in absent.items():
        say(f"bench: without {name}: {reason}")
    variants = {name: every[name] for name in wanted if name not in absent}
    with (
        tempfile.TemporaryDirectory(prefix="albench-") as work,
        testbed(options, Path(work)) as bed,
        Pods(first=options.first) as pods,
    ):
        together = together_in(first=options.first)
        measured = rounds.run(
            bed, cases, variants, plan, figure=figure_in(pods), twin=twin, together=together
        )
    versions = {name: said for name, variant in variants.items() if (said := variant.version())}
    machine = facts(root, versions) | {"openssl": engine_openssl(bed.environment)}
    method = {
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "requests and connections": rounds.where(plan.pin),
        "congestion control": "reno",
        "priority": "real time" if options.first else "ordinary",
        "capture rows": "in one pod, to a listener that accepts; latency of capture-connect: connect() alone",
        "connection rows": f"all variants up at once, each in fresh pods of its own, and measured in turn (A B B A ...) by slices of {SLICE_S:g} s",
        "redirect": "nft NAT REDIRECT and connection marks, the rules of Istio's CNI plugin",
        "ours in same-node rows": "direct path of the kernel, accelerated in turbo rows; the agent, on another CPU, makes flows, metrics and log lines of every connection",
        "proxy, envoy, ztunnel": "a process in each pod, nothing captured; turbo rows repeat their figures of direct rows",
    }
    return document("capture", machine, method, measured, list(variants), absent)
