"""Limits and ends of streams and connections (17, 19, 20)."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from tests.support import frames, servers
from tests.support.arena import CLIENT_ID, Arena, Arenas, assert_reset
from tests.support.enginehost import Deliver, TunnelTo
from tests.support.frames import Code, Setting, Type
from tests.support.peer import Peer, Refused


def test_stream_limit(arena: Arena) -> None:
    peer = arena.dial()
    limit = peer.start()[Setting.MAX_CONCURRENT_STREAMS]
    assert limit == 200
    streams = [peer.request(arena.echo_authority) for _ in range(limit)]
    for stream in streams:
        assert peer.status(stream) == 200
    extra = peer.request(arena.echo_authority)
    peer.expect_rst(extra, Code.REFUSED_STREAM)
    peer.echo(streams[0], b"others live")
    peer.send(frames.rst(streams[1]))
    peer.echo(peer.tunnel(arena.echo_authority), b"a place was freed")
    assert arena.counted("streams_refused") == 1
    assert arena.endings() == {"peer_reset": 1}


def test_peer_with_a_small_stream_limit_gets_more_tunnels(arenas: Arenas) -> None:
    """As client: MAX_CONCURRENT_STREAMS 2 means two streams a tunnel, not a failure."""
    with arenas.enter() as arena:
        server = arena.evil_server()
        target = arena.outbound(server)
        apps = [arena.app(target)]
        first = arena.accept(server)
        first.start({Setting.MAX_CONCURRENT_STREAMS: 2})
        answer(first)
        first.expect(Type.SETTINGS, where=lambda f: bool(f.flags & frames.ACK))
        apps += [arena.app(target) for _ in range(3)]
        answer(first)
        second = arena.accept(server)
        second.start({Setting.MAX_CONCURRENT_STREAMS: 2})
        for peer in (second, second):
            answer(peer)
        for app in apps:
            app.sendall(b"through")
        for peer in (first, second):
            assert {peer.expect(Type.DATA).payload for _ in range(2)} == {b"through"}
        assert not [f for f in first.received if f.kind == Type.HEADERS][2:]


def answer(peer: Peer, status: int = 200) -> int:
    """Answer the next CONNECT; its stream."""
    got = peer.expect(Type.HEADERS)
    peer.send(frames.headers(got.stream, peer.encoder.encode([(":status", str(status))]), end=status != 200))
    return got.stream


def round_trip(app: socket.socket, peer: Peer, stream: int, octets: bytes) -> None:
    """App to server and back."""
    app.sendall(octets)
    assert peer.read_exactly(stream, len(octets)) == octets
    peer.send(frames.data(stream, octets[::-1]))
    assert app.recv(len(octets), socket.MSG_WAITALL) == octets[::-1]


def test_goaway_mid_tunnel(arena: Arena) -> None:
    """Live streams finish, new ones get a new tunnel, nobody notices."""
    server = arena.evil_server()
    target = arena.outbound(server)
    app = arena.app(target)
    old = arena.accept(server)
    old.start()
    stream = answer(old)
    round_trip(app, old, stream, b"before")
    old.send(frames.goaway((1 << 31) - 1), frames.ping())
    old.expect(Type.PING, where=lambda f: bool(f.flags & frames.ACK))
    later = arena.app(target)
    new = arena.accept(server)
    new.start()
    round_trip(later, new, answer(new), b"on the new tunnel")
    old.send(frames.goaway(stream))
    round_trip(app, old, stream, b"still alive")
    app.shutdown(socket.SHUT_WR)
    assert old.expect(Type.DATA, stream, where=lambda f: f.ends_stream)
    old.send(frames.data(stream, b"last words", end=True))
    assert app.recv(100, socket.MSG_WAITALL) == b"last words"
    assert old.wait_end().closed, "a drained tunnel with no streams is closed"
    assert arena.endings() == {}


def test_goaway_below_our_streams(arena: Arena) -> None:
    """Streams above the last id were never seen by the peer: retried on a new tunnel or reported as such."""
    server = arena.evil_server()
    target = arena.outbound(server)
    app = arena.app(target)
    old = arena.accept(server)
    old.start()
    assert old.expect(Type.HEADERS).stream == 1
    old.send(frames.goaway(0))
    server.settimeout(2)
    try:
        new = arena.accept(server)
    except TimeoutError:
        arena.wait_endings({"peer_goaway": 1})
    else:
        new.start()
        round_trip(app, new, answer(new), b"retried")


def test_goaway_mid_tunnel_before_any_stream(arena: Arena) -> None:
    """A server may speak before the client has finished the handshake. One that says hello and leaves at once is not
    dialled again and again for those who wait."""
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    with contextlib.suppress(Refused):
        arena.accept(server, early=frames.settings() + frames.goaway(0)).close()
    assert_reset(app)
    assert arena.counted("tunnels_dialled") == 1
    arena.ended_by({"peer_goaway"})


def test_goaway_with_an_error(arena: Arena) -> None:
    """The peer ends everything: live flows end by reset, never by a clean end of stream."""
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    peer = arena.accept(server)
    peer.start()
    round_trip(app, peer, answer(peer), b"before")
    peer.send(frames.goaway(1, Code.INTERNAL_ERROR))
    peer.close_notify()
    peer.fin()
    assert_reset(app)
    arena.ended_once()


def test_refused_stream_is_not_mistaken_for_an_answer(arena: Arena) -> None:
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    peer = arena.accept(server)
    peer.start()
    got = peer.expect(Type.HEADERS)
    peer.send(frames.rst(got.stream, Code.REFUSED_STREAM))
    # one retry on the same or another tunnel is allowed; a second refusal has to be final
    for _ in range(5):
        again = [f for f in peer.pending if f.kind == Type.HEADERS]
        if again:
            peer.pending.clear()
            peer.send(frames.rst(again[0].stream, Code.REFUSED_STREAM))
        if not peer.pump(0.1):
            break
    assert_reset(app)
    assert set(arena.endings()) <= {"stream_limit", "peer_reset", "peer_refused"}
    arena.ended_once()


def test_drain_of_our_server(arenas: Arenas) -> None:
    """GOAWAY to our clients; live streams finish, a racing CONNECT is served or refused, never left hanging."""
    with arenas.enter() as arena:
        peer = arena.peer()
        stream = peer.tunnel(arena.echo_authority)
        arena.host.engine("drain", arena.tag)
        got = peer.expect(Type.GOAWAY)
        assert got.code == Code.NO_ERROR
        late = peer.request(arena.echo_authority)
        while not any(f.stream == late for f in peer.pending):
            if not peer.pump(2):
                break
        assert any(f.stream == late for f in peer.received) or peer.ending.closed
        peer.echo(stream, b"finish what you began")
        peer.send(frames.data(stream, end=True), frames.rst(late))
        peer.expect(Type.DATA, stream, where=lambda f: f.ends_stream)
        assert peer.wait_end().closed


def test_late_frames_of_a_stream_we_reset_are_tolerated(arena: Arena) -> None:
    """A peer that has not seen our RST_STREAM yet goes on for a while (RFC 9113 5.1)."""
    peer = arena.peer()
    peer.tunnel(arena.echo_authority)
    stream = peer.tunnel(arena.echo_authority)
    event = next(
        g.event for g in reversed(arena.host.events()) if g.kind == "ConnectRequested" and g.tag == arena.tag
    )
    arena.host.engine("cut", event.token, arena.host.reasons.index("policy_changed"))
    peer.send(*(frames.data(stream, b"late" * 100) for _ in range(10)), frames.window_update(stream, 100))
    peer.expect_rst(stream)
    peer.send(frames.data(stream, b"very late", end=True))
    peer.echo(1, b"fine")
    arena.wait_endings({"policy_changed": 1})


def test_answers_other_than_200_reach_nobody_as_data(arena: Arena) -> None:
    """A 503 with a body: the body is not the application's."""
    server = arena.evil_server()
    target = arena.host.listen(
        "OUTBOUND", arena.tag, TunnelTo(server.getsockname()[:2], (arena.server.uri,), CLIENT_ID)
    )
    app = arena.app(target)
    peer = arena.accept(server)
    peer.start()
    got = peer.expect(Type.HEADERS)
    peer.send(
        frames.headers(got.stream, peer.encoder.encode([(":status", "503")])),
        frames.data(got.stream, b"upstream connect error", end=True),
    )
    assert_reset(app)
    arena.wait_endings({"peer_refused": 1})


@pytest.mark.parametrize("slow", ["credit", "tcp"])
def test_drain_waits_for_the_slow_reader_of_the_last_stream(arena: Arena, slow: str) -> None:
    """Everything the application sent before its end of stream arrives, however long the reader takes."""
    size = 3_000_000
    with servers.source(size) as app:
        arena.rule(Deliver(app.address))
        peer = arena.dial()
        peer.start({Setting.INITIAL_WINDOW_SIZE: 65_535 if slow == "credit" else size + 1}, window=1 << 24)
        stream = peer.tunnel("10.0.0.1:80")
        peer.send(frames.data(stream, end=True))
        arena.host.engine("drain", arena.tag)
        if slow == "tcp":
            time.sleep(1.2)  # longer than close_linger (0.5 s), shorter than stall_timeout (1.5 s)
        got = bytearray()
        ended = False
        while not ended:
            data = peer.expect(Type.DATA, stream)
            got += data.payload
            ended = data.ends_stream
            if slow == "credit" and len(got) % 8 == 0:
                peer.pump(0.001)
            if not ended and data.payload:
                peer.send(frames.window_update(stream, len(data.payload)))
        assert bytes(got) == (bytes(range(256)) * (size // 256 + 1))[:size]
        assert peer.wait_end().how in ("close_notify", "fin")
        assert arena.endings() == {}


def test_goaway_of_the_server_waits_for_our_last_octets(arena: Arena) -> None:
    """The same the other way: as client, with a server that says GOAWAY and reads slowly."""
    size = 3_000_000
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    peer = arena.accept(server)
    peer.start({Setting.INITIAL_WINDOW_SIZE: size + 1}, window=1 << 24)
    stream = answer(peer)
    peer.send(frames.data(stream, end=True), frames.goaway(stream))
    app.sendall(bytes(size))
    app.shutdown(socket.SHUT_WR)
    time.sleep(1.2)  # longer than close_linger, shorter than stall_timeout
    got = 0
    while True:
        data = peer.expect(Type.DATA, stream)
        got += len(data.payload)
        if data.ends_stream:
            break
    assert got == size
    assert app.recv(1) == b""
    assert arena.endings() == {}
