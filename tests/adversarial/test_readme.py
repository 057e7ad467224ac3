"""The tables of attacks, promises, limits and rules: complete, and each name is that of a test, a counter or a reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hbone.engine import REASONS, Engine, EngineConfig

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


def table(title: str) -> list[list[str]]:
    """The rows below a heading, without its two lines of head."""
    section = (HERE / "README.md").read_text().split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def named(cell: str, below: Path) -> None:
    """Each `file::test` of the cell is there."""
    for name in cell.split(", "):
        file, _, test = name.partition("::")
        text = (below / file).read_text()
        assert re.search(rf"^(?:async )?def {test}\(", text, re.MULTILINE), name


@pytest.mark.parametrize("row", table("Promises by sentence"), ids=lambda row: row[0])
def test_every_promise_has_its_tests(row: list[str]) -> None:
    named(row[1], HERE.parent)


@pytest.mark.parametrize("row", table("Rules of RFC 9113"), ids=lambda row: row[0])
def test_every_rule_has_its_tests(row: list[str]) -> None:
    named(row[1], HERE)


def test_every_limit_has_a_counter_a_reason_and_a_test() -> None:
    engine = Engine(EngineConfig(workers=1))
    counters = set(engine.stats())
    engine.stop()
    rows = table("Limits")
    for _, counter, reason, tests in rows:
        assert counter in counters
        assert reason == "-" or reason in REASONS
        named(tests, HERE.parent)
    limited = {name for name in counters if name.startswith(("abuse_", "shed_"))}
    assert limited <= {row[1] for row in rows}
