"""Runs cases over variants: round by round, alternating the order, so that a drift of the machine hits all alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.cases import Case
from tests.bench.results import Row, Sample, Samples
from tests.bench.tables import cpu_cost, number
from tests.bench.testbed import MeasurementError, Rig, Testbed, session
from tests.bench.variants import Variant

INTEGRITY = ("check", "--conns", "4", "--mebibytes", "4")


def schedule(cases: Sequence[str], variants: Sequence[str], rounds: int) -> Iterator[tuple[int, str, str]]:
    """(round, case, variant): variants of one case follow each other, in an order that turns round each time."""
    for turn in range(rounds):
        for index, case in enumerate(cases):
            for variant in variants if (turn + index) % 2 == 0 else reversed(variants):
                yield turn, case, variant


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. `seconds` is the time of one figure; `pin` the CPU of the rows that share one."""

    rounds: int
    seconds: float
    pin: int | None


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def where(pin: int | None) -> str:
    """On which CPUs the rows of requests and connections ran."""
    return "on all CPUs" if pin is None else f"all processes on CPU {pin}"


def describe(row: Row, sample: Sample) -> str:
    """One figure in words."""
    parts = [f"{number(sample.value)} {row.unit}"]
    if sample.p50_us is not None:
        parts.append(f"p50 {number(sample.p50_us)} p99 {number(sample.p99_us)} us")
    if sample.cpu_s_per_unit is not None:
        parts.append(f"CPU {cpu_cost(sample.cpu_s_per_unit, row.cpu_unit)}")
    if sample.beside is not None:
        parts.append(f"beside {number(sample.beside)} {row.beside}")
    return ", ".join(parts)


def once(bed: Testbed, case: Case, variant: Variant, plan: Plan, *, check: bool) -> Mapping[str, Sample]:
    """One figure from fresh processes; `check` first proves that the bytes arrive unchanged."""
    with session(bed, plan.pin if case.pinned else None) as current:
        variant.start(current, case)
        if check:
            current.load(*INTEGRITY)
        warm_up(current)
        return case.measure(current, plan.seconds)


def warm_up(current: Rig) -> None:
    """A moment of load, so that the figure does not hold what only happens once."""
    current.load("rr", "--conns", "1", "--size", "64", "--seconds", "0.2")


def run(
    bed: Testbed,
    cases: Sequence[Case],
    variants: Mapping[str, Variant],
    plan: Plan,
    progress: Callable[[str], None] = say,
    figure: Callable[..., Mapping[str, Sample]] = once,
    twin: Callable[[str, str], str | None] = lambda case, variant: None,
    together: Callable[..., Mapping[str, Sample | MeasurementError]] | None = None,
) -> list[tuple[Row, Samples]]:
    """All samples of a group. A round that fails is recorded with its reason and does not end the run.

    `figure` takes one, called as `once` is. `twin(case, variant)`: another case in which this variant does just the
    same; its figures count for both, if it is measured. `together`, where given, takes the figures of all variants in
    cases that can repeat theirs (`Case.repeated`).
    """
    by_name = {case.name: case for case in cases}
    twins = {(case, variant): twin(case, variant) for case in by_name for variant in variants}
    samples = {row.case: Samples() for case in cases for row in case.rows}
    checked: set[str] = set()
    at_once: dict[tuple[int, str], Mapping[str, Sample | MeasurementError]] = {}
    steps = list(schedule(list(by_name), list(variants), plan.rounds))
    start = time.monotonic()
    for position, (turn, name, variant) in enumerate(steps, 1):
        case = by_name[name]
        if twins[name, variant] in by_name:
            continue
        if reason := variants[variant].meaningless(case):
            for row in case.rows:
                samples[row.case].absent[variant] = reason
            continue
        where = (
            f"[{position}/{len(steps)}, {time.monotonic() - start:.0f} s] round {turn + 1}: {name}, {variant}"
        )
        try:
            if together is not None and case.repeated is not None:
                if (turn, name) not in at_once:
                    wanted = [
                        one
                        for at, of, one in steps
                        if (at, of) == (turn, name) and twins[of, one] not in by_name
                    ]
                    able = {one: variants[one] for one in wanted if not variants[one].meaningless(case)}
                    unchecked = able.keys() - checked
                    at_once[turn, name] = together(bed, case, able, plan, turn=turn, check=unchecked)
                taken = at_once[turn, name][variant]
                if isinstance(taken, MeasurementError):
                    raise taken
                got: Mapping[str, Sample] = {row.case: taken for row in case.rows}
            else:
                got = figure(bed, case, variants[variant], plan, check=variant not in checked)
        except MeasurementError as error:
            progress(f"{where}: no figure: {error}")
            for row in case.rows:
                samples[row.case].fail(variant, f"round {turn + 1}: {error}")
            continue
        checked.add(variant)
        for row in case.rows:
            samples[row.case].add(variant, got[row.case])
        progress(f"{where}: " + "; ".join(describe(row, got[row.case]) for row in case.rows))
    for (name, variant), other in twins.items():
        if other in by_name:
            for row, same in zip(by_name[name].rows, by_name[other].rows, strict=True):
                samples[row.case].copy(variant, samples[same.case])
    return [(row, samples[row.case]) for case in cases for row in case.rows]
