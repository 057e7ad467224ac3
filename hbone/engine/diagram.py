"""`python -m hbone.engine.diagram [--check]`: the parts of docs/engine.md that come from the engine's own tables.

Data in: `hbone._engine`'s MACHINES, CONFIG, BUDGET_RATES, BUDGET_COUNTS and BUFFER_SIZES. Data out: Mermaid state
diagrams and Markdown tables between `<!-- begin NAME -->` and `<!-- end NAME -->`. The text around them is not touched.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from hbone import _engine

PAGE = Path(__file__).resolve().parents[2] / "docs" / "engine.md"

_MEGABYTE = 1 << 20


def state_diagram(name: str) -> str:
    """One machine as a Mermaid state diagram. A state without a way on is an end."""
    states, moves = next((states, moves) for found, states, moves in _engine.MACHINES if found == name)
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    {state}: {state}<br/>{_quoted(text)}" for state, text in states]
    lines += [f"    {start or '[*]'} --> {to}: {_quoted(why)}" for start, to, why in moves]
    departed = {start for start, _, _ in moves}
    lines += [f"    {state} --> [*]" for state, _ in states if state not in departed]
    return "\n".join([*lines, "```"])


def _quoted(text: str) -> str:
    """Mermaid ends a label at a semicolon and takes a colon for its own."""
    return text.replace(";", ",").replace(":", ",")


def config_table() -> str:
    """Every field of EngineConfig with its default and range."""
    rows = (
        (f"`{name}`", _number(value), _number(least), _number(most))
        for name, value, least, most in _engine.CONFIG
    )
    return _table(("EngineConfig", "default", "least", "most"), rows)


def rates_table() -> str:
    """Budgets that leak."""
    rows = (
        (f"`{name}`", _number(burst), _number(rate), what) for name, burst, rate, what in _engine.BUDGET_RATES
    )
    return _table(("budget", "burst", "a second", "drawn on by"), rows)


def counts_table() -> str:
    """Budgets that only count."""
    rows = ((f"`{name}`", _number(number), what) for name, number, what in _engine.BUDGET_COUNTS)
    return _table(("limit", "number", "of"), rows)


def sizes_table() -> str:
    """Buffers."""
    rows = ((f"`{name}`", _number(number), what) for name, number, what in _engine.BUFFER_SIZES)
    return _table(("size", "value", "what it is"), rows)


def _number(value: float) -> str:
    if value >= _MEGABYTE and value == int(value) and int(value) % _MEGABYTE == 0:
        return f"{int(value) // _MEGABYTE} Mi"
    return f"{value:,.10g}" if value != int(value) else f"{int(value):,}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PARTS: dict[str, Callable[[], str]] = {
    **{f"{name} states": partial(state_diagram, name) for name, _, _ in _engine.MACHINES},
    "configuration": config_table,
    "rates": rates_table,
    "counts": counts_table,
    "sizes": sizes_table,
}


def render(page: str) -> str:
    """The page with every part written anew. ValueError when a part has no place, or a place no part."""
    places = re.findall(r"<!-- begin (.+?) -->", page)
    if sorted(places) != sorted(PARTS):
        raise ValueError(f"the page has places for {sorted(places)}, there are parts {sorted(PARTS)}")
    for name, part in PARTS.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{end} is missing")
        page = f"{before}{begin}\n{part()}\n{end}{after}"
    return page


def main(arguments: list[str]) -> int:
    """Write the page; with --check, only say whether it is fresh."""
    old = PAGE.read_text()
    new = render(old)
    if arguments == ["--check"]:
        if old != new:
            print("docs/engine.md is stale: run `python -m hbone.engine.diagram`", file=sys.stderr)
        return int(old != new)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
