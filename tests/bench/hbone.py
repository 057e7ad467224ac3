"""Group `hbone`: client -> outbound -> HBONE -> inbound -> server on one loopback, variant against variant."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench import native, results, rounds
from tests.bench.cases import Case, hbone_cases
from tests.bench.certificates import issue
from tests.bench.machine import facts
from tests.bench.namespace import Namespace, remove_stale
from tests.bench.native import BuildError
from tests.bench.openssl import engine_openssl, libraries
from tests.bench.rounds import Plan, say
from tests.bench.testbed import Testbed
from tests.bench.variants import DEFAULT, Variant, known


def choose_cases(names: str | None) -> list[Case]:
    """The cases that give the named rows; BuildError for an unknown row."""
    return chosen(hbone_cases(), names)


def chosen(cases: list[Case], names: str | None) -> list[Case]:
    """The same among other cases."""
    if names is None:
        return cases
    wanted = names.split(",")
    rows = {row.case for case in cases for row in case.rows}
    if unknown := [name for name in wanted if name not in rows]:
        raise BuildError(f"no row {unknown[0]}: there are {', '.join(sorted(rows))}")
    return [case for case in cases if any(row.case in wanted for row in case.rows)]


def choose_variants(names: str | None) -> tuple[dict[str, Variant], dict[str, str]]:
    """(variants that can run, reasons of those that cannot); BuildError for an unknown name."""
    every = known()
    wanted = names.split(",") if names else DEFAULT
    if unknown := [name for name in wanted if name not in every]:
        raise BuildError(f"no variant {unknown[0]}: there are {', '.join(every)}")
    absent = {name: reason for name in wanted if (reason := every[name].absent())}
    return {name: every[name] for name in wanted if name not in absent}, absent


@contextmanager
def testbed(options: argparse.Namespace, work: Path) -> Iterator[Testbed]:
    """A namespace, certificates and programs for variants to run in."""
    remove_stale()
    environment = libraries(options)
    logs = options.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with Namespace() as namespace:
        yield Testbed(
            programs=native.build(options.out / "bin"),
            logs=logs,
            work=work,
            certificates=issue(work / "certificates"),
            namespace=namespace,
            environment=environment,
        )


OPENSSL35_CASES = "bulk-up-1,bulk-up-8,bulk-down-1,bulk-down-8"
OPENSSL35_VARIANTS = "ours,ours-openssl,envoy-c1,envoy-c2,ztunnel"
ONE_CASES = "rr-1-64b"
ONE_VARIANTS = "ours,none,splice,envoy-c1,ztunnel"


def run_hbone(root: Path, options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """Two proxies on one loopback: ours, none, plain relays, Envoy, ztunnel."""
    return _run("hbone", root, options, plan)


def run_openssl35(root: Path, options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """Bulk of group hbone with OpenSSL 3.5 in the engine, or what --libssl names; ours-openssl: its records, too."""
    chosen = {
        "libssl": options.libssl or "wheel",
        "cases": options.cases or OPENSSL35_CASES,
        "variants": options.variants or OPENSSL35_VARIANTS,
    }
    return _run("hbone-openssl35", root, argparse.Namespace(**{**vars(options), **chosen}), plan)


def run_one(root: Path, options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """One request at a time, of group hbone, in five times as many rounds: a change of the machine's speed is not for all."""
    chosen = {"cases": options.cases or ONE_CASES, "variants": options.variants or ONE_VARIANTS}
    more = dataclasses.replace(plan, rounds=5 * plan.rounds)
    return _run("hbone-one", root, argparse.Namespace(**{**vars(options), **chosen}), more)


def _run(group: str, root: Path, options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    cases = choose_cases(options.cases)
    variants, absent = choose_variants(options.variants)
    for name, reason in absent.items():
        say(f"bench: without {name}: {reason}")
    with tempfile.TemporaryDirectory(prefix="albench-") as work, testbed(options, Path(work)) as bed:
        measured = rounds.run(bed, cases, variants, plan)
    versions = {name: said for name, variant in variants.items() if (said := variant.version())}
    machine = facts(root, versions) | {"openssl": engine_openssl(bed.environment)}
    method = {
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "requests and connections": rounds.where(plan.pin),
        "congestion control": "reno",
        "ours": "decisions, metrics, flow records and access log of the agent; no capture, no client source address",
        "Envoy": "an access log, no policy",
        "conn-cold": "a tunnel for each connection, as each proxy comes: ours and Envoy resume TLS sessions (Envoy keeps "
        "one, so that of 16 at once few resume), ztunnel does not; -sessions: Envoy keeps as many as ours; "
        "-full: nobody resumes",
    }
    return results.document(group, machine, method, measured, list(variants), absent)
