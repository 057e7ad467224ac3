"""When the garbage collector works, and that it always does in the end."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from ztunnel import collector

pytestmark = pytest.mark.trio


@pytest.fixture(autouse=True)
def at_rest() -> Iterator[None]:
    """As `ztunnel.__main__` begins; afterwards as it was."""
    thresholds = gc.get_threshold()
    gc.disable()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
    gc.enable()


async def test_it_rests_until_the_first_state(autojump_clock: MockClock) -> None:
    seen: list[bool] = []

    async def state() -> None:
        await trio.sleep(collector.PATIENCE / 2)
        seen.append(gc.isenabled())

    begin = trio.current_time()
    await collector.settle(state)
    assert seen == [False]
    assert gc.isenabled()
    assert trio.current_time() - begin == pytest.approx(collector.PATIENCE / 2)


async def test_without_a_control_plane_it_works_all_the_same(autojump_clock: MockClock) -> None:
    begin = trio.current_time()
    await collector.settle(trio.sleep_forever)
    assert trio.current_time() - begin == pytest.approx(collector.PATIENCE)
    assert gc.isenabled()


async def test_a_large_state_that_fails_ends_the_rest() -> None:
    gc.enable()
    seen: list[bool] = []

    @collector.resting()
    def fail() -> None:
        seen.append(gc.isenabled())
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        fail()
    assert [*seen, gc.isenabled()] == [False, True]
