"""Rules of RFC 9113 that no attack by name is about; README.md names the tests of the others."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.adversarial.h2.test_framing import OPEN, conn_error
from tests.support import frames, servers
from tests.support.arena import Arena, assert_reset
from tests.support.enginehost import Deliver
from tests.support.frames import Code, Setting, Type, literals
from tests.support.peer import Peer
from tests.support.ports import wait_until


def served(arena: Arena, *hello: bytes) -> tuple[socket.socket, Peer]:
    """The engine as client: its application, and its server, which has said `hello` instead of SETTINGS."""
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    peer = arena.accept(server)
    if hello:
        peer.send(*hello)
    else:
        peer.start()
    return app, peer


def turned_off(arena: Arena, app: socket.socket, peer: Peer, code: Code) -> None:
    """GOAWAY with this code, and a reset for the application."""
    end = peer.wait_end()
    assert end.closed
    assert end.goaway == code, f"GOAWAY {end.goaway}, expected {code!r}"
    assert_reset(app)
    arena.ended_by({"peer_protocol"})


def quiet(peer: Peer, stream: int) -> None:
    """Everything sent so far is dealt with, and the stream got no RST_STREAM."""
    peer.send(frames.ping(b"finished"))
    peer.expect(Type.PING, where=lambda f: f.payload == b"finished")
    assert not [f for f in peer.received if f.kind == Type.RST_STREAM and f.stream == stream]


# -- 3.4: the server's preface is a SETTINGS frame


@pytest.mark.parametrize(
    "hello",
    [
        frames.ping(),
        frames.window_update(0, 1),
        frames.goaway(),
        frames.settings_ack(),
        b"HTTP/1.1 400 Bad\r\n\r\n",
    ],
    ids=["ping", "window_update", "goaway", "settings_ack", "http_1"],
)
def test_first_frame_of_a_server_has_to_be_settings(arena: Arena, hello: bytes) -> None:
    app, peer = served(arena, hello)
    end = peer.wait_end()
    assert end.closed
    assert end.goaway in (Code.PROTOCOL_ERROR, Code.FRAME_SIZE_ERROR)
    assert_reset(app)
    arena.ended_by({"peer_protocol"})


# -- 5.1, 5.1.1, 6: streams that a server must not speak on


@pytest.mark.parametrize(
    "octets",
    [
        frames.data(0, b"x"),
        frames.headers(0, OPEN),
        frames.headers(2, literals((":status", "200"))),
        frames.headers(99, literals((":status", "200"))),
        frames.data(99, b"x"),
        frames.data(2, b"x"),
        frames.rst(99),
        frames.rst(0),
        frames.window_update(99, 1),
        frames.frame(Type.SETTINGS, 0, 1),
        frames.frame(Type.PING, 0, 1, bytes(8)),
        frames.frame(Type.GOAWAY, 0, 1, bytes(8)),
        frames.continuation(1, OPEN, end_headers=True),
        frames.settings({Setting.ENABLE_PUSH: 1}),
    ],
    ids=[
        *(
            "data_0",
            "headers_0",
            "headers_even",
            "headers_idle",
            "data_idle",
            "data_even",
            "rst_idle",
            "rst_0",
        ),
        *("window_update_idle", "settings_1", "ping_1", "goaway_1", "continuation_alone", "push_enabled"),
    ],
)
def test_frame_that_a_server_must_not_send(arena: Arena, octets: bytes) -> None:
    app, peer = served(arena)
    stream = peer.expect(Type.HEADERS).stream
    peer.send(frames.headers(stream, literals((":status", "200"))), octets)
    turned_off(arena, app, peer, Code.PROTOCOL_ERROR)


# -- 5.1: half-closed (remote) and closed


@pytest.mark.parametrize(
    "octets",
    [lambda n: frames.data(n, b"more"), lambda n: frames.headers(n, literals(("x-a", "b")), end=True)],
    ids=["data", "headers"],
)
def test_nothing_may_follow_the_end_of_a_stream(arena: Arena, octets: object) -> None:
    with servers.black_hole() as app:  # it does not end by itself
        arena.rule(Deliver(app.address))
        peer = arena.peer()
        stream = peer.request("10.0.0.1:80")
        peer.send(frames.data(stream, b"all", end=True))
        assert callable(octets)
        peer.send(octets(stream))
        peer.expect_rst(stream, Code.STREAM_CLOSED)
        peer.tunnel("10.0.0.1:80")  # others go on


def test_half_closed_stream_still_takes_what_does_not_carry_octets(arena: Arena) -> None:
    """WINDOW_UPDATE, PRIORITY and RST_STREAM are allowed behind END_STREAM."""
    with servers.source(200_000) as app:
        arena.rule(Deliver(app.address))
        peer = arena.peer()
        stream = peer.request("10.0.0.1:80", end=True)
        assert peer.status(stream) == 200
        peer.send(
            frames.priority(stream), frames.window_update(0, 1 << 20), frames.window_update(stream, 1 << 20)
        )
        assert len(peer.read_exactly(stream, 200_000)) == 200_000
        quiet(peer, stream)


@pytest.mark.parametrize(
    "late",
    [lambda n: frames.window_update(n, 1), frames.rst, frames.priority],
    ids=["window_update", "rst", "priority"],
)
def test_late_frames_of_a_stream_that_both_ended_are_ignored(arena: Arena, late: object) -> None:
    peer = arena.peer()
    stream = peer.request(arena.echo_authority, end=True)
    assert peer.status(stream) == 200
    peer.expect(Type.DATA, stream, where=lambda f: f.ends_stream)
    assert callable(late)
    peer.send(late(stream))
    quiet(peer, stream)
    peer.echo(peer.tunnel(arena.echo_authority), b"alive")


def test_reset_is_not_answered_by_a_reset(arena: Arena) -> None:
    """5.4.2: or two peers would reset each other for ever."""
    peer = arena.peer()
    stream = peer.tunnel(arena.echo_authority)
    peer.send(frames.rst(stream), frames.rst(stream))
    quiet(peer, stream)


# -- 4.2, 6.5.2: what the peer's SETTINGS allow is what we send


@pytest.mark.parametrize("limit", [16_384, 20_000, 1 << 20])
def test_no_frame_is_larger_than_the_peer_takes(arena: Arena, limit: int) -> None:
    size = 3 << 20
    with servers.source(size) as app:
        arena.rule(Deliver(app.address))
        peer = arena.dial()
        peer.start({Setting.MAX_FRAME_SIZE: limit, Setting.INITIAL_WINDOW_SIZE: 8 << 20})
        peer.send(frames.window_update(0, 8 << 20))
        stream = peer.request("10.0.0.1:80")
        assert peer.status(stream) == 200
        assert len(peer.read_exactly(stream, size)) == size
        assert max(len(f.payload) for f in peer.received) <= limit


def test_lower_frame_limit_holds_from_its_acknowledgement_on(arena: Arena) -> None:
    with servers.echo() as app:
        arena.rule(Deliver(app.address))
        peer = arena.dial()
        peer.generous = True
        peer.start({Setting.MAX_FRAME_SIZE: 1 << 20, Setting.INITIAL_WINDOW_SIZE: 8 << 20})
        stream = peer.tunnel("10.0.0.1:80")
        peer.send(frames.settings({Setting.MAX_FRAME_SIZE: 16_384}), frames.ping(b"accepted"))
        peer.expect(Type.PING, where=lambda f: f.payload == b"accepted")
        seen = len(peer.received)
        peer.echo(stream, bytes(300_000))
        assert max(len(f.payload) for f in peer.received[seen:]) <= 16_384


# -- 5.4.1, 6.8: GOAWAY says how far we came


def test_goaway_names_the_last_stream_that_was_taken(arena: Arena) -> None:
    peer = arena.peer()
    for _ in range(3):
        last = peer.tunnel(arena.echo_authority)
    peer.send(frames.window_update(0, 0))
    conn_error(arena, peer, Code.PROTOCOL_ERROR)
    (said,) = (f for f in peer.received if f.kind == Type.GOAWAY)
    assert said.last_stream == last


def test_goaway_of_a_client_stops_nothing(arena: Arena) -> None:
    """A client's GOAWAY is about streams that a server opens: there are none. Its own go on."""
    peer = arena.peer()
    stream = peer.tunnel(arena.echo_authority)
    peer.send(frames.goaway(0))
    peer.echo(stream, b"goes on")


# -- 6.2, 6.3: shapes that no size of a frame gives away


def test_headers_too_short_for_the_priority_they_announce(arena: Arena) -> None:
    peer = arena.peer()
    peer.send(frames.frame(Type.HEADERS, frames.END_HEADERS | frames.PRIORITY_FLAG, 1, b"1234"))
    conn_error(arena, peer, Code.FRAME_SIZE_ERROR)


@pytest.mark.parametrize("size", [4, 6])
def test_priority_of_a_wrong_size(arena: Arena, size: int) -> None:
    """A stream error, which may be treated as one of the connection (5.4)."""
    peer = arena.peer()
    peer.send(frames.frame(Type.PRIORITY, 0, 1, bytes(size)))
    conn_error(arena, peer, Code.FRAME_SIZE_ERROR)


# -- 8.1.1, 8.5: answers


@pytest.mark.parametrize("status", ["101", "099", "20"])
def test_status_that_no_answer_has(arena: Arena, status: str) -> None:
    app, peer = served(arena)
    stream = peer.expect(Type.HEADERS).stream
    peer.send(frames.headers(stream, literals((":status", status))))
    assert_reset(app)
    peer.expect_rst(stream, Code.PROTOCOL_ERROR)
    arena.ended_by({"peer_protocol"})


def test_data_before_the_answer_of_a_server_is_an_error(arena: Arena) -> None:
    app, peer = served(arena)
    stream = peer.expect(Type.HEADERS).stream
    peer.send(frames.data(stream, b"too early"))
    assert_reset(app)
    peer.expect_rst(stream, Code.PROTOCOL_ERROR)
    arena.ended_by({"peer_protocol"})


def test_broken_connection_of_the_server_is_a_connect_error(arena: Arena) -> None:
    """8.5: an error of the TCP connection behind the proxy, here its reset, ends the stream with CONNECT_ERROR."""

    def reset(sock: socket.socket) -> None:
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    with servers.Server(reset) as app:
        arena.rule(Deliver(app.address))
        peer = arena.peer()
        stream = peer.tunnel("10.0.0.1:80")
        peer.send(frames.data(stream, b"x"))
        peer.expect_rst(stream, Code.CONNECT_ERROR)
    arena.wait_endings({"reset_by_app": 1})


def test_cut_connection_is_a_connect_error(arena: Arena) -> None:
    """Never CANCEL: clients there are take that for the end of the stream, and what was cut short for whole."""
    peer = arena.peer()
    stream = peer.tunnel(arena.echo_authority)
    (token,) = (
        g.event.token
        for g in arena.host.events()[arena.mark :]
        if g.kind == "ConnectRequested" and g.tag == arena.tag
    )
    arena.host.engine("cut", token, arena.host.reasons.index("policy_changed"))
    peer.expect_rst(stream, Code.CONNECT_ERROR)
    wait_until(lambda: arena.endings() == {"policy_changed": 1}, "the flow's end")


def test_whole_answer_stays_whole_when_the_server_wants_no_more(arena: Arena) -> None:
    """RST_STREAM with NO_ERROR behind END_STREAM asks for no more of the request (RFC 9113 8.1)."""
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    peer = arena.accept(server)
    peer.start()
    stream = peer.expect(Type.HEADERS).stream
    answer = frames.headers(stream, literals((":status", "200"))) + frames.data(
        stream, b"all of it", end=True
    )
    peer.send(answer, frames.rst(stream, Code.NO_ERROR))
    assert receive_all(app) == b"all of it"


def receive_all(app: socket.socket) -> bytes:
    """Up to an end in order."""
    found = b""
    while got := app.recv(100):
        found += got
    return found


def test_part_of_an_answer_is_none_whatever_the_reset_says(arena: Arena) -> None:
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    peer = arena.accept(server)
    peer.start()
    stream = peer.expect(Type.HEADERS).stream
    answer = frames.headers(stream, literals((":status", "200"))) + frames.data(stream, b"a part")
    peer.send(answer, frames.rst(stream, Code.NO_ERROR))
    with pytest.raises(ConnectionResetError):
        receive_all(app)
    arena.ended_by({"peer_reset"})
