"""The table of attacks: complete, and each name is that of a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROW = re.compile(r"\| (\d+) \| (\w+) \| (.+) \|")
ROWS = [
    found.groups() for line in (HERE / "README.md").read_text().splitlines() if (found := ROW.match(line))
]


def test_every_attack_on_the_engine_has_a_row() -> None:
    assert sorted({int(number) for number, _, _ in ROWS})[:47] == list(range(1, 48))


@pytest.mark.parametrize(("name", "where"), [row[1:] for row in ROWS])
def test_every_row_has_its_tests(name: str, where: str) -> None:
    """As `def test_NAME...`, or as the group `NAME-...` of a test's parameters."""
    for file in where.split(", "):
        text = (HERE / file).read_text()
        assert re.search(rf'^(?:async )?def test_{name}(?:_\w+)?\(|^    "{name}-', text, re.MULTILINE), file
