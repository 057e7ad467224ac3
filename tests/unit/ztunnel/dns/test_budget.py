"""Places for questions that wait."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel.dns.budget import Budget


def test_a_source_has_its_share_and_all_have_the_total() -> None:
    budget = Budget(total=3, each=2)
    assert [budget.take("a") for _ in range(3)] == [True, True, False]
    assert [budget.take("b") for _ in range(2)] == [True, False]
    budget.give("a")
    assert budget.take("b")


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=80))
def test_never_more_than_allowed_whatever_the_order(steps: list[tuple[bool, str]]) -> None:
    budget, held = Budget(total=5, each=3), dict.fromkeys("abc", 0)
    for takes, source in steps:
        if takes:
            fits = sum(held.values()) < 5 and held[source] < 3
            assert budget.take(source) is fits
            held[source] += fits
        elif held[source]:
            budget.give(source)
            held[source] -= 1
        assert budget.used == sum(held.values())
