"""Tables for the terminal and for the docs."""

from typing import Any

import pytest

from tests.bench.results import Row, Sample, Samples, document
from tests.bench.tables import cpu_cost, markdown, notes, number, tables, text, times

MACHINE = {
    "cpu": "AMD EPYC", "kernel": "6.18", "cores": 2, "python": "3.11", "openssl": "OpenSSL 3.0",
    "date": "2026-11-21", "versions": {"envoy": "1.40.0"},
}  # fmt: skip


def result(foreign: float = 0.01) -> dict[str, Any]:
    rr, rss = Samples(), Samples()
    rr.add("none", Sample(60000.0, None, 15.0, 21.0, foreign_cpu=foreign))
    rr.add("ours", Sample(18000.0, 40e-6, 53.0, 74.0, foreign_cpu=foreign))
    rr.add("relay", Sample(18000.0, 60e-6, 53.0, 74.0))
    rr.fail("envoy", "round 1: it did not listen")
    rss.add("ours", Sample(60.0))
    rss.absent["relay"] = "nothing to see"
    rss.absent["none"] = "there is no proxy"
    rss.fail("envoy", "round 1: it did not listen")
    rows = [
        (Row("rr-1-64b", "request/s", "higher", "request"), rr),
        (Row("rss-idle", "MB", "lower"), rss),
    ]
    return document(
        "hbone", MACHINE, {"rounds": 1}, rows, ["none", "ours", "relay", "envoy"], {"ztunnel": "not set"}
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0.0, "0"), (0.6342, "0.634"), (12.34, "12.3"), (123.4, "123"), (45678.0, "45,700")],
)
def test_numbers_have_three_significant_digits(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_ratios_and_costs_carry_their_unit() -> None:
    assert times(2.284) == "2.28x"
    assert times(None) == "–"
    assert cpu_cost(0.634, "GB") == "0.634 s"
    assert cpu_cost(13e-6, "request") == "13 us"
    assert cpu_cost(None, "GB") == "–"


def test_ratios_come_first_and_ours_is_the_first_variant() -> None:
    (title, lines), (cost_title, costs), (_, medians) = tables(result())
    assert "times better" in title
    assert lines[0] == ["case", "ours", "against none", "against relay"]
    assert lines[1] == ["rr-1-64b", "18,000 request/s", "0.30x", "1.00x"]
    assert "CPU" in cost_title
    assert costs[1] == ["rr-1-64b", "one request", "40 us", "–", "60 us (1.50x)"]
    assert medians[1] == [
        "rr-1-64b",
        "request/s",
        "18,000 (53/74 us)",
        "60,000 (15/21 us)",
        "18,000 (53/74 us)",
    ]


def test_notes_name_the_machine_the_absent_and_the_failed() -> None:
    said = "\n".join(notes(result()))
    assert "AMD EPYC, 2 cores, Linux 6.18" in said
    assert "ztunnel is absent: not set" in said
    assert "envoy gave no figure for rr-1-64b, rss-idle: round 1: it did not listen" in said
    assert "not quiet" not in said


def test_notes_admit_that_strangers_used_the_machine() -> None:
    assert any("up to 30% of its CPU time" in line for line in notes(result(foreign=0.3)))


def test_text_lines_up_and_markdown_is_a_table() -> None:
    plain = text(result()).splitlines()
    heading = next(i for i, line in enumerate(plain) if line.startswith("case"))
    assert len(plain[heading]) == len(plain[heading + 1])
    assert "| rr-1-64b | 18,000 request/s | 0.30x | 1.00x |" in markdown(result()).splitlines()
    assert "- ztunnel is absent: not set" in markdown(result()).splitlines()


def test_paired_ratios_stand_beside_those_of_the_medians_and_a_note_says_what_they_are() -> None:
    made = Samples()
    made.add("ours", Sample(9.6, slices=(19.0, 9.5, 9.6)))
    made.add("none", Sample(10.0, slices=(20.0, 10.0, 10.0)))
    rows = [(Row("conn", "connection/s", "higher"), made)]
    shown = document("capture", MACHINE, {"rounds": 1}, rows, ["ours", "none"], {})
    ((_, lines), _) = tables(shown)
    assert lines == [
        ["case", "ours", "against none"],
        ["conn", "9.6 connection/s", "0.96x (0.95x paired)"],
    ]
    (said,) = (line for line in notes(shown) if line.startswith("Paired"))
    assert "conn against none 0.95x to 0.96x (3)" in said
    assert not any(line.startswith("Paired") for line in notes(result()))
