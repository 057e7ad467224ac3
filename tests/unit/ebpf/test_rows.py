"""The table of what capture is held to names tests that exist and run for the families it says."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "netns" / "capture"
IPV6 = re.compile(r"\bversion\b|::|v6|\b6\b")


class Row(NamedTuple):
    """One line of the table."""

    section: str
    number: int
    families: str
    tests: tuple[str, ...]


def rows() -> list[Row]:
    found, section = [], ""
    for line in (FOLDER / "README.md").read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].isdigit():
            found.append(Row(section, int(cells[0]), cells[2], tuple(cells[3].split(", "))))
    return found


ROWS = rows()


@cache
def functions(module: str) -> dict[str, str]:
    """Tests of a module, with their decorators, as text."""
    text = (FOLDER / f"{module}.py").read_text()
    made = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
    return {
        node.name: "\n".join(ast.unparse(part) for part in (*node.decorator_list, node))
        for node in made
        if node.name.startswith("test_")
    }


def test_the_lists_are_complete() -> None:
    numbers = {
        name: [row.number for row in ROWS if row.section.startswith(name)]
        for name in ("Capture", "Direct path", "Beyond")
    }
    assert numbers["Capture"] == list(range(1, 43))
    assert numbers["Direct path"] == list(range(1, 14))
    assert numbers["Beyond"] == list(range(1, len(numbers["Beyond"]) + 1))


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.section.split()[0]}-{row.number}" for row in ROWS])
def test_every_row_has_tests_that_run_for_its_families(row: Row) -> None:
    texts = []
    for name in row.tests:
        module, _, function = name.partition("::")
        assert function in functions(module), f"{name} does not exist"
        texts.append(functions(module)[function])
    assert row.families == "both" or re.match(r"IPv[46](: |$)", row.families)
    if not row.families.startswith("IPv4"):
        assert any(IPV6.search(text) for text in texts), f"nothing of {row.tests} is about IPv6"
