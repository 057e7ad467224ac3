"""Python's garbage collector, which goes through all objects and stops every thread for as long.

It rests while the agent starts and while a large state is taken in: what is made then stays for long, and none of it
is garbage. Each rest has an end.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import trio

__all__ = ["PATIENCE", "resting", "settle"]

PATIENCE: Final = 30.0
"""Seconds after which an agent without a first state collects all the same."""


async def settle(started: Callable[[], Awaitable[object]]) -> None:
    """End the rest that began with the process: when the first state is here, or after PATIENCE."""
    with trio.move_on_after(PATIENCE):
        await started()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()


@contextlib.contextmanager
def resting() -> Iterator[None]:
    """While a large state is made, which is not walked afterwards either."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
