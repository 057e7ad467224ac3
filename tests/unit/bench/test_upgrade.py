"""The upgrade group in its short form: nothing that an upgrade promises not to lose is lost."""

from pathlib import Path

import pytest

from tests.bench.results import Samples, problems
from tests.bench.results import document as document_of
from tests.bench.upgrade.group import ROWS, VARIANTS, Size, measure, samples_of

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.root
def test_upgrades_under_load_lose_nothing_and_a_killed_agent_is_replaced() -> None:
    upgraded, killed = measure(ROOT, Size(upgrades=2, kills=1, rate=50, sessions=10), {})
    assert (upgraded["failures"], upgraded["losses"]) == ({}, {})
    assert upgraded["open"] == 10
    assert upgraded["done"] > 0
    assert killed["done"] > 0


def test_figures_make_a_result_also_where_nothing_was_lost() -> None:
    upgraded = {"failed": 0, "lost": 0, "longest": 0.5}
    killed = {"failed": 3, "longest": 1.5}
    collected = {row.case: Samples() for row in ROWS}
    for name in VARIANTS:
        for case, sample in samples_of(upgraded, killed).items():
            collected[case].add(name, sample)
    machine = dict.fromkeys(("cpu", "kernel", "cores", "python", "openssl"), "") | {"versions": {}}
    rows = [(row, collected[row.case]) for row in ROWS]
    assert problems(document_of("upgrade", machine, {}, rows, list(VARIANTS), {})) == []
