"""Rules for all tests.

A marked test (`@pytest.mark.root`, `kube`, `istiod`, `ztunnel`) runs wherever there is what it needs, and then has to
pass. Elsewhere it is taken out of the run, and the run says so at its end: nothing is quietly skipped.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.support import sanitized  # noqa: E402  (the tree has to be found first)
from tests.support.needs import NEEDS  # noqa: E402

LEFT_OUT = pytest.StashKey[Counter[tuple[str, str]]]()
TOLD = "left_out"  # what a worker of pytest-xdist tells of it


def pytest_configure() -> None:
    """Agents of local meshes are under the sanitizer that was asked for."""
    if sanitized.kind():
        os.environ["AMBIENT_AGENT_COMMAND"] = shlex.join([*sanitized.agent_command(), "proxy", "ztunnel"])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """No run passes in which a sanitizer found something."""
    _tell(session)
    if sanitized.findings():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what cannot run here and remember it for the summary."""
    missing = {marker: why for marker, find in NEEDS.items() if (why := find())}
    kept, out = [], []
    counted = config.stash[LEFT_OUT] = Counter()
    for item in items:
        marker = next((one for one in missing if item.get_closest_marker(one)), None)
        if marker is None:
            kept.append(item)
        else:
            out.append(item)
            counted[marker, missing[marker]] += 1
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = kept


def _tell(session: pytest.Session) -> None:
    """A worker says what it left out."""
    told = _told(session.config)
    if told is not None:
        told[TOLD] = [[*key, count] for key, count in session.config.stash.get(LEFT_OUT, Counter()).items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """All workers collect the same tests: what the last one tells is what was left out."""
    told = getattr(node, "workeroutput", {}).get(TOLD, ())
    node.config.stash[LEFT_OUT] = Counter({(marker, why): count for marker, why, count in told})


def _told(config: pytest.Config) -> dict[str, Any] | None:
    """What a worker tells at its end; None outside of one."""
    return getattr(config, "workeroutput", None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out, and what to do about it."""
    counted = config.stash.get(LEFT_OUT, Counter())
    if counted:
        terminalreporter.section("tests that need what is not here")
    for (marker, why), count in counted.items():
        terminalreporter.write_line(f"{count} tests marked `{marker}` did not run: {why}")
    for name, text in sanitized.findings().items():
        terminalreporter.section(f"sanitizer: {name}")
        terminalreporter.write_line(text)
