"""The tables of states and limits: sound, consulted by the code, and what docs/engine.md shows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hbone import _engine
from hbone.engine import EngineConfig
from hbone.engine.diagram import PAGE, main, render, state_diagram

ROOT = Path(__file__).resolve().parents[3]
NAMES = [name for name, _, _ in _engine.MACHINES]


def test_the_page_is_fresh() -> None:
    assert main(["--check"]) == 0, "run `python -m hbone.engine.diagram`"


def test_a_stale_page_is_noticed_and_written_anew() -> None:
    page = PAGE.read_text()
    stale = page.replace("--> RELAYING", "--> SOMEWHERE").replace("| `max_flows` |", "| `few_flows` |")
    assert stale != page
    assert render(stale) == page
    with pytest.raises(ValueError, match="places"):
        render(page.replace("<!-- begin rates -->", ""))
    with pytest.raises(ValueError, match="missing"):
        render(page.replace("<!-- end rates -->", ""))


@pytest.mark.parametrize("name", NAMES)
def test_every_state_is_reached_and_every_way_leads_to_an_end(name: str) -> None:
    states, moves = next((s, m) for n, s, m in _engine.MACHINES if n == name)
    known = {state for state, _ in states}
    ways: dict[str | None, set[str]] = {}
    for start, to, why in moves:
        assert {start or to, to} <= known
        assert why
        ways.setdefault(start, set()).add(to)

    def reached(origin: str | None) -> set[str]:
        found, new = set[str](), set(ways.get(origin, ()))
        while new:
            found |= new
            new = {to for state in new for to in ways.get(state, ())} - found
        return found

    assert reached(None) == known
    # a stream goes back to where it began; every other machine has states without a way on
    ends = known - set(ways) if name != "stream" else {"NONE"}
    assert ends
    assert all(state in ends or reached(state) & ends for state in known)
    assert f"    [*] --> {next(iter(ways[None]))}" in state_diagram(name)


PROGRAM = """
#include <stdio.h>
#include "machine.h"
int main(void)
{
    char text[64];
    if (!flow_move_allowed(FLOW_ASKED, FLOW_RELAYING) || flow_move_allowed(FLOW_ASKED, FLOW_DECIDING))
        return 1;
    machine_forbids(text, sizeof text, MACHINE_flow, FLOW_ASKED, FLOW_DECIDING);
    puts(text);
    machine_forbids(text, sizeof text, MACHINE_drain, 77, DRAIN_LAST);
    puts(text);
    return 0;
}
"""


def test_a_move_outside_the_table_is_known_and_named(tmp_path: Path) -> None:
    engine = ROOT / "hbone" / "engine"
    (tmp_path / "moves.c").write_text(PROGRAM)
    sources = [str(tmp_path / "moves.c"), str(engine / "machine.c")]
    program = str(tmp_path / "moves")
    subprocess.run(["cc", "-Wall", "-Werror", f"-I{engine}", *sources, "-o", program], check=True)
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    assert said == ["a flow must not go from ASKED to DECIDING", "a drain must not go from ? to LAST"]


def test_limits_of_the_page_are_those_of_the_configuration() -> None:
    config = EngineConfig()
    assert {name: default for name, default, _, _ in _engine.CONFIG} == {
        name: float(getattr(config, name)) for name in EngineConfig.__slots__
    }
