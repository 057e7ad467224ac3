"""Follows one kind: does what the reflector says and tells what came of it."""

import json
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Generic

import trio

from istiodlite.kube.client import ApiError, KubeClient, error_of
from istiodlite.kube.collection import Collection
from istiodlite.kube.health import Health
from istiodlite.kube.key import ObjectKey
from istiodlite.kube.kinds import WatchedKind
from istiodlite.kube.reading import Garbled, Reading, T, key_of, version_of
from istiodlite.kube.reflector import (
    Action,
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
)

# The server ends a watch itself; this is for one that forgot to.
_OVERTIME = 30.0
_FRUITLESS = 1.0

Read = Callable[[WatchedKind, Any], Reading[T]]
Tell = Callable[[dict[ObjectKey, T | None]], None]


class Watcher(Generic[T]):
    """`read` makes objects of bodies; `tell` hears of changes, and of the first whole list (maybe empty)."""

    def __init__(
        self,
        client: KubeClient,
        kind: WatchedKind,
        read: Read[T],
        tell: Tell[T],
        *,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
        log: logging.Logger = logging.getLogger("istiodlite.kube"),  # noqa: B008 - the same object for ever
    ) -> None:
        self.kind = kind
        self.collection: Collection[T] = Collection()
        self.health = Health(kind.resource, clock())
        self._client, self._read, self._tell = client, read, tell
        self._draw, self._clock, self._log = draw, clock, log
        self._version = kind.versions[0]

    async def run(self) -> None:
        """Endless; cancel to stop."""
        state: State[Reading[T]] = State()
        while True:
            action = state.action
            async with aclosing(self._do(action)) as inputs:
                async for event in inputs:
                    state, data = advance(state, event, self._draw())
                    self._note(event, data)
                    self._take(data)
                    if not (isinstance(action, Watch) and isinstance(event, Event)):
                        break

    async def _do(self, action: Action) -> AsyncGenerator[Input[Reading[T]]]:
        """What comes of an action: events of a watch first, and last (or only) what ended it."""
        if isinstance(action, Sleep):
            await trio.sleep(action.seconds)
            yield Woke()
            return
        try:
            if isinstance(action, List):
                yield await self._list(action)
            else:
                async with aclosing(self._watch(action)) as inputs:
                    async for event in inputs:
                        yield event
        except ApiError as error:
            gone = isinstance(action, Watch) and error.code == 404
            yield Failure(Trouble.MISSING) if gone else self._failure(error)
        except Garbled as error:
            self._problem(f"{self.kind.resource}: the server sent {error}; listing anew")
            yield Failure(Trouble.GARBLED)

    async def _list(self, action: List) -> Page[Reading[T]] | Failure:
        """A page, or the certainty that there is no such kind. Raises ApiError, Garbled."""
        if action.token:
            return await self._page(await self._client.get(self._path(), self._parameters(action)))
        self.health.lists += 1
        try:
            return await self._page(await self._first_page(action))
        except ApiError as error:
            if error.code != 404 or not self.kind.optional:
                raise
            if not self.health.absent:
                # A server that is loading its CRDs says 404 too. Only what it says once it is ready counts.
                if not await self._client.ready():
                    raise
                with _passing_404():
                    return await self._page(await self._first_page(action))
        return Failure(Trouble.MISSING)

    async def _first_page(self, action: List) -> Any:
        """In the first of the kind's versions that the server has, the one used before first."""
        for version in (self._version, *(one for one in self.kind.versions if one != self._version)):
            with _passing_404():
                body = await self._client.get(self.kind.path(version), self._parameters(action))
                self._version = version
                return body
        raise ApiError(404, "NotFound", "the server has no such resource")

    def _path(self) -> str:
        return self.kind.path(self._version)

    def _parameters(self, action: List | Watch) -> dict[str, str]:
        out = {"fieldSelector": self.kind.selector} if self.kind.selector else {}
        if isinstance(action, Watch):
            out |= {"watch": "true", "allowWatchBookmarks": "true"}
            out |= {"resourceVersion": action.version, "timeoutSeconds": str(action.seconds)}
            return out
        # No resourceVersion: the newest state, never one from before what was seen already.
        if action.limit:
            out["limit"] = str(action.limit)
        if action.token:
            out["continue"] = action.token
        return out

    async def _page(self, body: Any) -> Page[Reading[T]]:
        # A page of 500 pods takes some 100 ms: in a thread, so that status answers and other kinds go on.
        return await trio.to_thread.run_sync(self._read_page, body)

    def _read_page(self, body: Any) -> Page[Reading[T]]:
        version = version_of(body)
        items = body.get("items") or []
        if not isinstance(items, list):
            raise Garbled("a list whose items are none")
        token = body["metadata"].get("continue") or ""
        return Page(tuple(self._read(self.kind, item) for item in items), version, str(token))

    async def _watch(self, action: Watch) -> AsyncGenerator[Input[Reading[T]]]:
        """Events, then Ended. Raises ApiError, Garbled."""
        begin, count = self._clock(), 0
        # No cancel scope around a yield: the deadline is set for each wait alone.
        deadline = trio.current_time() + action.seconds + _OVERTIME
        async with self._client.lines(self._path(), self._parameters(action)) as lines:
            if self.health.problem:
                self._log.info("%s: watching again", self.kind.resource)
            self.health.hold(self._clock())
            while True:
                line = None
                with trio.move_on_at(deadline) as scope:
                    line = await anext(lines, None)
                if scope.cancelled_caught:
                    raise ApiError(0, "Overdue", "the server did not end the watch in time")
                if line is None:
                    break
                if line:
                    yield self._event(line)
                    count += 1
        yield Ended(fruitless=not count and self._clock() - begin < _FRUITLESS)

    def _event(self, line: bytes) -> Event[Reading[T]]:
        try:
            event = json.loads(line)
            kind, body = event["type"], event["object"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Garbled("a watch event that is not one") from None
        if kind == "ERROR":
            raise error_of(body if isinstance(body, dict) else {})
        version = version_of(body)
        if kind in ("ADDED", "MODIFIED"):
            return Event(version, self._read(self.kind, body))
        if kind == "DELETED":
            return Event(version, Reading(key_of(self.kind, body), None))
        if kind == "BOOKMARK":
            return Event(version, None)
        raise Garbled("a watch event of unknown type")

    def _failure(self, error: ApiError) -> Failure:
        if error.code == 410 or error.reason in ("Expired", "Gone"):
            return Failure(Trouble.EXPIRED, error.retry_after)
        if error.reason == "Garbled":
            self._problem(f"{self.kind.resource}: {error}")
            return Failure(Trouble.GARBLED)
        if error.code == 0:
            self._client.renew()
        self._problem(f"{self.kind.resource}: {error}{_advice(error, self.kind)}")
        return Failure(Trouble.FAILED, error.retry_after)

    def _problem(self, text: str) -> None:
        """Logged when it is new, not at each of many tries."""
        self.health.failures += 1
        if text != self.health.problem:
            # A watch that breaks once is everyday life; a second try that fails too is not.
            self._log.log(logging.INFO if self.health.current else logging.WARNING, "%s", text)
        self.health.problem = text

    def _note(self, event: Input[Reading[T]], data: Data[Reading[T]]) -> None:
        health, now = self.health, self._clock()
        if isinstance(event, Failure) and event.trouble is Trouble.MISSING:
            if isinstance(data, Replace):
                if not health.absent:
                    self._log.info("%s: not installed; asking again from time to time", self.kind.resource)
                health.absent = True
                health.hold(now)
                return
            held = len(self.collection.objects)
            self._problem(
                f"{self.kind.resource}: said not to be installed; keeping {held} objects until sure"
            )
        elif isinstance(event, Page):
            if health.absent:
                self._log.info("%s: installed", self.kind.resource)
            health.absent = False
            # Between a list and its watch nothing is missed: the watch begins at the list's version.
            health.last_current = now
        if isinstance(event, (Failure, Ended)):
            health.lose(now)

    def _take(self, data: Data[Reading[T]]) -> None:
        if data is None:
            return
        errors = dict(self.collection.errors)
        first = False
        if isinstance(data, Replace):
            first, self.health.synced = not self.health.synced, True
            changes = self.collection.replace(data.items)
        else:
            changes = self.collection.change(data.item)
        if first or changes or errors != self.collection.errors:
            self._tell(changes)


@contextmanager
def _passing_404() -> Iterator[None]:
    """Passes over "no such resource" and nothing else."""
    try:
        yield
    except ApiError as error:
        if error.code != 404:
            raise


def _advice(error: ApiError, kind: WatchedKind) -> str:
    if error.code == 403:
        return f"; grant list and watch on {kind.resource} (daemonset/kubernetes has the role)"
    if error.code == 401:
        return "; the credentials are not accepted: renew them"
    if error.code == 404:
        return f"; {kind.resource} cannot be had from this server"
    return ""
