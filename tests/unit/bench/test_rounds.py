"""The order of measurements, and the meaning of the options."""

import pytest

from tests.bench.__main__ import parser, pinned_cpu
from tests.bench.capture.cases import capture_cases
from tests.bench.cases import hbone_cases
from tests.bench.hbone import choose_cases, choose_variants
from tests.bench.native import BuildError
from tests.bench.rounds import schedule
from tests.bench.testbed import settled

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
