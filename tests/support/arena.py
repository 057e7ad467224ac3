"""Where attacks take place: one engine with a listener to attack, and a canary that must not notice.

`Arenas` keeps engines alive between tests (one for each configuration); `Arenas.enter` surrounds one attack
with the checks that hold for every attack: the process lives, the canary is served in time, tunnels,
flows and descriptors are gone afterwards, memory is back.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.support import sanitized
from tests.support.canary import ECHO_LIMIT, Canary
from tests.support.enginehost import SMALL_DEADLINES, Address, Deliver, EngineHost, Rule, TunnelTo
from tests.support.leakcheck import Holdings
from tests.support.peer import Peer
from tests.support.pki import Authority, Credential, spiffe
from tests.support.ports import address, listening_socket, wait_until

SERVER_ID, CLIENT_ID = 1, 2
CANARY_IN, CANARY_OUT = 1, 2
FIRST_TAG = 10
MEMORY_SLACK = 4 << 20
QUIET_FAILURES = 12
SLOW = 1.0  # seconds an echo may take under a sanitizer
GAUGES = ("tunnels_live", "flows_live", "handshakes_live")


@dataclass(slots=True)
class Arena:
    """One attack's surroundings. Tags are fresh for each attack, so events are its own."""

    host: EngineHost
    canary: Canary
    authority: Authority
    server: Credential  # identity SERVER_ID of the engine
    client: Credential  # identity CLIENT_ID of the engine, and the honest peer's
    tag: int
    hbone: Address  # the listener under attack; delivers to the canary's echo server
    mark: int = 0
    stats: dict[str, int] = field(default_factory=dict)  # when the attack began
    _closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def echo(self) -> Address:
        """The canary's echo server."""
        return self.canary.address

    @property
    def echo_authority(self) -> str:
        """The same for `:authority`."""
        return "{}:{}".format(*self.canary.address)

    def dial(self, credential: Credential | None = None, **options: Any) -> Peer:
        """An attacker with TLS done, nothing said yet."""
        peer = Peer.dial(self.hbone, credential or self.client, **options)
        self._closing.callback(peer.close)
        return peer

    def peer(self, **settings: int) -> Peer:
        """An attacker with preface and SETTINGS exchanged."""
        peer = self.dial()
        peer.start({int(k): v for k, v in settings.items()})
        return peer

    def raw(self) -> Peer:
        """An attacker with nothing but a TCP connection."""
        peer = Peer.dial_raw(self.hbone)
        self._closing.callback(peer.close)
        return peer

    def rule(self, rule: Rule) -> None:
        """How CONNECT streams on the listener under attack are decided."""
        self.host.rule(self.tag, rule)

    def endings(self) -> dict[str, int]:
        """Reasons that ended this attack's flows and tunnels, without "ok"."""
        found = self.host.endings(self.tag, self.mark)
        del found["ok"]
        return dict(found)

    def counted(self, name: str) -> int:
        """How far one of the engine's counters has moved in this attack."""
        return self.host.stats()[name] - self.stats[name]

    def settle(self) -> None:
        """Let what has happened so far end, and begin the account anew."""
        wait_until(
            lambda: all(self.host.stats()[name] <= self.stats[name] for name in GAUGES), "a quiet engine"
        )
        self.mark, self.stats = len(self.host.events()), self.host.stats()

    def wait_endings(self, expected: dict[str, int], timeout: float = 30.0) -> None:
        """Until exactly these reasons have been counted."""
        deadline = time.monotonic() + timeout
        while self.endings() != expected:
            assert time.monotonic() < deadline, f"reasons counted {self.endings()}, expected {expected}"
            time.sleep(0.01)

    def ended_by(self, slugs: set[str], timeout: float = 30.0) -> None:
        """Until flows and tunnels have ended for exactly these reasons, each at least once."""
        deadline = time.monotonic() + timeout
        while set(self.endings()) != slugs:
            assert time.monotonic() < deadline, f"reasons counted {self.endings()}, expected {slugs}"
            time.sleep(0.01)

    def ended_once(self) -> None:
        """Until there is a reason; there must be only one."""
        wait_until(lambda: bool(self.endings()), "a reason")
        assert len(self.endings()) == 1, f"more than one reason counted: {self.endings()}"

    def only_failure(self, slug: str, *also: str, timeout: float = 30.0) -> None:
        """The tunnel failed once and for this reason; flows may have ended for it, or for one of `also` before."""
        deadline = time.monotonic() + timeout
        while not (found := self.host.tunnel_failures(self.tag, self.mark)):
            assert time.monotonic() < deadline, f"no TunnelFailed; reasons counted {self.endings()}"
            time.sleep(0.01)
        assert found == [slug], f"tunnel failures {found}, expected one {slug}"
        assert set(self.endings()) <= {slug, *also}, f"more than one reason counted: {self.endings()}"

    @property
    def via(self) -> int:
        """A second tag, for an outbound listener in front of the one under attack."""
        return self.tag + 10_000

    # the engine as client, the test as its server

    def evil_server(self) -> socket.socket:
        """A listener for the engine to dial; answer with `Peer.accept`."""
        sock = listening_socket()
        self._closing.callback(sock.close)
        return sock

    def outbound(self, server: socket.socket | Address, **changes: Any) -> Address:
        """A captured-outbound listener whose connections go to this HBONE server; connect there as the app."""
        target = address(server) if isinstance(server, socket.socket) else server
        options: dict[str, Any] = {"sans": (self.server.uri,), "identity": CLIENT_ID, **changes}
        return self.host.listen("OUTBOUND", self.tag, TunnelTo(target, **options))

    def app(self, target: Address) -> socket.socket:
        """An application's connection."""
        sock = socket.create_connection(target, timeout=30)
        self._closing.callback(sock.close)
        return sock

    def refused(self, target: Address) -> None:
        """An application's connection that is reset, perhaps before `connect` returns."""
        assert_refused(target)

    def accept(self, server: socket.socket, credential: Credential | None = None, **options: Any) -> Peer:
        """Take the engine's dial."""
        peer = Peer.accept(server, credential or self.server, **options)
        self._closing.callback(peer.close)
        return peer


class Arenas:
    """Engines by configuration, and the canary they share."""

    def __init__(self) -> None:
        self.canary = Canary()
        self.authority = Authority.root("arena root")
        self.server = self.authority.leaf(spiffe("server"))
        self.client = self.authority.leaf(spiffe("client"))
        self._hosts: dict[tuple[tuple[str, Any], ...], tuple[EngineHost, Address]] = {}
        self._next_tag = FIRST_TAG
        self._failures: dict[int, list[tuple[float, int]]] = {}  # by process: when, and how many by then

    def host(self, **changes: Any) -> tuple[EngineHost, Address]:
        """A living engine with this configuration, and where its canary's connections go in."""
        config = {**SMALL_DEADLINES, **changes}
        key = tuple(sorted(config.items()))
        found = self._hosts.get(key)
        if found is None or not found[0].alive:
            found = self._hosts[key] = self._start(config)
        return found

    def _start(self, config: dict[str, Any]) -> tuple[EngineHost, Address]:
        host = EngineHost(**config)
        host.identity(SERVER_ID, self.server)
        host.identity(CLIENT_ID, self.client)
        inside = host.listen("HBONE", CANARY_IN, Deliver(self.canary.address), identity=SERVER_ID)
        rule = TunnelTo(inside, (self.server.uri,), identity=CLIENT_ID)
        through = host.listen("OUTBOUND", CANARY_OUT, rule)
        self._warm_up(through)
        return host, through

    def _wait_for_voice(self, host: EngineHost) -> None:
        """The engine reports few tunnel failures a second and only counts the rest: do not let an attack
        be among those because of the ones before it."""
        now, total = time.monotonic(), _told(host)
        seen = self._failures.setdefault(host.pid, [(now - 10, 0)])
        older = [count for when, count in seen if when < now - 1.1]
        if total - max(older, default=0) >= QUIET_FAILURES:
            time.sleep(1.1)
        self._note_failures(host)

    def _note_failures(self, host: EngineHost) -> None:
        now, total = time.monotonic(), _told(host)
        seen = self._failures[host.pid]
        self._failures[host.pid] = [*seen[-200:], (now, total)]

    def _warm_up(self, through: Address) -> None:
        """Let allocators and caches take their pages before anybody measures memory."""
        for _ in range(3):
            with socket.create_connection(through, timeout=30) as sock:
                sock.sendall(b"warm" * 4096)
                left = 4 * 4096
                while left:
                    left -= len(sock.recv(left))

    @contextlib.contextmanager
    def enter(
        self,
        *,
        limit: float = ECHO_LIMIT,
        slack: int = MEMORY_SLACK,
        server: Credential | None = None,
        domains: tuple[str, ...] = ("cluster.local",),
        **config: Any,
    ) -> Iterator[Arena]:
        """One attack. `limit` bounds the canary's p99 in seconds, `slack` the memory kept, in bytes.

        `server` lets the listener under attack show (and trust) something other than the usual.
        """
        host, through = self.host(**config)
        self._wait_for_voice(host)
        identity, self._next_tag = SERVER_ID, self._next_tag + 1
        tag = self._next_tag
        if server or domains != ("cluster.local",):
            identity = tag
            host.identity(identity, server or self.server, domains)
        hbone = host.listen("HBONE", tag, Deliver(self.canary.address), identity=identity)
        with self.canary.watch(through, limit=limit if not sanitized.kind() else SLOW):
            arena = Arena(host, self.canary, self.authority, server or self.server, self.client, tag, hbone)
            arena.mark, arena.stats = len(host.events()), host.stats()
            before, busy = host.holdings(), _gauges(host)
            with arena._closing:
                yield arena
            check_alive(host)
            for used in (tag, arena.via):
                host.engine("drain", used)
            self._note_failures(host)
            _check_gone(host, before, busy, slack)

    def close(self) -> None:
        """End all processes."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.canary.close)
            for host, _ in self._hosts.values():
                if host.alive:
                    stack.callback(host.close)


def assert_reset(app: socket.socket, timeout: float = 30.0) -> None:
    """The application sees an abort: not data, not the clean end of a stream."""
    app.settimeout(timeout)
    try:
        got = app.recv(1 << 16)
    except ConnectionResetError:
        return
    raise AssertionError(f"the application got {got[:40]!r} instead of a reset")


def assert_refused(target: Address) -> None:
    """A new application connection is reset, perhaps before `connect` returns."""
    with contextlib.suppress(ConnectionResetError), socket.create_connection(target, timeout=30) as sock:
        assert_reset(sock)


def check_alive(host: EngineHost) -> None:
    """The process lives and answers."""
    assert host.alive, "the engine process ended"
    host.stats()


def _told(host: EngineHost) -> int:
    """What is told at a bounded rate."""
    stats = host.stats()
    return stats["tunnel_failures"] + stats["defects"]


def _gauges(host: EngineHost) -> dict[str, int]:
    stats = host.stats()
    return {name: stats[name] for name in GAUGES}


def _check_gone(host: EngineHost, before: Holdings, busy: dict[str, int], slack: int) -> None:
    """Flows, tunnels, descriptors and memory of the attack have gone; the canary's may come and go."""

    def quiet() -> bool:
        now = _gauges(host)
        return all(now[name] <= busy[name] + 3 for name in busy)

    wait_until(quiet, f"gauges back to {busy}; now {_gauges(host)}", timeout=30)

    def few_descriptors() -> bool:
        return len(host.holdings().descriptors) <= len(before.descriptors) + 8

    wait_until(few_descriptors, "descriptors back", timeout=30)
    if sanitized.kind():
        return  # a sanitizer keeps freed memory on purpose
    wait_until(lambda: host.rss() <= before.rss + slack, f"memory back to {before.rss >> 10} KiB", timeout=30)
