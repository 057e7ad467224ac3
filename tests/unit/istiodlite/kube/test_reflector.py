"""When to list, watch and wait: as a function of what came, without a server or a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istiodlite.kube.reflector import (
    FIRST_WAIT,
    LONGEST_WAIT,
    MISSING_BELIEVED,
    MISSING_WAIT,
    WATCH_SECONDS,
    Change,
    Data,
    Ended,
    Event,
    Failure,
    Input,
    List,
    Page,
    Replace,
    Sleep,
    State,
    Trouble,
    Watch,
    Woke,
    advance,
    wait_of,
)

FAILED, EXPIRED = Failure(Trouble.FAILED), Failure(Trouble.EXPIRED)
MISSING, GARBLED = Failure(Trouble.MISSING), Failure(Trouble.GARBLED)


def run(*inputs: Input[str], state: State[str] | None = None) -> tuple[State[str], list[Data[str]]]:
    """Feeds inputs; waits are slept through. Returns the last state and the data."""
    current = state or State()
    out = []
    for one in inputs:
        if isinstance(current.action, Sleep):
            current, _ = advance(current, Woke(), 0.5)
        current, data = advance(current, one, 0.5)
        out.append(data)
    return current, out


def watching(*items: str) -> State[str]:
    return run(Page(items, "10"))[0]


def test_a_whole_list_is_data_and_is_followed_from_its_version() -> None:
    state, data = run(Page(("a", "b"), "10"))
    assert data == [Replace(("a", "b"))]
    assert state.action == Watch("10", sum(WATCH_SECONDS) // 2)


def test_pages_count_only_together() -> None:
    state, data = run(Page(("a",), "10", "t1"), Page(("b",), "10", "t2"), Page(("c",), "10"))
    assert data == [None, None, Replace(("a", "b", "c"))]
    assert isinstance(state.action, Watch)


def test_a_failed_page_is_asked_for_again_with_its_token() -> None:
    state, _ = run(Page(("a",), "10", "t1"), FAILED)
    assert state.action == Sleep(wait_of(1, 0.5), List("t1"))
    _, data = run(Page(("b",), "10"), state=state)
    assert data == [Replace(("a", "b"))]


@pytest.mark.parametrize("trouble", [EXPIRED, GARBLED])
def test_pages_of_a_broken_off_list_are_forgotten(trouble: Failure) -> None:
    _, data = run(Page(("a",), "10", "t1"), trouble, Page(("b",), "20"))
    assert data == [None, None, Replace(("b",))]


def test_events_and_bookmarks_move_the_version() -> None:
    state, data = run(Event("11", "x"), Event("15", None), state=watching())
    assert data == [Change("x"), None]
    assert isinstance(state.action, Watch)
    assert state.action.version == "15"


def test_a_broken_watch_goes_on_from_the_last_version() -> None:
    state, _ = run(Event("11", "x"), FAILED, state=watching())
    assert isinstance(state.action, Sleep)
    assert isinstance(state.action.then, Watch)
    assert state.action.then.version == "11"


def test_a_watch_that_ends_in_good_order_is_begun_again_at_once() -> None:
    state, _ = run(Event("11", None), Ended(), state=watching())
    assert isinstance(state.action, Watch)
    assert state.action.version == "11"


def test_a_forgotten_version_is_listed_at_once_the_first_time_and_after_a_wait_the_next() -> None:
    state, _ = run(EXPIRED, state=watching())
    assert state.action == List()
    state, _ = run(Page(("a",), "20"), EXPIRED, state=state)
    assert isinstance(state.action, Sleep)
    assert state.action.then == List()


def test_garbage_in_a_watch_is_answered_by_a_list() -> None:
    state, _ = run(GARBLED, state=watching())
    assert isinstance(state.action, Sleep)
    assert state.action.then == List()


def test_watches_that_end_at_once_without_an_event_are_waited_for_ever_longer() -> None:
    state = watching()
    waits = []
    for _ in range(9):
        state, _ = run(Ended(fruitless=True), state=state)
        assert isinstance(state.action, Sleep)
        waits.append(state.action.seconds)
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT


def test_a_sign_of_life_ends_the_series_of_failures() -> None:
    state, _ = run(FAILED, FAILED, Event("12", None), FAILED, state=watching())
    assert isinstance(state.action, Sleep)
    assert state.action.seconds == wait_of(1, 0.5)


def test_lists_that_succeed_do_not_hide_watches_that_fail() -> None:
    state: State[str] = State()
    for number in range(4):
        state, _ = run(Page((), "10"), GARBLED, state=state)
        assert isinstance(state.action, Sleep)
        assert state.action.seconds == wait_of(number + 1, 0.5)


def test_a_kind_that_was_never_there_is_empty_and_asked_for_from_time_to_time() -> None:
    state, data = run(MISSING)
    assert data == [Replace(())]
    assert state.action == Sleep(MISSING_WAIT, List())
    _, data = run(MISSING, Page(("a",), "10"), state=state)
    assert data[-1] == Replace(("a",))


def test_a_kind_that_was_there_is_gone_only_after_several_answers() -> None:
    state, data = run(*[MISSING] * (MISSING_BELIEVED + 1), state=watching("a"))
    # The watch's own failure leads to the list, whose answers are counted.
    assert data == [None] * MISSING_BELIEVED + [Replace(())]
    assert not state.listed


def test_a_list_in_between_starts_the_count_of_missing_anew() -> None:
    _, data = run(MISSING, MISSING, Page(("a",), "10"), MISSING, MISSING, MISSING, state=watching("a"))
    assert data == [None, None, Replace(("a",)), None, None, None]


def test_a_token_that_expires_twice_makes_the_list_come_in_one_piece() -> None:
    state, _ = run(Page(("a",), "1", "t"), EXPIRED, Page(("a",), "2", "t"), EXPIRED)
    assert isinstance(state.action, Sleep)
    assert state.action.then == List(limit=0)


def test_an_input_that_does_not_belong_to_the_action_is_an_error() -> None:
    with pytest.raises(ValueError, match="Event while List"):
        advance(State(), Event("1", "x"), 0.5)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_waits_are_jittered_and_bounded(failures: int, draw: float) -> None:
    wait = wait_of(failures, draw)
    assert FIRST_WAIT / 2 <= wait <= LONGEST_WAIT * 1.5
    assert wait_of(failures, 0.0) <= wait <= 3 * wait_of(failures, 0.0)


def test_a_server_that_says_when_is_asked_then_and_not_ever_later() -> None:
    busy = Failure(Trouble.FAILED, retry_after=2.0)
    state, _ = run(*[busy] * 20)
    assert state.action == Sleep(3.0, List())
    state, _ = run(busy, state=watching())
    assert isinstance(state.action, Sleep)
    assert state.action.seconds == 3.0


inputs = st.one_of(
    st.builds(
        Page, st.lists(st.text(max_size=2), max_size=3).map(tuple), st.just("1"), st.sampled_from(["", "t"])
    ),
    st.builds(Event, st.just("2"), st.sampled_from(["x", None])),
    st.builds(Ended, st.booleans()),
    st.builds(Failure, st.sampled_from(list(Trouble)), st.sampled_from([0.0, 5.0])),
)


@given(st.lists(inputs, max_size=60))
def test_whatever_comes_there_is_a_next_action_and_no_change_before_a_list(history: list[Input[str]]) -> None:
    state: State[str] = State()
    listed = False
    for one in history:
        if isinstance(state.action, Sleep):
            assert 0 < state.action.seconds <= LONGEST_WAIT * 1.5
            state, data = advance(state, Woke(), 0.3)
            assert data is None
        fits = {List: (Page, Failure), Watch: (Event, Ended, Failure)}[type(state.action)]  # type: ignore[index]
        if not isinstance(one, fits):
            continue
        state, data = advance(state, one, 0.7)
        listed |= isinstance(data, Replace)
        assert listed or data is None
        if isinstance(state.action, Watch):
            assert state.pages == ()
