"""The engine under test in a process of its own, with scripted decisions instead of policy.

A crash of the engine then fails one test instead of the run, and its memory, descriptors and CPU time can
be read cleanly from /proc. The parent talks to it over a socketpair (`EngineHost`); the child's single
thread waits for events and orders (`_serve`).
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tests.support import leakcheck, sanitized
from tests.support.pki import Credential
from tests.support.ports import address, listening_socket

Address = tuple[str, int]
E = TypeVar("E")

SMALL_DEADLINES: dict[str, Any] = {
    "workers": 1,
    "max_sessions": 64,  # as in the agent
    "handshake_timeout": 1.0,
    "preface_timeout": 1.0,
    "settings_timeout": 1.0,
    "connect_timeout": 2.0,
    "decision_timeout": 2.0,
    "response_timeout": 2.0,
    "half_close_timeout": 3.0,
    "stall_timeout": 1.5,
    "close_linger": 0.5,
}


# -- what to answer an event with


@dataclass(frozen=True, slots=True)
class Deliver:
    """Plain TCP; to the CONNECT's authority when no destination is given."""

    destination: Address | None = None


@dataclass(frozen=True, slots=True)
class TunnelTo:
    """An HBONE tunnel."""

    destination: Address
    sans: tuple[str, ...]
    identity: int = 1
    authority: str = "10.0.0.1:80"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Deny:
    """Refuse with this reason and status."""

    reason: str = "policy_denied"
    status: int = 401


@dataclass(frozen=True, slots=True)
class Hold:
    """Never answer."""


Rule = Deliver | TunnelTo | Deny | Hold


@dataclass(frozen=True, slots=True)
class Tagged:
    """An event and the tag of the listener it belongs to (-1 when the engine did not say)."""

    tag: int
    event: Any

    @property
    def kind(self) -> str:
        """The event's class name."""
        return type(self.event).__name__


class EngineDied(AssertionError):
    """The process with the engine is gone."""


class EngineHost:
    """The parent's handle of one engine process."""

    def __init__(self, *, extension: str = "", **config: Any) -> None:
        """`extension`: another build of `hbone._engine`."""
        self.config = config
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.enginehost", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=sanitized.environment(extension),
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self.call("start", config)
        self.reasons: tuple[str, ...] = self.call("reasons")
        self._events: list[Tagged] = []

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Still running."""
        return self._process.poll() is None

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Have the child do something; its exceptions are raised here."""
        try:
            self._connection.send((name, arguments, named))
            if not self._connection.poll(30):
                raise EngineDied("the engine process hangs")
            ok, answer = self._connection.recv()
        except (EOFError, OSError):
            status = self._process.wait(60)
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            raise EngineDied(f"the engine process ended: {how}") from None
        if not ok:
            raise answer
        return answer

    def engine(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of `hbone.engine.Engine`."""
        return self.call("engine", method, *arguments, **named)

    def identity(
        self, number: int, credential: Credential, domains: Sequence[str] = ("cluster.local",)
    ) -> None:
        """`Engine.set_identity`."""
        pems = (credential.chain_pem, credential.key_pem, credential.roots_pem)
        self.engine("set_identity", number, *pems, list(domains))

    def listen(
        self,
        kind: str,
        tag: int,
        rule: Rule,
        *,
        identity: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> Address:
        """A listener of kind OUTBOUND, INBOUND or HBONE on a port (0: a free one); its address."""
        found: Address = self.call("listen", kind, tag, rule, identity, host, port)
        return found

    def rule(self, tag: int, rule: Rule) -> None:
        """Decide differently from now on."""
        self.call("rule", tag, rule)

    def stats(self) -> dict[str, int]:
        """`Engine.stats()`."""
        found: dict[str, int] = self.engine("stats")
        return found

    def events(self) -> list[Tagged]:
        """All events so far, oldest first."""
        self._events += self.call("events")
        return self._events

    def wait(
        self,
        kind: type[E],
        where: Callable[[E], bool] = lambda _: True,
        *,
        tag: int | None = None,
        since: int = 0,
        timeout: float = 30.0,
    ) -> E:
        """The first event of this kind after position `since`."""
        deadline = time.monotonic() + timeout
        while True:
            for got in self.events()[since:]:
                if isinstance(got.event, kind) and tag in (None, got.tag) and where(got.event):
                    return got.event
            if time.monotonic() > deadline:
                tail = [g.event for g in self.events()[since:]][-8:]
                raise AssertionError(f"no such {kind.__name__} within {timeout:g} s; last events {tail}")
            time.sleep(0.005)

    def slug(self, code: int) -> str:
        """A reason code's slug."""
        return self.reasons[code]

    def endings(self, tag: int, since: int = 0) -> Counter[str]:
        """How often each reason ended a flow or a tunnel of this tag."""
        found: Counter[str] = Counter()
        for got in self.events()[since:]:
            if got.tag == tag and got.kind in ("Closed", "TunnelFailed"):
                found[self.slug(got.event.reason_code)] += 1
        return found

    def tunnel_failures(self, tag: int, since: int = 0) -> list[str]:
        """Slugs of `TunnelFailed` events of this tag."""
        mine = [g.event for g in self.events()[since:] if g.tag == tag and g.kind == "TunnelFailed"]
        return [self.slug(e.reason_code) for e in mine]

    def rss(self) -> int:
        """Resident bytes of the process."""
        return leakcheck.rss(self.pid)

    def cpu(self) -> float:
        """CPU seconds of the process."""
        return leakcheck.cpu_seconds(self.pid)

    def holdings(self) -> leakcheck.Holdings:
        """Descriptors, threads, memory."""
        return leakcheck.holdings(self.pid)

    def close(self) -> None:
        """Stop the engine and the process; a hang or a crash at the end is an error as well."""
        try:
            if self.alive:
                self.call("stop")
            status = self._process.wait(60)
        except BaseException:
            self.kill()
            raise
        finally:
            self._connection.close()
        assert status == 0, f"the engine process ended with status {status}"

    def kill(self) -> None:
        """End the process without asking."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._connection.close()


# -- the child


class _Child:
    def __init__(self, connection: Connection) -> None:
        sanitized.load()
        from hbone import engine

        self.module = engine
        self.connection = connection
        self.core: Any = None
        self.rules: dict[int, Rule] = {}
        self.tags: dict[int, int] = {}
        self.seen: list[Tagged] = []
        self.running = True
        self.napping = 0.0

    # orders

    def start(self, config: dict[str, Any]) -> None:
        self.core = self.module.Engine(replace(self.module.EngineConfig(), **config))

    def reasons(self) -> tuple[str, ...]:
        return self.module.REASONS

    def engine(self, method: str, *arguments: Any, **named: Any) -> Any:
        answer = getattr(self.core, method)(*arguments, **named)
        self.core.flush()
        return answer

    def listen(self, kind: str, tag: int, rule: Rule, identity: int, host: str, port: int) -> Address:
        self.rules[tag] = rule
        with listening_socket(host, port, backlog=4096) as sock:
            self.core.listen(sock.fileno(), self.module.ListenerKind[kind], 0, tag, identity)
            return address(sock)

    def rule(self, tag: int, rule: Rule) -> None:
        self.rules[tag] = rule

    def nap(self, seconds: float) -> None:
        """Having answered this, take no events for so long: an owner that is busy elsewhere."""
        self.napping = seconds

    def events(self) -> list[Tagged]:
        """Those since the last call; they are not kept here, where memory is measured."""
        self.take()
        found, self.seen = self.seen, []
        return found

    def stop(self) -> None:
        self.core.stop()
        self.take()
        self.core = None
        gc.collect()
        self.running = False
        if sanitized.leaks():
            raise AssertionError("the engine leaks; the report is above")

    # events

    def take(self) -> None:
        events = self.core.take()
        for event in events:
            tag = self.tag_of(event)
            self.seen.append(Tagged(tag, event))
            if type(event).__name__ in ("Accepted", "ConnectRequested"):
                try:
                    self.decide(tag, event)
                except ValueError:  # what was asked for cannot be done
                    self.core.refuse(event.token, self.module.reason_code("internal"), 503)
        if events:
            self.core.flush()

    def tag_of(self, event: Any) -> int:
        tag = getattr(event, "tag", None)
        token = getattr(event, "token", 0)
        if tag is not None:
            if token:
                self.tags[token] = tag
            return int(tag)
        if type(event).__name__ == "Closed":
            return self.tags.pop(token, -1)
        return self.tags.get(token, -1)

    def decide(self, tag: int, event: Any) -> None:
        rule = self.rules.get(tag, Deny("internal", 503))
        if isinstance(rule, Deliver):
            self.core.connect_plain(event.token, rule.destination or _split(event.authority), netns=0)
        elif isinstance(rule, TunnelTo):
            self.core.connect_tunnel(
                event.token,
                rule.destination,
                netns=0,
                identity=rule.identity,
                sans=rule.sans,
                authority=rule.authority,
                headers=rule.headers,
            )
        elif isinstance(rule, Deny):
            self.core.refuse(event.token, self.module.reason_code(rule.reason), rule.status)

    def serve(self) -> None:
        while self.running:
            waiting = [self.connection.fileno()] + ([self.core.event_fd] if self.core else [])
            ready, _, _ = select.select(waiting, [], [])
            if self.core and self.core.event_fd in ready:
                self.take()
            if self.connection.fileno() in ready:
                try:
                    name, arguments, named = self.connection.recv()
                except EOFError:  # the parent died
                    return
                try:
                    answer = (True, getattr(self, name)(*arguments, **named))
                except Exception as problem:  # the parent raises it
                    answer = (False, problem)
                self.connection.send(answer)
                time.sleep(self.napping)
                self.napping = 0.0


def _split(authority: str) -> Address:
    host, _, port = authority.rpartition(":")
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    from tests.support.enginehost import _Child as Child  # not __main__'s: values cross by pickle

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Child(Connection(int(sys.argv[1]))).serve()
    os._exit(0)
