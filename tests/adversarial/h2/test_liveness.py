"""Peers that are silent, half dead, slow or unreachable (75 - 77 as far as the engine answers)."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from typing import Any

import pytest

from tests.support import frames, patterns, servers
from tests.support.arena import CLIENT_ID, Arena, Arenas, assert_reset
from tests.support.enginehost import Address, Deliver, Hold, TunnelTo
from tests.support.faultproxy import FaultProxy, Way
from tests.support.frames import Code, Setting, Type
from tests.support.peer import Peer
from tests.support.ports import closed_address, wait_until

QUICK_PINGS: dict[str, Any] = {"ping_interval": 0.3, "ping_timeout": 0.6}


def test_silent_client_is_dropped_after_unanswered_pings(arenas: Arenas) -> None:
    with arenas.enter(**QUICK_PINGS) as arena:
        peer = arena.peer()
        stream = peer.tunnel(arena.echo_authority)
        peer.echo(stream, b"alive")
        peer.polite = False
        start = time.monotonic()
        assert peer.wait_end().closed
        assert 0.5 < time.monotonic() - start < 30
        assert any(f.kind == Type.PING for f in peer.received)
        arena.ended_by({"peer_dead"})


def test_answering_client_is_kept(arenas: Arenas) -> None:
    with arenas.enter(**QUICK_PINGS) as arena:
        peer = arena.peer()
        stream = peer.tunnel(arena.echo_authority)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert peer.pump(0.05)
        peer.echo(stream, b"alive")
        assert sum(f.kind == Type.PING and not f.flags & frames.ACK for f in peer.received) >= 5  # each 0.3 s


def warm_tunnel(arena: Arena, server: socket.socket) -> tuple[Address, Peer]:
    """Where applications dial, and the server's end of a tunnel that has served one of them."""
    target = arena.outbound(server)
    app = arena.app(target)
    tunnel = arena.accept(server)
    tunnel.start()
    stream = serve(tunnel, app)
    app.shutdown(socket.SHUT_WR)
    tunnel.expect(Type.DATA, stream, where=lambda f: f.ends_stream, timeout=30)
    tunnel.send(frames.data(stream, end=True))
    app.settimeout(30)
    assert app.recv(1) == b""
    return target, tunnel


def serve(tunnel: Peer, app: socket.socket) -> int:
    """Answer the next CONNECT; the application's words come through. Its stream."""
    stream = tunnel.expect(Type.HEADERS, timeout=30).stream
    tunnel.send(frames.headers(stream, tunnel.encoder.encode([(":status", "200")])))
    app.sendall(b"hello")
    assert tunnel.read_exactly(stream, 5, timeout=30) == b"hello"
    return stream


def test_half_dead_pooled_tunnel_is_left_before_the_first_byte(arenas: Arenas) -> None:
    """The peer is gone and nobody said so (a node that lost its power): its tunnel takes the CONNECT and is silent.
    A PING goes unanswered as well, and the connection is made by a new tunnel, long before PING's own deadline."""
    with arenas.enter(answer_patience=0.2, response_timeout=60.0) as arena, arena.evil_server() as server:
        target, silent = warm_tunnel(arena, server)
        app = arena.app(target)
        new = arena.accept(server, timeout=30)
        new.start({Setting.MAX_CONCURRENT_STREAMS: 1})
        serve(new, app)
        assert arena.counted("pool_retries") == 1
        later = arena.app(target)  # nothing more is given to the silent one
        newer = arena.accept(server, timeout=30)
        newer.start()
        serve(newer, later)
        assert arena.endings() == {}
        silent.polite = False
        silent.expect(Type.PING, timeout=30)
        silent.expect_rst(3, Code.CANCEL)
        assert [f.stream for f in silent.received if f.kind == Type.HEADERS] == [1, 3]


def test_tunnel_that_speaks_again_is_used_again(arenas: Arenas) -> None:
    with arenas.enter(answer_patience=0.2, response_timeout=60.0) as arena, arena.evil_server() as server:
        target, slow = warm_tunnel(arena, server)
        app = arena.app(target)
        new = arena.accept(server, timeout=30)
        new.start()
        serve(new, app)
        new.send(frames.goaway((1 << 31) - 1))  # from now on there is only the other one
        slow.expect(Type.PING, timeout=30)
        slow.expect_rst(3, Code.CANCEL)
        wait_until(lambda: arena.counted("goaways_received") == 1, "GOAWAY was read")
        slow.send(frames.ping(b"I'm here"))
        slow.expect(Type.PING, where=lambda f: bool(f.flags & frames.ACK), timeout=30)
        serve(slow, arena.app(target))


def test_connect_that_a_leaving_peer_forgets_is_tried_elsewhere(arenas: Arenas) -> None:
    """Istio's ztunnel, told to stop, says GOAWAY and takes no more streams from a connection, answers its PINGs and
    leaves a CONNECT that crossed the GOAWAY without an answer until it closes."""
    with arenas.enter(answer_patience=0.2, response_timeout=60.0) as arena, arena.evil_server() as server:
        target, leaving = warm_tunnel(arena, server)
        app = arena.app(target)
        leaving.expect(Type.HEADERS, timeout=30)
        leaving.send(frames.goaway((1 << 31) - 1))
        new = arena.accept(server, timeout=30)
        new.start()
        serve(new, app)
        assert arena.counted("pool_retries") == 1
        leaving.expect_rst(3, Code.CANCEL)


def test_slow_answer_of_a_living_peer_is_waited_for(arenas: Arenas) -> None:
    """It answers PING: what it was asked for merely takes its time."""
    with arenas.enter(answer_patience=1.5, response_timeout=60.0) as arena, arena.evil_server() as server:
        target, busy = warm_tunnel(arena, server)
        app = arena.app(target)
        busy.expect(Type.HEADERS, timeout=30)
        busy.send(frames.ping(b"thinking"))
        until = time.monotonic() + 3.5  # more than twice the patience
        while time.monotonic() < until:
            assert busy.pump(0.02)
        busy.send(frames.headers(3, busy.encoder.encode([(":status", "200")])))
        app.sendall(b"hello")
        assert busy.read_exactly(3, 5, timeout=30) == b"hello"
        assert arena.counted("pool_retries") == 0


@pytest.mark.parametrize("fault", ["stalled", "swallow"])
def test_peer_blackhole(arenas: Arenas, fault: str) -> None:
    """The network stops delivering, without any notice: live flows end with `peer_dead`."""
    with arenas.enter(**QUICK_PINGS) as arena, FaultProxy(arena.hbone) as proxy:
        target = arena.host.listen("OUTBOUND", arena.via, _to(arena, proxy.address))
        app = arena.app(target)
        app.sendall(b"x")
        assert app.recv(1) == b"x"
        proxy.set(None, **{fault: True})
        start = time.monotonic()
        assert_reset(app)
        assert time.monotonic() - start < 30
        wait_until(lambda: arena.host.endings(arena.via) == {"peer_dead": 1}, "the reason")
        proxy.set(None, **{fault: False})
        arena.app(target).sendall(b"y")


def _to(arena: Arena, address: tuple[str, int]) -> TunnelTo:
    """Tunnels to the server under attack, perhaps by way of a proxy."""
    return TunnelTo(address, (arena.server.uri,), CLIENT_ID, arena.echo_authority)


def test_slow_and_jerky_network_delivers_every_octet(arena: Arena) -> None:
    with FaultProxy(arena.hbone) as proxy:
        target = arena.host.listen("OUTBOUND", arena.via, _to(arena, proxy.address))
        proxy.set(delay=0.02)
        stop = threading.Event()

        def jerk() -> None:
            for way, stalled in itertools.cycle(itertools.product(Way, (True, False))):
                proxy.set(way, stalled=stalled)
                if stop.wait(0.03):
                    break
            proxy.set(stalled=False)

        jerker = threading.Thread(target=jerk)
        jerker.start()
        try:
            patterns.many(target, 4, 300_000)
        finally:
            stop.set()
            jerker.join()


def test_one_flipped_bit_ends_the_tunnel(arena: Arena) -> None:
    with FaultProxy(arena.hbone) as proxy:
        target = arena.host.listen("OUTBOUND", arena.via, _to(arena, proxy.address))
        app = arena.app(target)
        app.sendall(b"x")
        assert app.recv(1) == b"x"
        proxy.set(Way.FORWARD, corrupt_at=proxy.passed(Way.FORWARD) + 30)
        app.sendall(b"y" * 1000)
        assert_reset(app)
        arena.only_failure("peer_protocol")


@pytest.mark.parametrize("reset", [True, False], ids=["rst", "fin"])
def test_network_cuts_the_tunnel(arena: Arena, reset: bool) -> None:
    """Every flow of the tunnel is reset; the next connection simply dials again."""
    with FaultProxy(arena.hbone) as proxy:
        target = arena.host.listen("OUTBOUND", arena.via, _to(arena, proxy.address))
        apps = [arena.app(target) for _ in range(10)]
        for app in apps:
            app.sendall(b"x")
            assert app.recv(1) == b"x"
        assert proxy.connections == 1
        proxy.cut(reset=reset)
        for app in apps:
            assert_reset(app)
        wait_until(lambda: sum(arena.host.endings(arena.via).values()) == 10, "ten endings")
        assert set(arena.host.endings(arena.via)) <= {"peer_reset", "truncated"}
        patterns.exchange(target, 1, 1000)


def test_hbone_port_that_refuses(arena: Arena) -> None:
    arena.refused(arena.outbound(closed_address()))
    arena.wait_endings({"connect_refused": 1})


def test_hbone_port_that_never_answers(arena: Arena) -> None:
    """A full accept queue: SYNs are dropped. The connect deadline ends it."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        target = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(target)
        start = time.monotonic()
        app = arena.app(arena.outbound(target))
        assert_reset(app)
        assert 1.5 < time.monotonic() - start < 30  # connect_timeout is 2 s here
        arena.wait_endings({"connect_timeout": 1})
        for filler in fillers:
            filler.close()


def test_server_that_never_shakes_hands(arena: Arena) -> None:
    with servers.black_hole() as hole:
        app = arena.app(arena.outbound(hole.address))
        assert_reset(app)
        arena.wait_endings({"tls_handshake_timeout": 1})


def test_server_that_never_speaks_http2(arena: Arena) -> None:
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    peer = arena.accept(server)
    assert_reset(app)
    assert peer.wait_end().closed
    arena.ended_once()


def test_server_that_never_answers_the_connect(arena: Arena) -> None:
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    peer = arena.accept(server)
    peer.start()
    stream = peer.expect(Type.HEADERS).stream
    start = time.monotonic()
    while not any(f.kind == Type.RST_STREAM and f.stream == stream for f in peer.received):
        assert peer.pump(0.1)
        assert time.monotonic() - start < 30  # response_timeout is 2 s here
    assert_reset(app)
    arena.ended_once()


@pytest.mark.parametrize(
    ("target", "slug"),
    [(closed_address(), "connect_refused"), (("255.255.255.255", 80), "connect_unreachable")],
)
def test_upstream_refuses_or_is_unreachable(arena: Arena, target: tuple[str, int], slug: str) -> None:
    arena.rule(Deliver(target))
    peer = arena.peer()
    assert peer.status(peer.request("10.0.0.1:80")) == 503
    arena.wait_endings({slug: 1})
    arena.rule(Deliver(arena.echo))
    peer.echo(peer.tunnel("10.0.0.1:80"), b"the tunnel lives")


def test_owner_never_decides(arena: Arena) -> None:
    arena.rule(Hold())
    peer = arena.peer()
    assert peer.status(peer.request("10.0.0.1:80")) == 503  # decision_timeout is 2 s here
    arena.wait_endings({"decision_timeout": 1})


def test_client_gives_up_while_the_owner_decides(arena: Arena) -> None:
    arena.rule(Hold())
    peer = arena.peer()
    stream = peer.request("10.0.0.1:80")
    wait_until(
        lambda: any(g.kind == "ConnectRequested" and g.tag == arena.tag for g in arena.host.events()), "asked"
    )
    peer.send(frames.rst(stream))
    arena.wait_endings({"peer_reset": 1})
