"""Choosing among several backends in constant time: Vose's alias method (IEEE Trans. Software Eng. 17(9), 1991). Pure.

The kernel draws one of as many cells as there are backends, all alike likely, and then one of the two that share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Final, NamedTuple

__all__ = ["ALWAYS", "Share", "shares"]

ALWAYS: Final = (1 << 32) - 1


class Share(NamedTuple):
    """A cell: `own` (an index) if a draw of 32 bits is at most `keep`, else `other`."""

    own: int
    other: int
    keep: int


def shares(weights: Sequence[int]) -> list[Share]:
    """One cell for each weight, by which each index is as likely as its weight. ValueError unless all are positive."""
    if not weights or min(weights) <= 0:
        raise ValueError("every backend needs a positive weight")
    # In units of one cell; exact, so that nothing is left over through rounding.
    left = [Fraction(weight * len(weights), sum(weights)) for weight in weights]
    small = [index for index, part in enumerate(left) if part < 1]
    large = [index for index, part in enumerate(left) if part >= 1]
    made = [Share(index, index, ALWAYS) for index in range(len(weights))]
    while small:
        index, giver = small.pop(), large[-1]
        made[index] = Share(index, giver, max(0, round(left[index] * (ALWAYS + 1)) - 1))
        left[giver] -= 1 - left[index]
        if left[giver] < 1:
            small.append(large.pop())
    return made
