"""CONNECT requests that are none, or not well-formed, or too well-fed (24, 25, 26, 29, 31)."""

from __future__ import annotations

import pytest

from tests.support import frames
from tests.support.arena import Arena
from tests.support.frames import Code, Type, literals
from tests.support.peer import Peer

AUTHORITY = (":authority", "10.0.0.1:80")
CONNECT = (":method", "CONNECT")


def connects(arena: Arena) -> int:
    """CONNECT streams the engine asked about in this attack."""
    return sum(g.kind == "ConnectRequested" for g in arena.host.events()[arena.mark :] if g.tag == arena.tag)


def turned_down(arena: Arena, peer: Peer, stream: int) -> str:
    """The stream is answered 400 or reset with PROTOCOL_ERROR, never decided; the tunnel lives on."""
    while not any(f.stream == stream and (f.kind == Type.RST_STREAM or f.ends_stream) for f in peer.pending):
        assert peer.pump(3), "nothing came"
        assert not peer.ending.closed, f"the whole connection ended: {peer.ending.goaway}"
    first = next(f for f in peer.pending if f.stream == stream)
    if first.kind == Type.HEADERS:
        assert peer.fields(first)[":status"] == "400"
        how = "400"
    else:
        assert first.code == Code.PROTOCOL_ERROR
        how = "reset"
    assert connects(arena) == 0
    assert arena.endings() == {}
    assert arena.counted("bad_requests") == 1
    peer.pending.clear()
    good = peer.tunnel(arena.echo_authority)
    peer.echo(good, b"the tunnel lives")
    return how


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "connect", "CONNECTX"])
def test_non_connect(arena: Arena, method: str) -> None:
    peer = arena.peer()
    stream = peer.next_stream()
    fields = [(":method", method), (":scheme", "https"), (":path", "/"), (":authority", arena.echo_authority)]
    peer.send(frames.headers(stream, literals(*fields), end=method == "GET"))
    assert turned_down(arena, peer, stream) == "400"


@pytest.mark.parametrize(
    "fields",
    [
        [CONNECT, AUTHORITY, (":scheme", "https")],
        [CONNECT, AUTHORITY, (":path", "/")],
        [CONNECT, AUTHORITY, (":scheme", "https"), (":path", "/"), (":protocol", "websocket")],
        [CONNECT],
        [AUTHORITY],
        [],
    ],
    ids=["scheme", "path", "extended_connect", "no_authority", "no_method", "nothing"],
)
def test_connect_with_scheme_or_path(arena: Arena, fields: list[tuple[str, str]]) -> None:
    peer = arena.peer()
    stream = peer.next_stream()
    peer.send(frames.headers(stream, literals(*fields)))
    turned_down(arena, peer, stream)


@pytest.mark.parametrize(
    "fields",
    [
        [CONNECT, AUTHORITY, ("x-a", "b\r\nx-c: d")],
        [CONNECT, AUTHORITY, ("x-a", "b\nc")],
        [CONNECT, AUTHORITY, ("x-a", "b\0c")],
        [CONNECT, AUTHORITY, ("x\r\ny", "b")],
        [CONNECT, AUTHORITY, ("X-Upper", "b")],
        [CONNECT, AUTHORITY, ("", "b")],
        [CONNECT, AUTHORITY, ("x y", "b")],
        [CONNECT, AUTHORITY, ("x:y", "b")],
        [CONNECT, AUTHORITY, ("x-a", " lead")],
        [CONNECT, AUTHORITY, ("x-a", "trail\t")],
        [CONNECT, AUTHORITY, AUTHORITY],
        [CONNECT, CONNECT, AUTHORITY],
        [CONNECT, ("x-a", "b"), AUTHORITY],
        [CONNECT, AUTHORITY, (":unknown", "b")],
        [CONNECT, AUTHORITY, (":status", "200")],
        [CONNECT, AUTHORITY, ("connection", "keep-alive")],
        [CONNECT, AUTHORITY, ("transfer-encoding", "chunked")],
        [CONNECT, AUTHORITY, ("te", "gzip")],
        [CONNECT, AUTHORITY, ("keep-alive", "5")],
        [CONNECT, AUTHORITY, ("proxy-connection", "close")],
        [CONNECT, AUTHORITY, ("upgrade", "h2c")],
        [CONNECT, AUTHORITY, ("x-a", "b\x7fc")],
        [CONNECT, AUTHORITY, ("x-\x80", "b")],
        [CONNECT, (":authority", "10.0.0.1:80\r\nx: y")],
        [CONNECT, (":authority", "10.0.0.1:80\0")],
    ],
    ids=[
        *("crlf", "lf", "nul", "crlf_in_name", "upper_case", "empty_name", "space_in_name", "colon_in_name"),
        *("leading_space", "trailing_tab", "two_authorities", "two_methods", "pseudo_after_regular"),
        *("unknown_pseudo", "response_pseudo", "connection", "transfer_encoding", "te"),
        *("keep_alive", "proxy_connection", "upgrade", "del_in_value", "high_octet_in_name"),
        *("crlf_in_authority", "nul_in_authority"),
    ],
)
def test_header_injection(arena: Arena, fields: list[tuple[str, str]]) -> None:
    peer = arena.peer()
    stream = peer.next_stream()
    peer.send(frames.headers(stream, literals(*fields)))
    turned_down(arena, peer, stream)


def test_connect_that_ends_at_once_is_a_half_close(arena: Arena) -> None:
    """END_STREAM on the CONNECT: an application that only reads. The echo server sees the end and ends too."""
    peer = arena.peer()
    stream = peer.request(arena.echo_authority, end=True)
    assert peer.status(stream) == 200
    peer.expect(Type.DATA, stream, where=lambda f: f.ends_stream)


def test_data_before_the_answer_is_kept(arena: Arena) -> None:
    """A client may send before the 200 (our own does not)."""
    peer = arena.peer()
    stream = peer.next_stream()
    peer.send(
        frames.headers(stream, frames.connect_block(arena.echo_authority)), frames.data(stream, b"early")
    )
    assert peer.status(stream) == 200
    assert peer.read_exactly(stream, 5) == b"early"


@pytest.mark.parametrize(
    "baggage",
    ["k8s.namespace.name=" + "x" * 15_000, "%%%=%zz,%,=,,,=%0a" * 100, "\x80\xff" * 50],
    ids=["15k", "bad_escapes", "high_octets"],
)
def test_baggage_bomb(arena: Arena, baggage: str) -> None:
    """Metadata never decides whether a tunnel works; it arrives as it was sent."""
    peer = arena.peer()
    block = frames.connect_block(arena.echo_authority) + literals((b"baggage", baggage.encode("latin-1")))
    peer.send(frames.headers(1, block))
    assert peer.status(1) == 200
    peer.echo(1, b"works")
    (asked,) = (
        g.event
        for g in arena.host.events()[arena.mark :]
        if g.kind == "ConnectRequested" and g.tag == arena.tag
    )
    assert dict(asked.headers)["baggage"] == baggage


def test_every_field_arrives_in_order(arena: Arena) -> None:
    fields = [("baggage", "a=b"), ("baggage", "c=d"), ("forwarded", 'for="10.0.0.9:1"'), ("x-other", "")]
    peer = arena.peer()
    peer.tunnel(arena.echo_authority, *fields)
    (asked,) = (
        g.event
        for g in arena.host.events()[arena.mark :]
        if g.kind == "ConnectRequested" and g.tag == arena.tag
    )
    assert list(asked.headers) == fields
    assert asked.method == "CONNECT"
    assert asked.authority == arena.echo_authority
    assert asked.peer_identity == arena.client.uri
    assert asked.local == arena.hbone


@pytest.mark.parametrize(
    ("status", "block"),
    [
        ("no status", literals(("x-a", "b"))),
        ("two", literals((":status", "200"), (":status", "200"))),
        ("text", literals((":status", "ok"))),
        ("2000", literals((":status", "2000"))),
        ("plus", literals((":status", "+20"))),
        ("pseudo after regular", literals(("x-a", "b"), (":status", "200"))),
        ("request pseudo", literals((":status", "200"), (":path", "/"))),
        ("upper case", literals((":status", "200"), ("X-A", "b"))),
    ],
    ids=str,
)
def test_malformed_answer_to_our_connect(arena: Arena, status: str, block: bytes) -> None:
    """Never taken for 200."""
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    peer = arena.accept(server)
    peer.start()
    stream = peer.expect(Type.HEADERS).stream
    peer.send(frames.headers(stream, block), frames.data(stream, b"not for the application"))
    app.settimeout(5)
    with pytest.raises(ConnectionResetError):
        app.recv(100)
    arena.ended_by({"peer_protocol"})


def test_interim_answers_without_end(arena: Arena) -> None:
    """They serve nothing here: the connection ends over them, and the request, of which nothing was relayed, goes into
    another one."""
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    peer = arena.accept(server)
    peer.start()
    stream = peer.expect(Type.HEADERS).stream
    peer.flood(frames.headers(stream, literals((":status", "103"))) for _ in range(2000))
    assert peer.wait_end().goaway == Code.ENHANCE_YOUR_CALM
    assert arena.counted("abuse_glitches") == 1
    peer = arena.accept(server)
    peer.start()
    stream = peer.expect(Type.HEADERS).stream
    peer.send(frames.headers(stream, literals((":status", "200"))), frames.data(stream, b"at last"))
    assert app.recv(7) == b"at last"


def test_interim_answers_are_passed_over(arena: Arena) -> None:
    """103 then 200 is legal (RFC 9113 8.1)."""
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    peer = arena.accept(server)
    peer.start()
    stream = peer.expect(Type.HEADERS).stream
    for status in ("103", "200"):
        peer.send(frames.headers(stream, literals((":status", status))))
    peer.send(frames.data(stream, b"welcome"))
    assert app.recv(7) == b"welcome"
