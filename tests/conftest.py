"""Rules for all tests.

`@pytest.mark.root` runs wherever the tests run as root, and then has to pass. Without root these tests
are taken out of the run, and the run says so at its end: they are never quietly skipped.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

LEFT_OUT = pytest.StashKey[list[str]]()


def _missing(item: pytest.Item) -> str | None:
    """The privilege this test needs and the run does not have."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        return "root"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what cannot run here and remember it for the summary."""
    out = [item for item in items if _missing(item)]
    config.stash[LEFT_OUT] = [item.nodeid for item in out]
    if out:
        config.hook.pytest_deselected(items=out)
        gone = set(map(id, out))
        items[:] = [item for item in items if id(item) not in gone]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out, and what to do about it."""
    out = config.stash.get(LEFT_OUT, [])
    if out:
        terminalreporter.section("tests that need root")
        terminalreporter.write_line(
            f"{len(out)} tests marked `root` did not run: start pytest as root to run them"
        )
