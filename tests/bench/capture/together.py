"""Variants that are up at the same time, each in pods of its own, and measured in turn by short slices.

The speed of a virtual machine changes by half and more from one moment to the next (whoever else works on the
physical core), and stays so for a tenth of a second up to some seconds. Figures of slices that follow each other are
mostly of the same moment: their ratio holds where the ratio of two long figures does not. Fresh pods in each round: what
TIME_WAIT leaves of ports and of the table of connections is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from tests.bench.capture.pods import Pods
from tests.bench.capture.session import pod_session
from tests.bench.cases import Case
from tests.bench.results import Sample, median
from tests.bench.rounds import INTEGRITY, Plan, warm_up
from tests.bench.testbed import LoadRun, MeasurementError, Rig, Testbed
from tests.bench.variants import Variant

SLICE_S = 0.1


def passes(variants: Sequence[str], number: int, turn: int) -> Iterator[Sequence[str]]:
    """So many times all variants, each time the other way round; A B, B A, ..., and in the next `turn` B A, A B, ..."""
    for index in range(turn, turn + number):
        yield variants if index % 2 == 0 else variants[::-1]


def merged(slices: Sequence[Sample], turn: int) -> Sample:
    """The figure of a round: of all its slices the median."""
    value = median(each.value for each in slices)
    assert value is not None
    return Sample(
        value,
        median(each.cpu_s_per_unit for each in slices),
        median(each.p50_us for each in slices),
        median(each.p99_us for each in slices),
        foreign_cpu=median(each.foreign_cpu for each in slices),
        slices=tuple(each.value for each in slices),
        turn=turn,
    )


@contextmanager
def _ready(
    bed: Testbed, case: Case, variant: Variant, plan: Plan, *, check: bool, first: bool
) -> Iterator[tuple[Rig, LoadRun]]:
    """One variant in its own pods, and a load that waits at its gate."""
    logs = bed.logs / variant.name
    logs.mkdir(exist_ok=True)
    pin = plan.pin if case.pinned else None
    with (
        Pods(first=first, label=f"{variant.name}-") as pods,
        pod_session(replace(bed, logs=logs), pods, pin) as current,
    ):
        variant.start(current, case)
        if check:
            current.load(*INTEGRITY)
        warm_up(current)
        assert case.repeated is not None
        with current.start_load(*case.repeated.options, "--seconds", str(SLICE_S), "--gated") as run:
            run.line()
            yield current, run


Together = Mapping[str, Sample | MeasurementError]


def together_in(*, first: bool) -> Callable[..., Together]:
    """What `rounds.run` calls for one round of a case that has `repeated`."""

    def figures(
        bed: Testbed,
        case: Case,
        variants: Mapping[str, Variant],
        plan: Plan,
        *,
        turn: int,
        check: Collection[str],
    ) -> Together:
        assert case.repeated is not None
        failed: dict[str, MeasurementError] = {}
        ready: dict[str, tuple[Rig, LoadRun]] = {}
        slices: dict[str, list[Sample]] = {name: [] for name in variants}
        with ExitStack() as stack:
            for name, variant in variants.items():
                try:
                    made = _ready(bed, case, variant, plan, check=name in check, first=first)
                    ready[name] = stack.enter_context(made)
                except MeasurementError as error:
                    failed[name] = error
            for order in passes(list(ready), max(2, round(plan.seconds / SLICE_S)), turn):
                for name in order:
                    if name not in failed:
                        try:
                            slices[name].append(case.repeated.take(*ready[name]))
                        except MeasurementError as error:
                            failed[name] = error
        return {name: failed.get(name) or merged(slices[name], turn) for name in variants}

    return figures
