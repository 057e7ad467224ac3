"""Holds one certificate for each identity of this node and keeps it fresh.

Requests have a priority: a connection that waits goes before the warm-up of a new pod, which goes before
renewals. At most CONCURRENCY requests are under way; an identity has at most one. While renewal fails the
last valid certificate stays in use; at its expiry the identity becomes unavailable until a request succeeds.
"""

from __future__ import annotations

import enum
import heapq
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import trio

from hbone.spiffe import SpiffeId
from hbone.svid import Svid
from ztunnel.backoff import Backoff
from ztunnel.identity import renewal
from ztunnel.logs import fields

__all__ = ["Authority", "CertificateRefused", "Held", "IdentityManager", "IdentityUnavailable", "Priority"]

_log = logging.getLogger("ztunnel.ca")

CONCURRENCY = 8

# A rolling restart takes the last pod of an identity away and brings the next one seconds later.
LINGER = 60.0


class CertificateRefused(Exception):
    """The CA did not give a certificate; the text says why."""


class IdentityUnavailable(Exception):
    """There is no valid certificate and none came in time; the text is the last failure."""


class Authority(Protocol):
    """Where certificates come from."""

    async def issue(self, identity: SpiffeId) -> Svid:
        """Get a certificate; raises CertificateRefused."""


class Sink(Protocol):
    """Who uses certificates (the engine's face): numbers name identities."""

    def set_identity(self, number: int, svid: Svid) -> None:
        """Use this certificate from now on."""

    def drop_identity(self, number: int) -> None:
        """There is no valid certificate any more."""


class Priority(enum.IntEnum):
    """Who goes first; lower is sooner."""

    REAL_TIME = 0
    WARM_UP = 1
    BACKGROUND = 2


@dataclass(slots=True)
class Held:
    """What is known of one identity.

    `due`: when to ask for a certificate next. `forget`: nobody has the identity; when to give it up.
    `expired`: there was a certificate, and it ran out before another came.
    """

    identity: SpiffeId
    number: int
    svid: Svid | None = None
    error: str = ""
    priority: Priority | None = None
    running: bool = False
    expired: bool = False
    due: datetime | None = None
    forget: datetime | None = None
    backoff: Backoff = field(default_factory=renewal.retry)
    changed: trio.Event = field(default_factory=trio.Event)

    @property
    def state(self) -> str:
        """As config_dump names it."""
        if self.svid is not None:
            return "Available"
        return f"Unavailable: {self.error}" if self.error else "Initializing"


class IdentityManager:
    """The certificates of this node. run() does the work; everything else is called from the same thread."""

    def __init__(
        self,
        authority: Authority,
        sink: Sink,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._authority, self._sink, self._now, self._draw = authority, sink, now, draw
        self._held: dict[SpiffeId, Held] = {}
        self._numbers = 0
        self._owners: dict[str, SpiffeId] = {}
        self._holds: Counter[SpiffeId] = Counter()
        self._queue: list[tuple[int, int, SpiffeId]] = []
        self._times: list[tuple[datetime, int, SpiffeId]] = []
        self._order = 0
        self._work = trio.Semaphore(0)
        self._timer = trio.Event()
        self.issued = 0
        self.failed = 0

    # What others ask

    def held(self) -> Iterator[Held]:
        """Every identity, for config_dump and metrics."""
        return iter(self._held.values())

    @property
    def expired(self) -> list[SpiffeId]:
        """Identities whose certificate ran out before another came."""
        return [held.identity for held in self._held.values() if held.expired]

    def number(self, identity: SpiffeId) -> int:
        """The engine's number of this identity; given once, never used again for another."""
        return self._entry(identity).number

    def ready(self, identity: SpiffeId) -> bool:
        """True when a valid certificate is in the engine."""
        held = self._held.get(identity)
        return held is not None and held.svid is not None

    def hold(self, owner: str, identity: SpiffeId) -> int:
        """`owner` (a pod of this node) has this identity from now on; returns its number at once."""
        if self._owners.get(owner) != identity:
            self.release(owner)
            self._owners[owner] = identity
            self._holds[identity] += 1
        held = self._entry(identity)
        held.forget = None
        if held.svid is None and not held.running and held.due is None:
            self._enqueue(held, Priority.WARM_UP)
        return held.number

    def release(self, owner: str) -> None:
        """`owner` is gone. An identity without owners is forgotten unless one comes within LINGER."""
        identity = self._owners.pop(owner, None)
        if identity is None:
            return
        self._holds[identity] -= 1
        held = self._held.get(identity)
        if self._holds[identity] <= 0 and held is not None:
            del self._holds[identity]
            held.forget = renewal.next_attempt(self._now(), LINGER, None)
            self._wake_at(held, held.forget)

    async def fetch(self, identity: SpiffeId, timeout: float) -> int:
        """Wait for a valid certificate, ahead of everything else; raises IdentityUnavailable."""
        held = self._entry(identity)
        if held.svid is None and not held.running:
            self._enqueue(held, Priority.REAL_TIME)
        if not await self.arrival(identity, timeout):
            raise IdentityUnavailable(held.error or f"no certificate within {timeout:g} s")
        return held.number

    async def arrival(self, identity: SpiffeId, timeout: float) -> bool:
        """Wait for a valid certificate that has been asked for; whether there is one."""
        held = self._entry(identity)
        with trio.move_on_after(timeout):
            while held.svid is None:
                await held.changed.wait()
        return held.svid is not None

    # The work

    async def run(self) -> None:
        """Fetch and renew until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(CONCURRENCY):
                nursery.start_soon(self._worker)
            nursery.start_soon(self._clock)

    def _entry(self, identity: SpiffeId) -> Held:
        held = self._held.get(identity)
        if held is None:
            self._numbers += 1
            held = self._held[identity] = Held(identity, self._numbers)
        return held

    def _enqueue(self, held: Held, priority: Priority) -> None:
        if held.running or (held.priority is not None and held.priority <= priority):
            return
        # A second entry for the same identity is harmless: the worker that finds it not queued skips it.
        held.priority, held.due = priority, None
        self._order += 1
        heapq.heappush(self._queue, (priority, self._order, held.identity))
        self._work.release()

    async def _worker(self) -> None:
        while True:
            await self._work.acquire()
            _, _, identity = heapq.heappop(self._queue)
            held = self._held.get(identity)
            if held is not None and held.priority is not None and not held.running:
                await self._issue(held)

    async def _issue(self, held: Held) -> None:
        held.running, held.priority = True, None
        try:
            svid = await self._authority.issue(held.identity)
        except CertificateRefused as error:
            self._refused(held, str(error))
        except Exception as error:
            # Whatever a CA answers, the certificates of other pods must go on being renewed.
            _log.exception("a certificate request failed unexpectedly")
            self._refused(held, repr(error))
        else:
            self._accepted(held, svid)
        finally:
            held.running = False

    def _accepted(self, held: Held, svid: Svid) -> None:
        if self._held.get(held.identity) is not held:
            return
        try:
            self._sink.set_identity(held.number, svid)
        except ValueError as error:
            self._refused(held, str(error))
            return
        self.issued += 1
        held.svid, held.error, held.expired = svid, "", False
        held.backoff.reset()
        self._wake(held)
        at = renewal.renew_at(str(held.identity), svid.not_before, svid.not_after)
        self._schedule_at(held, at)
        _log.info(
            "certificate issued", extra=fields(identity=held.identity, until=svid.not_after.isoformat())
        )

    def _refused(self, held: Held, error: str) -> None:
        self.failed += 1
        held.error = error
        now = self._now()
        if held.svid is not None and held.svid.not_after <= now:
            self._expire(held)
        delay = held.backoff.next(self._draw())
        until = held.svid.not_after if held.svid is not None else None
        self._schedule_at(held, renewal.next_attempt(now, delay, until))
        level = logging.WARNING if held.backoff.failures > 2 else logging.INFO
        _log.log(
            level, "no certificate", extra=fields(identity=held.identity, error=error, retry=f"{delay:.1f}s")
        )

    def _expire(self, held: Held) -> None:
        held.svid, held.expired = None, True
        self._sink.drop_identity(held.number)
        self._wake(held)

    def _wake(self, held: Held) -> None:
        held.changed.set()
        held.changed = trio.Event()

    # Time

    def _schedule_at(self, held: Held, at: datetime) -> None:
        held.due = at
        self._wake_at(held, at)

    def _wake_at(self, held: Held, at: datetime) -> None:
        """Look at it then. What it is looked at for may have changed by that time."""
        self._order += 1
        heapq.heappush(self._times, (at, self._order, held.identity))
        first, order, _ = self._times[0]
        if order == self._order or first <= self._now():  # due already: the wall clock has jumped
            self._timer.set()

    async def _clock(self) -> None:
        """Sleep until the earliest time. Wall-clock jumps are seen within a minute."""
        while True:
            self._timer = trio.Event()
            now = self._now()
            while self._times and self._times[0][0] <= now:
                self._look(self._held.get(heapq.heappop(self._times)[2]), now)
            wait = (self._times[0][0] - self._now()).total_seconds() if self._times else 60.0
            with trio.move_on_after(min(max(wait, 0.001), 60.0)):
                await self._timer.wait()

    def _look(self, held: Held | None, now: datetime) -> None:
        if held is None:
            return
        if held.forget is not None and held.forget <= now:
            self._give_up(held)
        elif held.due is not None and held.due <= now:
            self._due(held, now)

    def _give_up(self, held: Held) -> None:
        del self._held[held.identity]
        if held.svid is not None:
            self._sink.drop_identity(held.number)

    def _due(self, held: Held, now: datetime) -> None:
        held.due = None
        if held.svid is not None and held.svid.not_after <= now:
            self._expire(held)
        self._enqueue(held, Priority.BACKGROUND if held.svid is not None else Priority.WARM_UP)
