"""One set of engines and one canary for all adversarial tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.arena import Arena, Arenas


@pytest.fixture(scope="session")
def arenas() -> Iterator[Arenas]:
    """Engines by configuration; use `with arenas.enter(...)` when the default one does not do."""
    found = Arenas()
    yield found
    found.close()


@pytest.fixture
def arena(arenas: Arenas) -> Iterator[Arena]:
    """The default surroundings of one attack, with all checks afterwards."""
    with arenas.enter() as entered:
        yield entered
