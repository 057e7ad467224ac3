"""Header compression as a weapon (7, 9, 10) and header lists too large to hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.adversarial.h2.test_framing import conn_error
from tests.support import frames
from tests.support.arena import Arena
from tests.support.frames import Code, Type, literals
from tests.support.peer import Peer

METHOD = literals((":method", "CONNECT"))


def peak_rss(pid: int) -> int:
    """Highest resident size since `reset_peak`, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (text for text in lines if text.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def reset_peak(pid: int) -> int:
    """Start measuring the peak anew; the resident size now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_rss(pid)


@pytest.mark.parametrize("size", [0, 1, 1000], ids=["empty", "octet", "1k"])
def test_continuation_flood(arena: Arena, size: int) -> None:
    """Never more than a few CONTINUATION frames or 16 KiB: the end comes although we send no more than 40."""
    peer = arena.peer()
    block = literals(("x-a", "b" * size))[:size]
    octets = frames.headers(1, METHOD, end_headers=False) + frames.continuation(1, block) * 40
    peer.send(octets)
    conn_error(arena, peer, Code.ENHANCE_YOUR_CALM, slug="peer_abuse")
    assert not any(
        g.kind == "ConnectRequested" for g in arena.host.events()[arena.mark :] if g.tag == arena.tag
    )


def test_continuation_in_moderation_is_fine(arena: Arena) -> None:
    peer = arena.peer()
    block = frames.connect_block(arena.echo_authority, ("baggage", "k8s.namespace.name=default"))
    third = len(block) // 3
    peer.send(frames.headers(1, block[:third], end_headers=False))
    peer.send(frames.continuation(1, block[third : 2 * third]))
    peer.send(frames.continuation(1, block[2 * third :], end_headers=True))
    assert peer.status(1) == 200
    peer.echo(1, b"x")


def test_hpack_bomb(arena: Arena) -> None:
    """One large table entry, referred to thousands of times: 4 KiB * 12,000."""
    peer = arena.peer()
    before = reset_peak(arena.host.pid)
    entry = b"\x40\x01x" + b"\x7f" + bytes([(3900 - 127) & 127 | 128, (3900 - 127) >> 7]) + b"v" * 3900
    block = METHOD + entry + b"\xbe" * 12_000
    peer.send(frames.headers(1, block))
    conn_error(arena, peer, Code.ENHANCE_YOUR_CALM, slug="peer_abuse")
    assert peak_rss(arena.host.pid) - before < 1 << 20


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",
        b"\xff\x80\x80\x01",
        b"\xbe",
        b"\x00\x81\xff\x01a",
        b"\x00\x84\xff\xff\xff\xff\x01a",
        b"\x00\x82\x1f\xff\x01a",
        b"\x00\x81\x1e\x01a",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x7f\xff\xff\xff\xff\xff\x0f",
        b"\x3f\xff\xff\x7f" + METHOD,
        METHOD + b"\x20",
        b"\x00\x7f\x80\x80\x80\x80\x10",
        b"\x00\x05ab",
        b"\x40",
        b"\xff",
    ],
    ids=[
        *(
            "index_0",
            "index_huge",
            "index_beyond_table",
            "huffman_pad_8_bits",
            "huffman_eos",
            "huffman_pad_long",
        ),
        *("huffman_pad_not_ones", "integer_overflow", "integer_overlong", "table_above_limit"),
        *("table_update_mid_block", "string_longer_than_block_huge"),
        *("string_longer_than_block", "truncated_literal", "truncated_integer"),
    ],
)
def test_hpack_bad_coding(arena: Arena, block: bytes) -> None:
    peer = arena.peer()
    peer.send(frames.headers(1, block))
    conn_error(arena, peer, Code.COMPRESSION_ERROR)


def test_bad_coding_is_noticed_on_refused_streams_too(arena: Arena) -> None:
    """The table is shared: a block of a stream we do not want has to be decoded all the same."""
    peer = arena.peer()
    peer.send(frames.headers(1, b"\x40\x03x-a\x01b" + frames.literals((":method", "GET"), (":path", "/"))))
    peer.send(frames.headers(3, frames.connect_block(arena.echo_authority) + b"\xbe"))
    assert peer.status(3) == 200
    peer.echo(3, b"x")


@pytest.mark.parametrize(
    "fields",
    [[("x-big", "v" * 17_000)], [(f"x-{n}", "v") for n in range(70)], [("x-a", "v" * 900)] * 40],
    ids=["one_field_17k", "70_fields", "36k"],
)
def test_header_list_too_large(arena: Arena, fields: list[tuple[str, str]]) -> None:
    """Refused, by status or stream or connection error, and never decided about."""
    peer = arena.peer()
    peer.send(frames.headers(1, frames.connect_block(arena.echo_authority, *fields)))
    while not peer.ending.closed and not any(f.kind in (Type.HEADERS, Type.RST_STREAM) for f in peer.pending):
        assert peer.pump(3)
    for got in peer.pending:
        if got.kind == Type.HEADERS:
            assert peer.fields(got)[":status"] in ("400", "431")
    if peer.ending.goaway is not None:
        assert peer.ending.goaway == Code.ENHANCE_YOUR_CALM
    assert not any(
        g.kind == "ConnectRequested" for g in arena.host.events()[arena.mark :] if g.tag == arena.tag
    )
    assert arena.counted("bad_requests") + arena.counted("abuse_headers") == 1


def test_our_own_encoder_respects_a_table_of_zero(arena: Arena) -> None:
    """HEADER_TABLE_SIZE 0, once acknowledged: the next block says so and needs no dynamic table (RFC 7541 4.2)."""
    server = arena.evil_server()
    app = arena.app(arena.outbound(server, headers=(("baggage", "a=b"),)))
    peer = arena.accept(server)
    peer.start({1: 0})
    first = peer.expect(Type.HEADERS)
    assert peer.fields(first)["baggage"] == "a=b"
    peer.expect(Type.SETTINGS, where=lambda f: bool(f.flags & frames.ACK))
    peer.send(frames.headers(first.stream, peer.encoder.encode([(":status", "200")])))
    peer.decoder.max_allowed_table_size = 0
    other = arena.app(app.getpeername())
    second = peer.expect(Type.HEADERS)
    assert peer.fields(second)["baggage"] == "a=b"
    other.close()


NAMES = st.sampled_from(
    ["x-a", "x-b", "baggage", "forwarded", "user-agent", "cookie", "date", "x-" + "n" * 60]
)
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=300)
# More text than the table holds, each field twice: it is moved to the table's front while some of it is still in use.
ROUND_AND_ROUND = [[("x-a", f"{n:02}" * 140) for n in range(3 * i, 3 * i + 6)] for i in range(8)]
REQUESTS = st.lists(st.lists(st.tuples(NAMES, VALUES), max_size=8), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(requests=ROUND_AND_ROUND, huffman=True, table=4096)
@given(requests=REQUESTS, huffman=st.booleans(), table=st.sampled_from([4096, 0, 100, 512]))
def test_fields_of_another_encoder_arrive_as_they_were(
    arena: Arena, requests: list[list[tuple[str, str]]], huffman: bool, table: int
) -> None:
    """The `hpack` library encodes with its dynamic table; the engine's decoder must agree, request after request."""
    mark = len(arena.host.events())
    with Peer.dial(arena.hbone, arena.client) as peer:
        peer.start()
        peer.encoder.header_table_size = table
        for fields in requests:
            stream = peer.next_stream()
            listed = [(":method", "CONNECT"), (":authority", arena.echo_authority), *fields]
            peer.send(frames.headers(stream, peer.encoder.encode(listed, huffman=huffman)))
            assert peer.status(stream) == 200
        events = arena.host.events()[mark:]
        asked = [g.event for g in events if g.kind == "ConnectRequested" and g.tag == arena.tag]
        assert [list(a.headers) for a in asked] == requests
