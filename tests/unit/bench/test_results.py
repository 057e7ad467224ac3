"""Medians, ratios and the shape of the result document."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.results import (
    Row,
    Sample,
    Samples,
    document,
    median,
    paired,
    problems,
    ratio,
    rounded,
)

MACHINE = {"cpu": "c", "kernel": "k", "cores": 2, "python": "3", "openssl": "o", "versions": {}}
FAST = Row("bulk-up-1", "Gbit/s", "higher", "GB")
SMALL = Row("rss-idle", "MB", "lower")


def samples(**values: list[float]) -> Samples:
    made = Samples()
    for variant, figures in values.items():
        for figure in figures:
            made.add(variant, Sample(figure, cpu_s_per_unit=figure / 10, foreign_cpu=0.01))
    return made


def result() -> dict[str, object]:
    small = samples(ours=[60.0, 62.0, 61.0], envoy=[122.0, 120.0, 124.0])
    small.absent["none"] = "there is no proxy"
    return document(
        "hbone",
        MACHINE,
        {"rounds": 3},
        [
            (FAST, samples(ours=[12.0, 10.0, 11.0], none=[44.0, 40.0, 48.0], envoy=[5.5, 5.0, 6.0])),
            (SMALL, small),
        ],
        ["ours", "none", "envoy"],
        {"ztunnel": "ZTUNNEL_BIN is not set"},
    )


def test_ratio_above_one_is_better_whichever_way_the_unit_points() -> None:
    assert ratio(12, 6, "higher") == 2
    assert ratio(6, 12, "lower") == 2


@given(st.floats(0.01, 1e9), st.floats(0.01, 1e9))
def test_ratio_of_the_two_directions_are_reciprocal(ours: float, other: float) -> None:
    higher, lower = ratio(ours, other, "higher"), ratio(ours, other, "lower")
    assert higher is not None
    assert lower is not None
    assert higher * lower == pytest.approx(1)


@pytest.mark.parametrize(
    ("ours", "other", "better"),
    [(None, 1.0, "higher"), (1.0, None, "lower"), (1.0, 0.0, "higher"), (0.0, 1.0, "lower")],
)
def test_ratio_without_a_figure_or_over_nothing_is_none(
    ours: float | None, other: float | None, better: str
) -> None:
    assert ratio(ours, other, better) is None


def test_median_ignores_what_is_not_there_and_of_nothing_is_none() -> None:
    assert median([3.0, None, 1.0, 2.0]) == 2.0
    assert median([None]) is None
    assert median([]) is None


@pytest.mark.parametrize(
    ("value", "short"), [(123456.0, 123500.0), (0.00012345, 0.0001234), (0.0, 0.0), (None, None)]
)
def test_rounded_keeps_significant_digits(value: float | None, short: float | None) -> None:
    assert rounded(value) == pytest.approx(short) if short else rounded(value) == short


def test_document_has_medians_ratios_cpu_and_rounds_of_every_variant() -> None:
    fast, small = result()["rows"]  # type: ignore[misc]
    assert fast["median"] == {"ours": 11.0, "none": 44.0, "envoy": 5.5, "ztunnel": None}
    assert fast["ratio"] == {"none": 0.25, "envoy": 2.0, "ztunnel": None}
    assert fast["cpu_s_per_unit"]["ours"] == pytest.approx(1.1)
    assert fast["rounds"]["ours"] == [12.0, 10.0, 11.0]
    assert fast["rounds"]["ztunnel"] == []
    assert small["ratio"]["envoy"] == 2.0
    assert small["absent"] == {"none": "there is no proxy"}


def test_document_survives_json_and_has_no_problems() -> None:
    assert problems(json.loads(json.dumps(result()))) == []


def test_failed_rounds_are_told_and_excuse_a_missing_median() -> None:
    broken = Samples()
    broken.add("ours", Sample(1.0))
    broken.fail("envoy", "round 1: envoy ended with status 1")
    made = document("hbone", MACHINE, {}, [(FAST, broken)], ["ours", "envoy"], {})
    assert made["rows"][0]["failed"] == {"envoy": ["round 1: envoy ended with status 1"]}
    assert problems(made) == []


def test_latencies_and_the_figure_beside_appear_only_where_measured() -> None:
    row = Row("mixed", "request/s", "higher", beside="Gbit/s")
    mixed = Samples()
    mixed.add("ours", Sample(1000.0, None, 500.0, 900.0, 17.0))
    made = document("hbone", MACHINE, {}, [(row, mixed), (FAST, samples(ours=[1.0]))], ["ours"], {})
    assert made["rows"][0]["latency_us"] == {"ours": {"p50": 500.0, "p99": 900.0}}
    assert made["rows"][0]["beside"] == {"unit": "Gbit/s", "median": {"ours": 17.0}}
    assert "latency_us" not in made["rows"][1]
    assert "beside" not in made["rows"][1]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda d: d.pop("machine"), "lacks machine"),
        (lambda d: d["machine"].pop("kernel"), "machine: lacks kernel"),
        (lambda d: d["rows"][0].pop("rounds"), "bulk-up-1: lacks rounds"),
        (lambda d: d["rows"][0].update(better="more"), "better is 'more'"),
        (lambda d: d["rows"][0]["median"].update(ours=13.0), "the median is not that of its rounds"),
        (lambda d: d["rows"][0]["ratio"].update(envoy=3.0), "the ratio does not follow"),
        (lambda d: d["rows"][0]["ratio"].pop("envoy"), "name different variants"),
        (lambda d: d["absent"].clear(), "ztunnel is null without a reason"),
    ],
)
def test_a_spoiled_document_is_found_out(spoil, complaint: str) -> None:  # type: ignore[no-untyped-def]
    spoiled = copy.deepcopy(result())
    spoil(spoiled)
    assert any(complaint in problem for problem in problems(spoiled))


def sliced(turn: int, *values: float) -> Sample:
    return Sample(sorted(values)[len(values) // 2], slices=values, turn=turn)


def test_pairs_are_slices_of_the_same_place_in_the_same_round() -> None:
    ours = [sliced(0, 10.0, 30.0, 20.0), sliced(2, 8.0, 8.0, 9.0)]
    other = [sliced(0, 20.0, 30.0, 25.0), sliced(1, 1.0, 1.0, 1.0), sliced(2, 4.0, 4.0)]
    assert paired(ours, other, "higher") == [0.5, 1.0, 0.8, 2.0, 2.0]
    assert paired(ours, other, "lower") == [2.0, 1.0, 1.25, 0.5, 0.5]
    assert paired(samples(ours=[1.0]).good["ours"], other, "higher") == []


def test_row_shows_slices_and_what_their_pairs_say() -> None:
    """A machine that halves its speed after the first slice: the pairs do not notice."""
    made = Samples()
    made.add("ours", sliced(0, 19.0, 9.5, 9.6))
    made.add("none", sliced(0, 20.0, 10.0, 10.0))
    made.fail("envoy", "it did not start")
    whole = document("capture", MACHINE, {}, [(FAST, made)], ["ours", "none", "envoy"], {})
    (row,) = whole["rows"]
    assert row["slices"] == {"ours": [[19.0, 9.5, 9.6]], "none": [[20.0, 10.0, 10.0]], "envoy": []}
    assert row["paired"] == {"none": {"pairs": 3, "median": 0.95, "low": 0.95, "high": 0.96}}
    assert problems(whole) == []
    assert problems(json.loads(json.dumps(whole))) == []
    row["paired"]["none"]["median"] = 1.2
    assert problems(whole) == ["bulk-up-1: none: the paired ratio is not that of its slices"]


def test_rows_without_slices_have_no_pairs() -> None:
    (row, _) = result()["rows"]  # type: ignore[misc]
    assert "slices" not in row
    assert "paired" not in row
