"""Files of the engine include downwards only, in the layers that docs/engine.md states. What its objects call is
looked at in tests/fuzz/test_engine_check.py, where there are some."""

from __future__ import annotations

from tests.support import enginelayers
from tests.support.enginelayers import ENGINE, Use


def test_every_file_has_its_layer() -> None:
    stated = {name.removesuffix(".h") for name in enginelayers.layers()}
    assert stated == {path.stem for path in [*ENGINE.glob("*.c"), *ENGINE.glob("*.h")]}


def test_no_file_includes_a_header_of_a_higher_layer() -> None:
    uses = enginelayers.includes()
    assert len(uses) > 200, "the includes were read"
    assert enginelayers.upward(uses) == []


def test_includes_lead_to_no_circle() -> None:
    assert enginelayers.circle(enginelayers.includes()) == []


def test_an_include_up_and_one_round_are_noticed() -> None:
    up = Use("timer.h", "worker.h", "worker.h")
    assert enginelayers.upward([up]) == [up]
    there, back = Use("plain.c", "flow.h", "flow.h"), Use("flow.c", "plain.h", "plain.h")
    assert set(enginelayers.circle([there, back])) == {"plain", "flow"}
