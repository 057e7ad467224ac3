"""Credit: too much, too little, never, and beyond (14, 15, 16)."""

from __future__ import annotations

import time

import pytest

from tests.adversarial.h2.test_framing import conn_error
from tests.support import frames, servers
from tests.support.arena import Arena, Arenas
from tests.support.enginehost import Deliver
from tests.support.frames import Code, Setting, Type


def test_window_update_abuse_zero_on_a_stream(arena: Arena) -> None:
    peer = arena.peer()
    bad, good = peer.tunnel(arena.echo_authority), peer.tunnel(arena.echo_authority)
    peer.send(frames.window_update(bad, 0))
    peer.expect_rst(bad, Code.PROTOCOL_ERROR)
    peer.echo(good, b"alive")
    arena.wait_endings({"peer_protocol": 1})


def test_window_update_abuse_zero_on_the_connection(arena: Arena) -> None:
    peer = arena.peer()
    peer.send(frames.window_update(0, 0))
    conn_error(arena, peer, Code.PROTOCOL_ERROR)


def test_window_update_abuse_overflow_on_a_stream(arena: Arena) -> None:
    peer = arena.peer()
    bad, good = peer.tunnel(arena.echo_authority), peer.tunnel(arena.echo_authority)
    peer.send(frames.window_update(bad, 0x7FFFFFFF))
    peer.expect_rst(bad, Code.FLOW_CONTROL_ERROR)
    peer.echo(good, b"alive")
    arena.wait_endings({"peer_protocol": 1})


def test_window_update_abuse_overflow_on_the_connection(arena: Arena) -> None:
    peer = arena.peer()
    peer.send(frames.window_update(0, 0x7FFFFFFF))
    conn_error(arena, peer, Code.FLOW_CONTROL_ERROR)


def test_window_overflow_by_settings(arena: Arena) -> None:
    """A larger initial window moves all streams' windows; one that overflows is a connection error (6.9.2)."""
    peer = arena.peer()
    stream = peer.tunnel(arena.echo_authority)
    peer.send(frames.window_update(stream, 0x7FFFFFFF - 65_535))
    peer.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0x7FFFFFFF}))
    conn_error(arena, peer, Code.FLOW_CONTROL_ERROR)


def test_smaller_initial_window_may_make_windows_negative(arena: Arena) -> None:
    """Credit below zero stops the sender until updates bring it above zero again (6.9.2)."""
    with servers.source(200_000) as app:
        arena.rule(Deliver(app.address))
        peer = arena.peer()
        stream = peer.tunnel("10.0.0.1:80")
        got = peer.read_exactly(stream, 65_535)
        peer.send(frames.window_update(0, 1 << 20), frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
        peer.expect(Type.SETTINGS, where=lambda f: bool(f.flags & frames.ACK))
        peer.send(frames.window_update(stream, 65_535))  # back to zero, not above
        peer.send(frames.ping())
        peer.expect(Type.PING, where=lambda f: bool(f.flags & frames.ACK))
        assert not [f for f in peer.pending if f.kind == Type.DATA]
        peer.send(frames.window_update(stream, 1 << 20))
        got += peer.read_exactly(stream, 200_000 - 65_535)
        assert got == (bytes(range(256)) * 800)[:200_000]


@pytest.mark.parametrize("chunk", [16_384, 100], ids=["large", "small"])
def test_window_overrun(arena: Arena, chunk: int) -> None:
    """Send beyond the stream's credit towards an application that does not read."""
    with servers.black_hole() as app:
        arena.rule(Deliver(app.address))
        peer = arena.dial()
        credit = peer.start()[Setting.INITIAL_WINDOW_SIZE]
        stream = peer.tunnel("10.0.0.1:80")
        while True:
            size = min(credit, 16_384)
            if size:
                peer.send(frames.data(stream, b"x" * size))
                credit -= size
            elif not peer.pump(0.3) or not any(f.kind == Type.WINDOW_UPDATE for f in peer.pending):
                break
            credit += sum(
                f.increment for f in peer.pending if f.kind == Type.WINDOW_UPDATE and f.stream == stream
            )
            peer.pending.clear()
        peer.send(*(frames.data(stream, b"y" * chunk) for _ in range(4)))
        while not peer.ending.closed and not any(
            f.kind in (Type.RST_STREAM, Type.GOAWAY) for f in peer.pending
        ):
            assert peer.pump(3)
        (ending, *_) = (f for f in peer.pending if f.kind in (Type.RST_STREAM, Type.GOAWAY))
        assert ending.code == Code.FLOW_CONTROL_ERROR
        assert set(arena.endings()) <= {"peer_protocol"}
        peer.close()


@pytest.mark.parametrize("windows", ["zero_stream_window", "no_connection_credit", "tcp_not_read"])
def test_stalled_reader(arenas: Arenas, windows: str) -> None:
    """Data is pending and the peer takes none: bounded memory, and the end at the stall deadline."""
    streams = 60
    with arenas.enter(slack=8 << 20) as arena, servers.source() as app:
        arena.rule(Deliver(app.address))
        peer = arena.dial()
        peer.start({Setting.INITIAL_WINDOW_SIZE: 0 if windows == "zero_stream_window" else 1 << 20})
        peer.expect(Type.SETTINGS, where=lambda f: bool(f.flags & frames.ACK))
        before, start = arena.host.rss(), time.monotonic()
        if windows == "tcp_not_read":
            peer.send(frames.window_update(0, 1 << 30))
        for _ in range(streams):
            peer.request("10.0.0.1:80")
        highest = 0
        deadline = time.monotonic() + 30
        while sum(arena.endings().values()) < streams and time.monotonic() < deadline:
            highest = max(highest, arena.host.rss())
            if windows != "tcp_not_read":
                peer.pump(0.05)
            else:
                time.sleep(0.05)
        arena.ended_by({"stalled"})
        assert arena.counted("stalled_flows") == streams
        assert 1.0 < time.monotonic() - start < 30  # stall_timeout is 1.5 s here
        assert highest - before < streams * (64 << 10) + (8 << 20)
        peer.close()


def test_one_stalled_stream_does_not_stop_the_others(arena: Arena) -> None:
    """The connection's credit is given back on receipt: 20 readers that sleep leave one that works alone."""
    with servers.black_hole() as hole:
        arena.rule(Deliver())
        peer = arena.dial()
        credit = peer.start()[Setting.INITIAL_WINDOW_SIZE]
        peer.generous = True
        host, port = hole.address
        for _ in range(20):
            stalled = peer.tunnel(f"{host}:{port}")
            peer.send(*(frames.data(stalled, b"x" * 16_384) for _ in range(credit // 16_384)))
        good = peer.tunnel(arena.echo_authority)
        for _ in range(50):
            peer.echo(good, b"moving" * 100)
        peer.close()
