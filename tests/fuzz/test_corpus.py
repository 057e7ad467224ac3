"""Inputs that once broke something, and the seeds: replayed under ASan and UBSan."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import run


@pytest.fixture(scope="module")
def programs() -> dict[str, Path]:
    """All targets, built when clang is there."""
    try:
        return run.build(run.targets())
    except run.NoCompiler as problem:
        pytest.skip(str(problem))


@pytest.mark.timeout(600)  # the first one compiles
@pytest.mark.parametrize("name", run.targets())
def test_stored_inputs_pass(programs: dict[str, Path], name: str) -> None:
    assert run.replay(name, programs[name]) == ""
