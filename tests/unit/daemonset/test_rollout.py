"""A successor that does not come: given up after a minute, and the old agent stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from daemonset.local.rollout import SUCCESSOR_SECONDS, UpgradeFailed, replace_agent

pytestmark = pytest.mark.trio


class Program:
    """In the place of `Service`: runs for as long as it is let."""

    restarts = 0
    last_exit: int | None = None
    log_file = Path("log")

    def __init__(self, pid: int) -> None:
        self.pid, self.ended, self.retired, self.given_up = pid, False, False, False

    async def run(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.ended = True

    def retire(self) -> None:
        self.retired = True


@dataclass
class Place:
    """As much of `Node` as a replacement needs; `serves` by process id."""

    agent: Program
    serves: Callable[[int], bool]
    former: list[Program] = field(default_factory=list)

    @property
    def zds(self) -> Place:
        return self


async def replace(place: Place, successor: Program) -> str:
    """What is said of a failure."""
    async with trio.open_nursery() as nursery:
        said = ""
        try:
            await replace_agent(cast(Any, place), cast(Any, successor), nursery)
        except UpgradeFailed as error:
            said = str(error)
            await wait_all_tasks_blocked()
            successor.given_up = successor.ended
        nursery.cancel_scope.cancel()
    return said


async def test_one_that_never_serves_is_ended_after_a_minute(autojump_clock: MockClock) -> None:
    old, new = Program(1), Program(2)
    place = Place(old, serves=lambda pid: pid == 1)
    began = trio.current_time()
    assert await replace(place, new) == "no new agent within 60 s: see log"
    assert trio.current_time() - began == pytest.approx(SUCCESSOR_SECONDS, abs=0.1)
    assert (place.agent, place.former, old.retired, new.given_up) == (old, [], False, True)


async def test_one_that_is_late_takes_over(autojump_clock: MockClock) -> None:
    old, new = Program(1), Program(2)
    ready = trio.current_time() + SUCCESSOR_SECONDS - 1
    place = Place(old, serves=lambda pid: pid == 1 or trio.current_time() >= ready)
    assert await replace(place, new) == ""
    assert (place.agent, place.former, old.retired) == (new, [old], True)


async def test_one_stays_where_the_old_agent_has_nothing_to_hand_over(autojump_clock: MockClock) -> None:
    old, new = Program(1), Program(2)
    place = Place(old, serves=lambda pid: False)
    assert await replace(place, new) == "no new agent within 60 s: see log"
    assert (place.agent, place.former, old.retired, new.given_up) == (new, [old], True, False)
