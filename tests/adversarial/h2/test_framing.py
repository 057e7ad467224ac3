"""Frames of the wrong size, on the wrong stream, in the wrong order, of the wrong type (3, 4, 8, 18, 21, 23)."""

from __future__ import annotations

import pytest

from tests.support import frames
from tests.support.arena import Arena
from tests.support.frames import Code, Setting, Type
from tests.support.peer import Peer

OPEN = frames.connect_block("10.9.9.9:9")


def conn_error(
    arena: Arena, peer: Peer, *codes: Code, slug: str = "peer_protocol", also: tuple[str, ...] = ()
) -> None:
    """GOAWAY with one of these codes, then the end within a second."""
    end = peer.wait_end()
    assert end.closed, f"still open; frames {end.frames[-4:]}"
    assert end.goaway in codes, f"GOAWAY {end.goaway}, expected {codes}"
    arena.only_failure(slug, *also)


def test_frame_oversize_is_refused_before_its_payload_comes(arena: Arena) -> None:
    peer = arena.dial()
    limit = peer.start()[Setting.MAX_FRAME_SIZE]
    before = arena.host.rss()
    stream = peer.tunnel(arena.echo_authority)
    peer.send(frames.frame(Type.DATA, 0, stream, b"", length=limit + 1))
    conn_error(arena, peer, Code.FRAME_SIZE_ERROR)
    assert arena.host.rss() - before < 512 << 10


def test_frame_of_the_largest_size_is_taken(arena: Arena) -> None:
    peer = arena.dial()
    limit = peer.start()[Setting.MAX_FRAME_SIZE]
    peer.generous = True
    stream = peer.tunnel(arena.echo_authority)
    payload = bytes(range(256)) * (limit // 256)
    peer.echo(stream, payload)


@pytest.mark.parametrize(
    "octets",
    [
        frames.frame(Type.PING, payload=b"1234567"),
        frames.frame(Type.PING, payload=b"123456789"),
        frames.frame(Type.SETTINGS, payload=b"12345"),
        frames.frame(Type.SETTINGS, frames.ACK, payload=b"123456"),
        frames.frame(Type.WINDOW_UPDATE, payload=b"123"),
        frames.frame(Type.GOAWAY, payload=b"1234567"),
        frames.frame(Type.HEADERS, frames.END_HEADERS, 1, b"", length=(1 << 24) - 1),
    ],
    ids=["ping_7", "ping_9", "settings_5", "settings_ack_6", "window_update_3", "goaway_7", "headers_16M"],
)
def test_frame_of_the_wrong_fixed_size(arena: Arena, octets: bytes) -> None:
    peer = arena.peer()
    peer.send(octets)
    conn_error(arena, peer, Code.FRAME_SIZE_ERROR)


@pytest.mark.parametrize(
    "octets",
    [frames.frame(Type.RST_STREAM, 0, 1, b"123"), frames.frame(Type.WINDOW_UPDATE, 0, 1, b"12345")],
    ids=["rst_stream_3", "window_update_5"],
)
def test_frame_of_the_wrong_size_on_a_stream(arena: Arena, octets: bytes) -> None:
    peer = arena.peer()
    assert peer.tunnel(arena.echo_authority) == 1
    peer.send(octets)
    conn_error(arena, peer, Code.FRAME_SIZE_ERROR)


@pytest.mark.parametrize(
    ("octets", "codes"),
    [
        (frames.data(0, b"x"), (Code.PROTOCOL_ERROR,)),
        (frames.headers(0, OPEN), (Code.PROTOCOL_ERROR,)),
        (frames.frame(Type.SETTINGS, 0, 1), (Code.PROTOCOL_ERROR,)),
        (frames.frame(Type.PING, 0, 1, bytes(8)), (Code.PROTOCOL_ERROR,)),
        (frames.frame(Type.GOAWAY, 0, 1, bytes(8)), (Code.PROTOCOL_ERROR,)),
        (frames.rst(0), (Code.PROTOCOL_ERROR,)),
        (frames.headers(2, OPEN), (Code.PROTOCOL_ERROR,)),
        (frames.data(1, b"x"), (Code.PROTOCOL_ERROR,)),
        (frames.rst(1), (Code.PROTOCOL_ERROR,)),
        (frames.window_update(1, 1), (Code.PROTOCOL_ERROR,)),
        (frames.data(2, b"x"), (Code.PROTOCOL_ERROR,)),
        (frames.continuation(1, OPEN, end_headers=True), (Code.PROTOCOL_ERROR,)),
        (frames.priority(0), (Code.PROTOCOL_ERROR,)),
    ],
    ids=[
        *("data_0", "headers_0", "settings_1", "ping_1", "goaway_1", "rst_0", "headers_even", "data_idle"),
        *("rst_idle", "window_update_idle", "data_even_idle", "continuation_alone", "priority_0"),
    ],
)
def test_frame_wrong_stream(arena: Arena, octets: bytes, codes: tuple[Code, ...]) -> None:
    peer = arena.peer()
    peer.send(octets)
    conn_error(arena, peer, *codes)


def test_stream_ids_must_not_decrease(arena: Arena) -> None:
    peer = arena.peer()
    peer.send(frames.headers(5, frames.connect_block(arena.echo_authority)))
    assert peer.status(5) == 200
    peer.send(frames.headers(3, OPEN))
    conn_error(arena, peer, Code.PROTOCOL_ERROR, Code.STREAM_CLOSED)


def test_id_exhaustion_as_server(arena: Arena) -> None:
    """Id exhaustion seen from the server: 2^31 - 1 works, nothing can follow."""
    peer = arena.peer()
    last = (1 << 31) - 1
    peer.send(frames.headers(last, frames.connect_block(arena.echo_authority)))
    assert peer.status(last) == 200
    peer.echo(last, b"the last one")
    peer.send(frames.headers(1, OPEN))
    conn_error(arena, peer, Code.PROTOCOL_ERROR, Code.STREAM_CLOSED)


@pytest.mark.parametrize(
    "between",
    [
        frames.ping(),
        frames.settings(),
        frames.data(1, b"x"),
        frames.continuation(3),
        frames.headers(3, OPEN),
        frames.frame(0xBE, 0, 0, b"unknown"),
        frames.window_update(0, 1),
    ],
    ids=["ping", "settings", "data", "continuation_other", "headers", "unknown", "window_update"],
)
def test_continuation_interleaved(arena: Arena, between: bytes) -> None:
    peer = arena.peer()
    peer.send(frames.headers(1, OPEN[:10], end_headers=False) + between)
    conn_error(arena, peer, Code.PROTOCOL_ERROR)


@pytest.mark.parametrize("kind", [Type.DATA, Type.HEADERS], ids=["data", "headers"])
@pytest.mark.parametrize(("pad", "size"), [(4, 4), (255, 5), (1, 1), (0, 0)], ids=str)
def test_padding_abuse_that_does_not_fit(arena: Arena, kind: Type, pad: int, size: int) -> None:
    """Pad length >= what follows it is a connection error (RFC 9113 6.1, 6.2); so is a missing pad length."""
    peer = arena.peer()
    stream = 1
    if kind == Type.DATA:
        stream = peer.tunnel(arena.echo_authority)
    payload = (bytes([pad]) + bytes(size - 1)) if size else b""
    peer.send(
        frames.frame(kind, frames.PADDED | frames.END_HEADERS * (kind == Type.HEADERS), stream, payload)
    )
    codes = (Code.PROTOCOL_ERROR, Code.FRAME_SIZE_ERROR) if not size else (Code.PROTOCOL_ERROR,)
    conn_error(arena, peer, *codes)


def test_padding_is_credited_back(arena: Arena) -> None:
    """More padding than any window: the tunnel must not run dry."""
    peer = arena.peer()
    peer.generous = True
    stream = peer.tunnel(arena.echo_authority)
    payload, rounds, batch = bytes(range(250)) * 4, 24_000, 200  # 6 MB of padding
    for _ in range(rounds // batch):
        peer.send(*(frames.data(stream, payload, pad=255) for _ in range(batch)))
        assert peer.read_exactly(stream, batch * len(payload)) == payload * batch
    assert arena.endings() == {}


def test_padded_headers_open_a_tunnel(arena: Arena) -> None:
    peer = arena.peer()
    block = frames.connect_block(arena.echo_authority)
    flags = frames.PADDED | frames.END_HEADERS | frames.PRIORITY_FLAG
    peer.send(frames.frame(Type.HEADERS, flags, 1, bytes([7]) + bytes(5) + block + bytes(7)))
    assert peer.status(1) == 200
    peer.echo(1, b"x")


@pytest.mark.parametrize("end", [False, True], ids=["no_end", "end"])
def test_trailers_no_end(arena: Arena, end: bool) -> None:
    """A connected stream carries DATA only (RFC 9113 8.5). Trailers that end the stream may pass as its end."""
    peer = arena.peer()
    first, other = peer.tunnel(arena.echo_authority), peer.tunnel(arena.echo_authority)
    peer.send(frames.headers(first, peer.encoder.encode([("x-trailer", "1")]), end=end))
    if end:
        got = peer.expect(Type.RST_STREAM if _is_reset(peer, first) else Type.DATA, first)
        assert got.kind == Type.RST_STREAM or got.ends_stream
    else:
        peer.expect_rst(first, Code.PROTOCOL_ERROR)
    peer.echo(other, b"the other one lives")


def _is_reset(peer: Peer, stream: int) -> bool:
    """Wait for the stream's end and tell its manner; the frame stays pending."""
    while not any(f.stream == stream and (f.kind == Type.RST_STREAM or f.ends_stream) for f in peer.pending):
        assert peer.pump(3), "the connection ended"
        assert not peer.ending.closed
    return any(f.stream == stream and f.kind == Type.RST_STREAM for f in peer.pending)


def test_unknown_and_push_unknown_is_ignored(arena: Arena) -> None:
    peer = arena.peer()
    peer.send(frames.frame(0xFA, 0xFF, 0, b"?" * 100) + frames.frame(0x0A, 0, 1, b""))
    peer.send(frames.settings({0x4242: 7}))
    stream = peer.tunnel(arena.echo_authority)
    peer.send(frames.frame(0xBB, 0xFF, stream, b"?" * 1000))
    peer.send(frames.frame(Type.DATA, 0xF6 & ~frames.PADDED, stream, b"odd flags"))
    assert peer.read_exactly(stream, 9) == b"odd flags"
    assert arena.endings() == {}


def test_reserved_bit_of_the_stream_id_is_ignored(arena: Arena) -> None:
    peer = arena.peer()
    stream = peer.tunnel(arena.echo_authority)
    peer.send(frames.frame(Type.DATA, 0, stream | 1 << 31, b"reserved"))
    assert peer.read_exactly(stream, 8) == b"reserved"


def test_unknown_and_push_promise_to_a_server(arena: Arena) -> None:
    peer = arena.peer()
    stream = peer.tunnel(arena.echo_authority)
    peer.send(frames.push_promise(stream, 2, OPEN))
    conn_error(arena, peer, Code.PROTOCOL_ERROR)


def test_unknown_and_push_promise_to_a_client(arena: Arena) -> None:
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    peer = arena.accept(server)
    settings = peer.start()
    assert settings[Setting.ENABLE_PUSH] == 0
    stream = peer.expect(Type.HEADERS).stream
    peer.send(frames.headers(stream, peer.encoder.encode([(":status", "200")])))
    peer.send(frames.push_promise(stream, 2, OPEN))
    end = peer.wait_end()
    assert end.closed
    assert end.goaway == Code.PROTOCOL_ERROR
    with pytest.raises(ConnectionResetError):
        app.recv(1)
    arena.ended_by({"peer_protocol"})
