"""From one root to the next without a failed handshake: what is to be done when. Pure.

A new root is first only handed out, with every certificate and beside the one in use, until everybody who has a
certificate has had to fetch another. Then it signs, and the old one stays trusted until nothing that it signed can
be valid any more. Besides, while both are trusted, what the new root signs goes with the new root signed by the
old one: who has missed the news can still follow the chain to the root he knows.
"""

import datetime
import enum
from dataclasses import dataclass

from istiodlite.ca.issue import DEFAULT_LIFETIME, MAX_LIFETIME

_HOUR = datetime.timedelta(hours=1)


class Step(enum.StrEnum):
    """What can be done next. INTRODUCE: make a new root. ACTIVATE: sign with it. RETIRE: forget the old one."""

    INTRODUCE = "introduce"
    ACTIVATE = "activate"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True)
class Times:
    """`begin_share`: with less than this share of its life left, a root is replaced. `distribute`: a certificate's
    usual life, after which everybody has the new root. `retire`: from then, the longest life there is."""

    begin_share: float = 0.2
    distribute: datetime.timedelta = DEFAULT_LIFETIME + _HOUR
    retire: datetime.timedelta = MAX_LIFETIME + _HOUR


@dataclass(frozen=True, slots=True)
class Span:
    """Validity of a root; it was made at its beginning."""

    begin: datetime.datetime
    end: datetime.datetime


@dataclass(frozen=True, slots=True)
class Roots:
    """`next` is handed out and does not sign yet; `old`: there are roots that only others' certificates need."""

    current: Span
    next: Span | None = None
    old: bool = False


def next_step(roots: Roots) -> Step:
    """Which step follows, whenever it is due."""
    if roots.next is not None:
        return Step.ACTIVATE
    return Step.RETIRE if roots.old else Step.INTRODUCE


def due_at(roots: Roots, times: Times = Times()) -> datetime.datetime:
    """When the next step is due."""
    current = roots.current
    if roots.next is not None:
        # What the old root signs ends with it, so its last day is no time to wait.
        return min(roots.next.begin + times.distribute, current.end - times.distribute)
    if roots.old:
        return current.begin + times.distribute + times.retire
    return current.end - (current.end - current.begin) * times.begin_share
