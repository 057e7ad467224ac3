"""What group `hbone` measures: each case names its rows and takes them from a running rig."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.bench.results import Row, Sample
from tests.bench.testbed import LoadRun, MeasurementError, Rig

IDLE_CONNECTIONS = 10_000
SESSIONS = 64
LEAD_S = 0.4  # the bulk flow of `mixed` is at full speed by then


@dataclass(frozen=True, slots=True)
class Repeated:
    """A load that gives one figure after another: its options, and what opens its gate and takes the next figure."""

    options: tuple[str, ...]
    take: Callable[[Rig, LoadRun], Sample]


@dataclass(frozen=True, slots=True)
class Case:
    """`measure(rig, seconds)` gives one sample for each of `rows`.

    pinned: all processes share one CPU, because on few virtual CPUs the time an idle one takes to wake up, which
    depends on the neighbours, is otherwise most of what a small message takes.
    cold: the variant pools nothing. sessions: how many TLS sessions a client
    may keep to resume them; None: as many as it does by itself. one_tunnel: all connections have to share a tunnel. of_memory: about resident
    memory. workers: about so many threads of ours, and of nobody else. repeated: where variants can be up at the same
    time, they are measured slice by slice in turn (`tests.bench.slices`).
    """

    rows: tuple[Row, ...]
    measure: Callable[[Rig, float], Mapping[str, Sample]]
    pinned: bool = False
    cold: bool = False
    sessions: int | None = None
    one_tunnel: bool = False
    of_memory: bool = False
    workers: int | None = None
    repeated: Repeated | None = None

    @property
    def name(self) -> str:
        return self.rows[0].case


def bulk(direction: str, conns: int) -> Case:
    """One-way throughput of `conns` connections at once. Cost: CPU seconds for a GB (10^9 bytes)."""
    row = Row(f"bulk-{direction}-{conns}", "Gbit/s", "higher", "GB")

    def measure(rig: Rig, seconds: float) -> dict[str, Sample]:
        got, cost = rig.measured("bulk", "--conns", str(conns), "--seconds", str(seconds), direction)
        cpu = cost.proxy_cpu_s / (got["bytes"] / 1e9) if rig.proxies else None
        return {row.case: Sample(got["gbit_s"], cpu, foreign_cpu=cost.foreign_cpu)}

    return Case((row,), measure)


def scaling(workers: int) -> Case:
    """Bulk through so many threads of ours, over enough connections for each to get its share.

    Read the cost: while it stays the same with a second thread, that thread adds what the machine has left.
    """
    conns = 32
    row = Row(f"scale-{workers}", "Gbit/s", "higher", "GB")

    def measure(rig: Rig, seconds: float) -> dict[str, Sample]:
        (sample,) = bulk("up", conns).measure(rig, seconds).values()
        return {row.case: sample}

    return Case((row,), measure, workers=workers)


def rate(
    case: str,
    unit: str,
    options: tuple[str, ...],
    *,
    settle: bool,
    cold: bool = False,
    sessions: int | None = None,
    repeats: bool = False,
) -> Case:
    """How many `unit`s a second the load with these options completes, with their latency. `repeats`: it can be asked
    for a figure again."""
    row = Row(case, f"{unit}/s", "higher", unit)

    def take(rig: Rig, run: LoadRun) -> Sample:
        got, cost = rig.gated(run, settle=settle)
        if got.get("failed", 0):
            raise MeasurementError(f"{got['failed']} of {got['count'] + got['failed']} connections failed")
        if got["count"] == 0:
            raise MeasurementError("nothing was completed")
        cpu = cost.proxy_cpu_s / got["count"] if rig.proxies else None
        return Sample(got["per_s"], cpu, got["p50_us"], got["p99_us"], foreign_cpu=cost.foreign_cpu)

    def measure(rig: Rig, seconds: float) -> dict[str, Sample]:
        with rig.start_load(*options, "--seconds", str(seconds), "--gated") as run:
            run.line()
            return {case: take(rig, run)}

    repeated = Repeated(options, take) if repeats else None
    return Case((row,), measure, pinned=True, cold=cold, sessions=sessions, repeated=repeated)


def exchange(conns: int, size: int, name: str) -> Case:
    """Request-response of `size` bytes both ways, each connection waits for its answer before it asks again."""
    return rate(
        f"rr-{conns}-{name}", "request", ("rr", "--conns", str(conns), "--size", str(size)), settle=False
    )


def connections(name: str, *, cold: bool, sessions: int | None = None) -> Case:
    """New connections, 16 at once, one 64-byte round trip each. Warm: a tunnel stands; cold: each needs a handshake."""
    options = ("conns", "--conns", "16", "--size", "64")
    return rate(name, "connection", options, settle=True, cold=cold, sessions=sessions)


def mixed() -> Case:
    """64-byte request-response beside one bulk flow that shares its tunnel."""
    row = Row("mixed", "request/s", "higher", beside="Gbit/s")

    def measure(rig: Rig, seconds: float) -> dict[str, Sample]:
        flow_options = ("bulk", "--conns", "1", "--seconds", str(seconds + 2 * LEAD_S), "up", "--gated")
        with (
            rig.start_load(*flow_options) as flow,
            rig.start_load("rr", "--seconds", str(seconds), "--gated") as rr,
        ):
            flow.line()
            rr.line()

            def both() -> tuple[dict[str, Any], dict[str, Any]]:
                flow.open_gate()
                time.sleep(LEAD_S)
                rr.open_gate()
                return rr.line(), flow.line()

            (got, bulk), cost = rig.costing(both, lambda pair: sum(one["own_cpu_s"] for one in pair))
        sample = Sample(got["per_s"], None, got["p50_us"], got["p99_us"], bulk["gbit_s"], cost.foreign_cpu)
        return {row.case: sample}

    return Case((row,), measure, one_tunnel=True)


def memory() -> Case:
    """Resident memory of all proxies: after start and one connection, with 10,000 idle ones, and after those ended."""
    rows = tuple(Row(name, "MB", "lower") for name in ("rss-idle", "rss-10k-idle", "rss-after"))

    def measure(rig: Rig, seconds: float) -> dict[str, Sample]:
        idle = rig.settled_rss()
        with rig.start_load("idle", "--conns", str(IDLE_CONNECTIONS)) as holder:
            holder.line()
            full = rig.settled_rss()
        return {
            row.case: Sample(value) for row, value in zip(rows, (idle, full, rig.settled_rss()), strict=True)
        }

    return Case(rows, measure, of_memory=True)


def hbone_cases() -> list[Case]:
    """All cases of group `hbone`, in the order of the table."""
    return [
        bulk("up", 1),
        bulk("up", 8),
        bulk("down", 1),
        bulk("down", 8),
        exchange(1, 64, "64b"),
        exchange(32, 64, "64b"),
        exchange(256, 64, "64b"),
        exchange(32, 1024, "1k"),
        connections("conn-warm", cold=False),
        connections("conn-cold", cold=True),
        connections("conn-cold-sessions", cold=True, sessions=SESSIONS),
        connections("conn-cold-full", cold=True, sessions=0),
        mixed(),
        scaling(1),
        scaling(2),
        memory(),
    ]
