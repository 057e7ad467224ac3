"""The order of measurements, and the meaning of the options."""

from collections.abc import Collection, Mapping
from typing import cast

import pytest

from tests.bench import rounds
from tests.bench.__main__ import parser, pinned_cpu
from tests.bench.capture.cases import capture_cases
from tests.bench.capture.group import twin
from tests.bench.capture.together import merged, passes
from tests.bench.capture.variants import PROXIES, capture_variants
from tests.bench.cases import Case, hbone_cases, rate
from tests.bench.hbone import choose_cases, choose_variants
from tests.bench.native import BuildError
from tests.bench.results import Row, Sample, Samples
from tests.bench.rounds import Plan, schedule
from tests.bench.testbed import MeasurementError, Session, Testbed, settled
from tests.bench.variants import Variant

ROWS = [
    "bulk-up-1",
    "bulk-up-8",
    "bulk-down-1",
    "bulk-down-8",
    "rr-1-64b",
    "rr-32-64b",
    "rr-256-64b",
    "rr-32-1k",
    "conn-warm",
    "conn-cold",
    "conn-cold-sessions",
    "conn-cold-full",
    "mixed",
    "scale-1",
    "scale-2",
    "rss-idle",
    "rss-10k-idle",
    "rss-after",
]


def test_variants_of_a_case_follow_each_other_and_the_order_turns_round() -> None:
    steps = list(schedule(["a", "b"], ["x", "y"], 2))
    assert steps == [
        (0, "a", "x"), (0, "a", "y"), (0, "b", "y"), (0, "b", "x"),
        (1, "a", "y"), (1, "a", "x"), (1, "b", "x"), (1, "b", "y"),
    ]  # fmt: skip


class Instant(Variant):
    """A variant that nothing has to be started for."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, session: Session, case: Case) -> None:
        pass


def test_variant_that_does_the_same_in_two_cases_is_measured_in_one_and_counts_for_both() -> None:
    measured: list[tuple[str, str]] = []

    def figure(_bed: object, case: Case, variant: Variant, *_: object, **__: object) -> dict[str, Sample]:
        measured.append((case.name, variant.name))
        if (case.name, variant.name, len(measured)) == ("a", "peer", 2):
            raise MeasurementError("it did not start")
        return {case.name: Sample(float(len(measured)))}

    def cases(*names: str) -> list[Case]:
        return [Case((Row(name, "n", "higher"),), lambda *_: {}) for name in names]

    def run(*names: str) -> dict[str, Samples]:
        measured.clear()
        variants = {name: Instant(name) for name in ("ours", "peer")}
        found = rounds.run(
            cast(Testbed, None), cases(*names), variants, Plan(2, 1.0, None), lambda _: None, figure,
            lambda case, variant: "a" if (case, variant) == ("b", "peer") else None,
        )  # fmt: skip
        return {row.case: samples for row, samples in found}

    both = run("a", "b")
    assert measured == [
        ("a", "ours"),
        ("a", "peer"),
        ("b", "ours"),
        ("a", "peer"),
        ("a", "ours"),
        ("b", "ours"),
    ]
    assert both["b"].good["peer"] == both["a"].good["peer"] == [Sample(4.0)]
    assert both["b"].failed["peer"] == both["a"].failed["peer"] == ["round 1: it did not start"]
    run("b")
    assert measured == [("b", "ours"), ("b", "peer"), ("b", "peer"), ("b", "ours")]


def test_proxies_are_measured_once_for_direct_and_accelerated_rows() -> None:
    assert twin("same-node-turbo-rr-1", "ztunnel") == "same-node-direct-rr-1"
    assert twin("same-node-turbo-rr-1", "none") is None
    assert twin("same-node-turbo-rr-1", "ours") is None
    assert twin("same-node-direct-rr-1", "ztunnel") is None
    assert set(PROXIES) < capture_variants().keys()


def test_group_hbone_has_exactly_the_agreed_rows() -> None:
    assert [row.case for case in hbone_cases() for row in case.rows] == ROWS


def test_group_capture_has_exactly_the_agreed_rows() -> None:
    loads = ("rr-1", "rr-64", "rr-256", "stream-1k", "stream-64k", "conn")
    capturing = [f"capture-{load}" for load in ("connect", "rr-1", "rr-64")]
    ways = [f"same-node-{way}-{load}" for way in ("direct", "turbo") for load in loads]
    assert [case.name for case in capture_cases()] == [*capturing, *ways]


def test_a_row_brings_its_case_and_an_unknown_one_is_refused() -> None:
    assert [case.name for case in choose_cases("rss-after,mixed")] == ["mixed", "rss-idle"]
    with pytest.raises(BuildError, match="no row nonsense"):
        choose_cases("mixed,nonsense")


def test_a_variant_that_cannot_run_is_absent_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZTUNNEL_BIN", raising=False)
    able, absent = choose_variants("none,ztunnel")
    assert list(able) == ["none"]
    assert absent == {"ztunnel": "ZTUNNEL_BIN is not set"}
    with pytest.raises(BuildError, match="no variant nginx"):
        choose_variants("nginx")


@pytest.mark.parametrize(
    ("choice", "cores", "cpu"), [("auto", 2, 1), ("auto", 8, None), ("none", 2, None), ("0", 8, 0)]
)
def test_pinning_is_for_small_machines_unless_told(choice: str, cores: int, cpu: int | None) -> None:
    assert pinned_cpu(choice, cores) == cpu


def test_options_have_the_defaults_that_make_a_result_comparable() -> None:
    options = parser().parse_args([])
    assert (options.rounds, options.seconds, options.only, options.pin) == (3, 2.0, None, "auto")


def test_settled_returns_the_value_that_no_longer_changes() -> None:
    values = iter([1.0, 5.0, 9.0, 9.0, 100.0])
    assert settled(lambda: next(values), within=0.1, deadline_s=60, pause_s=0) == 9.0


def test_passes_take_each_variant_once_and_turn_round() -> None:
    assert ["".join(each) for each in passes(["a", "b", "c"], 3, 0)] == ["abc", "cba", "abc"]
    assert ["".join(each) for each in passes(["a", "b"], 2, 1)] == ["ba", "ab"]


def test_figure_of_a_round_is_the_median_of_its_slices() -> None:
    slices = [
        Sample(value, cpu, p50_us=value, foreign_cpu=0.1)
        for value, cpu in ((5.0, 1.0), (9.0, None), (7.0, 3.0))
    ]
    assert merged(slices, 4) == Sample(7.0, 2.0, 7.0, None, None, 0.1, (5.0, 9.0, 7.0), 4)


def test_variants_that_are_measured_together_are_asked_for_once_a_round() -> None:
    asked: list[tuple[int, list[str], list[str]]] = []

    def together(
        _bed: object,
        _case: Case,
        variants: Mapping[str, Variant],
        _plan: Plan,
        *,
        turn: int,
        check: Collection[str],
    ) -> dict[str, Sample | MeasurementError]:
        asked.append((turn, sorted(variants), sorted(check)))
        failed = MeasurementError("it did not start")
        return {name: failed if (turn, name) == (0, "peer") else Sample(turn + 1.0) for name in variants}

    def alone(*_: object, **__: object) -> dict[str, Sample]:
        raise AssertionError("asked for alone")

    case = rate("c", "n", ("conns",), settle=False, repeats=True)
    variants = {name: Instant(name) for name in ("ours", "peer")}
    ((_, samples),) = rounds.run(
        cast(Testbed, None), [case], variants, Plan(2, 1.0, None), lambda _: None, alone, together=together
    )
    assert asked == [(0, ["ours", "peer"], ["ours", "peer"]), (1, ["ours", "peer"], ["peer"])]
    assert samples.good == {"ours": [Sample(1.0), Sample(2.0)], "peer": [Sample(2.0)]}
    assert samples.failed == {"peer": ["round 1: it did not start"]}


def test_rows_of_connections_are_the_ones_that_repeat() -> None:
    repeated = {case.name for case in capture_cases() if case.repeated}
    assert repeated == {"capture-connect", "same-node-direct-conn", "same-node-turbo-conn"}
