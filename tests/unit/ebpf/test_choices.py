"""Choosing in constant time: every index as likely as its weight."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpf.choices import ALWAYS, shares


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40))
def test_every_index_is_as_likely_as_its_weight(weights: list[int]) -> None:
    cells = shares(weights)
    assert len(cells) == len(weights)
    likely = [Fraction(0)] * len(weights)
    for own, other, keep in cells:
        kept = Fraction(keep + 1, ALWAYS + 1)
        likely[own] += kept / len(cells)
        likely[other] += (1 - kept) / len(cells)
    for weight, found in zip(weights, likely, strict=True):
        assert abs(found - Fraction(weight, sum(weights))) < Fraction(len(weights), ALWAYS)


def test_equal_weights_need_no_second_draw() -> None:
    assert shares([3, 3, 3]) == [(0, 0, ALWAYS), (1, 1, ALWAYS), (2, 2, ALWAYS)]


@pytest.mark.parametrize("weights", [[], [1, 0], [-1]])
def test_backends_without_weight_are_no_choice(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="positive weight"):
        shares(weights)
