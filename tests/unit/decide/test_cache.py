"""What is kept of decisions: for one snapshot object, by key, along the choices that draws make."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.decide.balance import NotedDraw, weighted
from ztunnel.decide.cache import Kept
from ztunnel.state.snapshot import Snapshot


def test_another_snapshot_forgets_everything_even_an_equal_one() -> None:
    kept: Kept[str] = Kept()
    before, after = Snapshot.empty("n1"), Snapshot.empty("n1")
    kept.put(before, "a", "old")
    assert before == after
    assert kept.get(after, "a") is None
    kept.put(after, "b", "new")
    assert kept.get(after, "a") is None
    assert kept.get(before, "b") is None


def test_the_number_of_values_is_bounded_branches_included() -> None:
    kept: Kept[int] = Kept(limit=3)
    snapshot = Snapshot.empty()
    for index in range(3):
        draw = NotedDraw(index / 3)
        weighted([1, 1, 1], draw)
        kept.put(snapshot, "one key", index, (draw,))
    assert [kept.get(snapshot, "one key", (index / 3,)) for index in range(3)] == [0, 1, 2]
    kept.put(snapshot, "another", 9)
    assert kept.get(snapshot, "one key", (0.0,)) is None
    assert kept.get(snapshot, "another") == 9


Weights = st.lists(st.integers(0, 3), min_size=1, max_size=4)
Draw = st.floats(0, 1, exclude_max=True)


@given(st.lists(Weights, min_size=4, max_size=4), st.lists(st.tuples(Draw, Draw), max_size=40))
def test_a_kept_value_is_the_one_that_would_be_made(
    weights: list[list[int]], draws: list[tuple[float, float]]
) -> None:
    def decide(first: float, second: float) -> tuple[int | None, int | None]:
        index = weighted(weights[0], first)
        return index, weighted(weights[1 + (index or 0) % 3], second)

    kept: Kept[tuple[int | None, int | None]] = Kept()
    snapshot = Snapshot.empty()
    for first, second in draws:
        found = kept.get(snapshot, "key", (first, second))
        if found is None:
            noted = NotedDraw(first), NotedDraw(second)
            kept.put(snapshot, "key", decide(*noted), noted)
        else:
            assert found == decide(first, second)
