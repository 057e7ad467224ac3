"""The process runs out of something: descriptors, an owner that listens, room for tunnels (78)."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support import frames
from tests.support.arena import CLIENT_ID, Arena, Arenas
from tests.support.enginehost import Deliver, EngineHost, TunnelTo
from tests.support.frames import Code, Type
from tests.support.peer import Peer, Refused
from tests.support.ports import wait_until


@contextlib.contextmanager
def descriptors_left(host: EngineHost, count: int) -> Iterator[None]:
    """The process may open only so many more."""
    before = resource.prlimit(host.pid, resource.RLIMIT_NOFILE)
    highest = max(host.holdings().descriptors)
    resource.prlimit(host.pid, resource.RLIMIT_NOFILE, (highest + 1 + count, before[1]))
    try:
        yield
    finally:
        resource.prlimit(host.pid, resource.RLIMIT_NOFILE, before)


def idle(host: EngineHost, seconds: float = 0.5) -> bool:
    """Whether the process does next to nothing for so long."""
    before = host.cpu()
    time.sleep(seconds)
    return host.cpu() - before < seconds / 2


def connect(target: tuple[str, int], apps: list[socket.socket]) -> None:
    """One more application; being refused is fine."""
    with contextlib.suppress(OSError):
        apps.append(socket.create_connection(target, timeout=30))


def works(arena: Arena) -> bool:
    """A new tunnel is served."""
    with contextlib.suppress(Refused, OSError, AssertionError), Peer.dial(arena.hbone, arena.client) as peer:
        peer.start(timeout=1)
        peer.echo(peer.tunnel(arena.echo_authority), b"works")
        return True
    return False


# a canary's new connections cannot succeed without descriptors: its long connection has to
def test_fd_exhaustion_pauses_accepting_and_recovers(arenas: Arenas) -> None:
    host, _ = arenas.host(max_events=60_001)
    arena = fresh_arena(arenas, host)
    apps: list[socket.socket] = []
    with descriptors_left(host, 12):
        for _ in range(40):
            connect(arena.hbone, apps)
        wait_until(lambda: host.stats()["accept_paused"] > 0, "accepting paused")
        assert idle(host), "a busy loop"
    for app in apps:
        app.close()
    wait_until(lambda: works(arena), "service again", timeout=30)


@pytest.mark.timeout(30)
def test_fd_exhaustion_while_dialling_refuses_and_recovers(arenas: Arenas) -> None:
    """Every connection needs a tunnel of its own here, and some tunnels live: a dial that fails at once must
    neither spin nor hang what waits."""
    host, _ = arenas.host(pool_streams=1)
    arena = fresh_arena(arenas, host)
    target = host.listen(
        "OUTBOUND", arena.via, TunnelTo(arena.hbone, (arena.server.uri,), CLIENT_ID, arena.echo_authority)
    )
    apps: list[socket.socket] = []
    with descriptors_left(host, 14):
        for _ in range(12):
            connect(target, apps)
        wait_until(
            lambda: host.endings(arena.via)["connect_failed"] > 0 or host.stats()["accept_paused"] > 0,
            "trouble",
        )
        assert idle(host), "a busy loop"
    for app in apps:
        app.close()
    wait_until(lambda: works(arena), "service again", timeout=30)


def fresh_arena(arenas: Arenas, host: EngineHost) -> Arena:
    """An arena without a canary."""
    tag = 50_000 + len(host.events())
    hbone = host.listen("HBONE", tag, Deliver(arenas.canary.address), identity=1)
    return Arena(
        host, arenas.canary, arenas.authority, arenas.server, arenas.client, tag, hbone, stats=host.stats()
    )


def test_owner_that_does_not_listen(arenas: Arenas) -> None:
    """Questions pile up to a limit; streams beyond it are refused as retryable, and service comes back."""
    host, _ = arenas.host(max_events=32)
    arena = fresh_arena(arenas, host)
    with Peer.dial(arena.hbone, arena.client) as peer:
        peer.start()
        first = peer.tunnel(arena.echo_authority)
        host.call("nap", 2.0)
        for _ in range(150):
            peer.request(arena.echo_authority)
            peer.echo(first, b"live flows need no owner")  # and so no two requests are read at once
        refused = [f for f in peer.received if f.kind == Type.RST_STREAM]
        assert {f.code for f in refused} == {Code.REFUSED_STREAM}
        assert 80 <= len(refused) <= 120
        while sum(f.kind == Type.HEADERS for f in peer.received) < 1 + 150 - len(refused):
            assert peer.pump(5), "questions asked in time were not answered"
        wait_until(lambda: host.stats()["events_waiting"] == 0, "the owner caught up")
        peer.echo(peer.tunnel(arena.echo_authority), b"back")


def test_too_many_tunnels_are_shed(arenas: Arenas) -> None:
    patient = {"handshake_timeout": 60.0, "preface_timeout": 60.0, "settings_timeout": 60.0}
    with arenas.enter(max_tunnels=20, **patient) as arena:
        peers: list[Peer] = []
        with contextlib.ExitStack() as stack:
            for _ in range(30):
                with contextlib.suppress(Refused, OSError):
                    peers.append(stack.enter_context(Peer.dial(arena.hbone, arena.client)))
            assert arena.counted("shed_tunnels") >= 10
            assert len(peers) <= 20
            peers[0].start()
            peers[0].echo(peers[0].tunnel(arena.echo_authority), b"those inside are served")
        wait_until(lambda: works(arena), "room again")


def test_too_many_flows_are_shed(arenas: Arenas) -> None:
    with arenas.enter(max_flows=30) as arena:
        peer = arena.peer()
        streams = [peer.request(arena.echo_authority) for _ in range(60)]
        while sum(f.kind in (Type.HEADERS, Type.RST_STREAM) for f in peer.received) < 60:
            assert peer.pump(3), "no answer"
        refused = [f for f in peer.received if f.kind == Type.RST_STREAM]
        assert {f.code for f in refused} == {Code.REFUSED_STREAM}
        assert arena.counted("shed_flows") >= len(refused) >= 30
        peer.echo(streams[0], b"those inside are served")
        peer.send(*(frames.rst(stream) for stream in streams[:30]))
        wait_until(lambda: works(arena), "room again")
