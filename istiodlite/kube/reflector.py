"""Keeping a copy of one kind: when to list, watch and wait. Pure; one step a function of state and input.

A list is read to its last page before any of it counts. A watch goes on from the last version seen, also
after the connection broke; only when the server has forgotten that version (410) is everything listed anew.
"""

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Generic, TypeVar

T = TypeVar("T")

PAGE_LIMIT = 500
# Waiting after failures: doubled from the first to the longest, then spread by +-50 %.
FIRST_WAIT = 0.5
LONGEST_WAIT = 10.0
# A kind that the server does not know is asked for again about this often.
MISSING_WAIT = 10.0
# A kind that was there is believed to be gone after this many answers, as policies must not vanish because a
# restarting server has not loaded its CRDs yet. (Deleting a CRD deletes its objects one by one before.)
MISSING_BELIEVED = 3
# Seconds after which the server is asked to end a watch, spread so that kinds do not come back together.
WATCH_SECONDS = (240, 480)


class Trouble(Enum):
    """What went wrong, as far as it decides what to do next."""

    EXPIRED = auto()
    """The version or the continue token is too old (410)."""
    MISSING = auto()
    """The server is up and has no such kind (404)."""
    GARBLED = auto()
    """What came cannot be read, so what was meant by it may be missed."""
    FAILED = auto()
    """Anything that may pass: unreachable, refused, overloaded."""


@dataclass(frozen=True, slots=True)
class List:
    """To do: ask for a page. `limit` 0: everything at once."""

    token: str = ""
    limit: int = PAGE_LIMIT


@dataclass(frozen=True, slots=True)
class Watch:
    """To do: follow changes after `version`, for at most `seconds`."""

    version: str
    seconds: int


@dataclass(frozen=True, slots=True)
class Sleep:
    """To do: wait, then say `Woke`."""

    seconds: float
    then: List | Watch


Action = List | Watch | Sleep


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Input: a page; `token` names the next one, empty after the last."""

    items: tuple[T, ...]
    version: str
    token: str = ""


@dataclass(frozen=True, slots=True)
class Event(Generic[T]):
    """Input: a watch event. `item` None: a bookmark, which only moves the version."""

    version: str
    item: T | None


@dataclass(frozen=True, slots=True)
class Ended:
    """Input: the server ended the watch in good order. `fruitless`: at once and without an event."""

    fruitless: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Input: list or watch failed. `retry_after` (seconds) is the server's wish."""

    trouble: Trouble
    retry_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Woke:
    """Input: the wait is over."""


Input = Page[T] | Event[T] | Ended | Failure | Woke


@dataclass(frozen=True, slots=True)
class State(Generic[T]):
    """`pages` of an unfinished list; `failures` since the last sign that all is well; `expiries` of
    continue tokens in a row; `missing` answers in a row; `listed`: there was a whole list."""

    action: Action = List()
    pages: tuple[tuple[T, ...], ...] = ()
    failures: int = 0
    expiries: int = 0
    missing: int = 0
    listed: bool = False


@dataclass(frozen=True, slots=True)
class Replace(Generic[T]):
    """Data: these are all there are."""

    items: tuple[T, ...]


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """Data: one object was added, changed or removed (the item says which)."""

    item: T


Data = Replace[T] | Change[T] | None


def wait_of(failures: int, draw: float) -> float:
    """Seconds before the next try after `failures` (from 1) in a row. `draw` is from [0, 1)."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(failures - 1, 16)) * (0.5 + draw)


def watch_seconds(draw: float) -> int:
    low, high = WATCH_SECONDS
    return int(low + (high - low) * draw)


def advance(state: State[T], event: Input[T], draw: float) -> tuple[State[T], Data[T]]:
    """The next state, whose `action` is to do, and what became known. `draw` is from [0, 1).

    Inputs that do not belong to the action under way raise ValueError: the shell is wrong.
    """
    action = state.action
    if isinstance(event, Woke) and isinstance(action, Sleep):
        return replace(state, action=action.then), None
    if isinstance(event, Page) and isinstance(action, List):
        return _on_page(state, event, action, draw)
    if isinstance(event, Event) and isinstance(action, Watch):
        following = replace(action, version=event.version)
        moved = replace(state, action=following, failures=0, expiries=0)
        return moved, None if event.item is None else Change(event.item)
    if isinstance(event, Ended) and isinstance(action, Watch):
        again = replace(action, seconds=watch_seconds(draw))
        if event.fruitless:
            return _after_wait(state, again, draw), None
        return replace(state, action=again, failures=0), None
    if isinstance(event, Failure) and isinstance(action, List):
        return _on_list_failure(state, event, action, draw)
    if isinstance(event, Failure) and isinstance(action, Watch):
        return _on_watch_failure(state, event, action, draw), None
    raise ValueError(f"{type(event).__name__} while {type(action).__name__}")


def _after_wait(state: State[T], then: List | Watch, draw: float, retry_after: float = 0.0) -> State[T]:
    pages = state.pages if isinstance(then, List) and then.token else ()
    if retry_after:
        # The server is up and says when: waiting longer and longer would only make the copy older.
        return replace(state, action=Sleep(retry_after * (1.0 + draw), then), pages=pages)
    failures = state.failures + 1
    return replace(state, action=Sleep(wait_of(failures, draw), then), failures=failures, pages=pages)


def _on_page(state: State[T], page: Page[T], asked: List, draw: float) -> tuple[State[T], Data[T]]:
    pages = (*state.pages, page.items)
    if page.token:
        return replace(state, action=List(page.token, asked.limit), pages=pages, missing=0), None
    items = tuple(item for one in pages for item in one)
    # `failures` stays: a server whose lists succeed and whose watches fail is still to be spared.
    following = Watch(page.version, watch_seconds(draw))
    return replace(state, action=following, pages=(), missing=0, listed=True), Replace(items)


def _on_list_failure(state: State[T], failure: Failure, asked: List, draw: float) -> tuple[State[T], Data[T]]:
    if failure.trouble is Trouble.EXPIRED:
        # The list takes longer than the server keeps a version: the second time, take it in one piece.
        expiries = state.expiries + 1
        anew = List(limit=0 if expiries > 1 else PAGE_LIMIT)
        return _after_wait(replace(state, expiries=expiries), anew, draw, failure.retry_after), None
    if failure.trouble is Trouble.MISSING:
        missing = state.missing + 1
        waiting = replace(state, missing=missing, expiries=0, pages=(), action=Sleep(_missing(draw), List()))
        if state.listed and missing < MISSING_BELIEVED:
            return waiting, None
        return replace(waiting, listed=False, failures=0), Replace(())
    # The same page again, while its token lives.
    again = asked if failure.trouble is Trouble.FAILED else List(limit=asked.limit)
    return _after_wait(state, again, draw, failure.retry_after), None


def _missing(draw: float) -> float:
    return MISSING_WAIT * (0.5 + draw)


def _on_watch_failure(state: State[T], failure: Failure, following: Watch, draw: float) -> State[T]:
    if failure.trouble is Trouble.FAILED:
        again = replace(following, seconds=watch_seconds(draw))
        return _after_wait(state, again, draw, failure.retry_after)
    if failure.trouble is Trouble.EXPIRED and not state.failures:
        # Ordinary: the server compacts its history. The list comes at once, only the next trouble waits.
        return replace(state, action=List(), failures=1, pages=())
    return _after_wait(state, List(), draw, failure.retry_after)
