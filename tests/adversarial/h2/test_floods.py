"""Cheap frames in great number (5, 6, 11, 12, 13, 14 and 23): a budget for each, then ENHANCE_YOUR_CALM."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.adversarial.h2.test_framing import conn_error
from tests.support import frames, sanitized, servers
from tests.support.arena import CLIENT_ID, Arena
from tests.support.enginehost import Deliver, Hold, TunnelTo
from tests.support.frames import Code, Setting, Type
from tests.support.peer import Peer
from tests.support.ports import wait_until


def calmed(arena: Arena, peer: Peer, pieces: Iterable[bytes], *also: str, deaf: bool = False) -> int:
    """Flood; the engine must answer ENHANCE_YOUR_CALM and close. How many pieces it let us send."""
    sent = peer.flood(pieces, deaf=deaf)
    conn_error(arena, peer, Code.ENHANCE_YOUR_CALM, slug="peer_abuse", also=also)
    return sent


def connects(arena: Arena) -> int:
    """CONNECT streams the engine asked about in this attack."""
    return sum(g.kind == "ConnectRequested" for g in arena.host.events()[arena.mark :] if g.tag == arena.tag)


def test_rapid_reset(arena: Arena) -> None:
    """CVE-2023-44487: HEADERS and RST_STREAM at once, 100,000 times."""
    with servers.sink() as app:
        arena.rule(Deliver(app.address))
        peer = arena.peer()
        block = frames.connect_block("10.0.0.1:80")
        pairs = (frames.headers(n, block) + frames.rst(n) for n in range(1, 200_001, 2))
        before = arena.host.cpu()
        calmed(arena, peer, pairs, "peer_reset")
        spent = arena.host.cpu() - before
        assert connects(arena) <= 300
        dials = len(app.connections)
        assert dials <= 300
        peer.pump(0.2)
        assert len(app.connections) <= dials + 1, "upstream dials after the cut"
        assert sanitized.kind() or spent < 0.2, f"{spent:.3f} CPU s"


def test_resets_of_living_tunnels_in_moderation_are_fine(arena: Arena) -> None:
    """An application that gives up often is no attacker."""
    peer = arena.peer()
    for _ in range(60):
        stream = peer.tunnel(arena.echo_authority)
        peer.echo(stream, b"x")
        peer.send(frames.rst(stream, Code.CANCEL))
    stream = peer.tunnel(arena.echo_authority)
    peer.echo(stream, b"still here")


def test_an_application_that_resets_often_does_not_hurt_its_neighbours(arena: Arena) -> None:
    """Health checks and load generators end connections by RST: hundreds at once through one pooled tunnel must
    not cost the others their tunnel."""
    rule = TunnelTo(arena.hbone, (arena.server.uri,), CLIENT_ID, arena.echo_authority)
    target = arena.host.listen("OUTBOUND", arena.via, rule)
    neighbour = arena.app(target)
    for _ in range(500):
        with socket.create_connection(target, timeout=30) as app:
            app.sendall(b"x")
            assert app.recv(1) == b"x"
            app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        neighbour.sendall(b"y")
        assert neighbour.recv(1) == b"y"
    assert arena.counted("tunnel_failures") == 0


@pytest.mark.parametrize(
    "provoke",
    [
        lambda n: frames.window_update(n, 0),
        lambda n: frames.window_update(n, 0x7FFFFFFF),
        lambda n: frames.headers(n, frames.literals(("x-a", "b"))),
    ],
    ids=["zero_window_update", "window_overflow", "second_headers"],
)
def test_made_you_reset(arena: Arena, provoke: Callable[[int], bytes]) -> None:
    """CVE-2025-8671: make us send the RST_STREAM; that counts as the peer's doing."""
    with servers.sink() as app:
        arena.rule(Deliver(app.address))
        peer = arena.peer()
        block = frames.connect_block("10.0.0.1:80")
        pieces = (frames.headers(n, block) + provoke(n) for n in range(1, 20_001, 2))
        calmed(arena, peer, pieces, "peer_protocol")
        resets = [f for f in peer.received if f.kind == Type.RST_STREAM]
        assert len(resets) <= 150
        assert connects(arena) <= 300


@pytest.mark.parametrize("deaf", [False, True], ids=["reading", "not_reading"])
def test_settings_flood(arena: Arena, deaf: bool) -> None:
    peer = arena.peer()
    peer.polite = False
    calmed(
        arena,
        peer,
        (frames.settings({Setting.INITIAL_WINDOW_SIZE: 65_535 + n % 7}) for n in range(10_000)),
        deaf=deaf,
    )
    acks = [f for f in peer.received if f.kind == Type.SETTINGS and f.flags & frames.ACK]
    assert len(acks) <= 64


def test_settings_with_too_many_entries(arena: Arena) -> None:
    peer = arena.peer()
    peer.send(frames.settings([(0x100 + n, n) for n in range(1000)]))
    conn_error(arena, peer, Code.ENHANCE_YOUR_CALM, slug="peer_abuse")


def test_settings_never_ack(arena: Arena) -> None:
    peer = arena.dial()
    peer.polite = False
    start = time.monotonic()
    peer.start()
    end = peer.wait_end()
    assert end.closed
    assert end.goaway == Code.SETTINGS_TIMEOUT
    assert 0.8 < time.monotonic() - start < 30  # settings_timeout is 1 s here
    arena.only_failure("peer_protocol")


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({Setting.ENABLE_PUSH: 2}, Code.PROTOCOL_ERROR),
        ({Setting.INITIAL_WINDOW_SIZE: 1 << 31}, Code.FLOW_CONTROL_ERROR),
        ({Setting.MAX_FRAME_SIZE: 16_383}, Code.PROTOCOL_ERROR),
        ({Setting.MAX_FRAME_SIZE: 1 << 24}, Code.PROTOCOL_ERROR),
    ],
    ids=["enable_push_2", "window_2_31", "frame_16383", "frame_2_24"],
)
def test_settings_out_of_range(arena: Arena, values: dict[int, int], code: Code) -> None:
    peer = arena.peer()
    peer.send(frames.settings(values))
    conn_error(arena, peer, code)


@pytest.mark.parametrize("deaf", [False, True], ids=["reading", "not_reading"])
def test_ping_flood(arena: Arena, deaf: bool) -> None:
    peer = arena.peer()
    calmed(arena, peer, (frames.ping(n.to_bytes(8, "big")) for n in range(10_000)), deaf=deaf)
    acks = [f for f in peer.received if f.kind == Type.PING and f.flags & frames.ACK]
    assert len(acks) <= 64


def test_unasked_ping_answers_are_a_flood_too(arena: Arena) -> None:
    peer = arena.peer()
    calmed(arena, peer, (frames.ping(ack=True) for _ in range(10_000)))


def test_pings_are_answered_with_their_payload(arena: Arena) -> None:
    peer = arena.peer()
    for n in range(20):
        peer.send(frames.ping(n.to_bytes(8, "big")))
        got = peer.expect(Type.PING, where=lambda f: bool(f.flags & frames.ACK))
        assert got.payload == n.to_bytes(8, "big")


@pytest.mark.parametrize("size", [0, 1], ids=["empty", "one_octet"])
def test_empty_and_tiny_data(arena: Arena, size: int) -> None:
    with servers.sink() as app:
        arena.rule(Deliver(app.address))
        peer = arena.peer()
        stream = peer.tunnel("10.0.0.1:80")
        piece = frames.data(stream, b"x" * size)
        sent = calmed(arena, peer, (piece for _ in range(1_000_000)))
        assert sent < 1_000_000


@pytest.mark.parametrize(("size", "pad"), [(0, 255), (0, 0), (1, 31)])
def test_padding_abuse_hides_no_flood(arena: Arena, size: int, pad: int) -> None:
    """Frames that bring nothing, or next to nothing, do so with padding as well (18)."""
    with servers.sink() as app:
        arena.rule(Deliver(app.address))
        peer = arena.peer()
        stream = peer.tunnel("10.0.0.1:80")
        pieces = frames.data(stream, b"x" * size, pad=pad) * 1000
        assert calmed(arena, peer, (pieces for _ in range(3000))) < 3000
        assert arena.counted("abuse_tiny_data" if size else "abuse_empty_data") == 1


def test_padding_is_credited_and_no_flood_in_moderation(arena: Arena) -> None:
    """255 octets of padding around each octet of data (18): all of it is credited back, and the data arrives."""
    count = 50_000
    with servers.sink() as app:
        arena.rule(Deliver(app.address))
        peer = arena.peer()
        stream = peer.tunnel("10.0.0.1:80")
        peer.flood(frames.data(stream, b"x", pad=255) for _ in range(count))
        wait_until(lambda: app.bytes == count, "all data")


def test_small_messages_of_an_honest_application_are_fine(arena: Arena) -> None:
    """Keystrokes and chatty protocols: thousands of single octets, each answered before the next."""
    peer = arena.peer()
    peer.generous = True
    stream = peer.tunnel(arena.echo_authority)
    for n in range(3000):
        peer.echo(stream, bytes([n & 255]))
    assert arena.endings() == {}


def test_empty_frame_that_ends_the_stream_is_fine(arena: Arena) -> None:
    """Also in numbers: a thousand tunnels that end with an empty DATA frame."""
    peer = arena.peer()
    peer.generous = True
    for _ in range(1000):
        stream = peer.tunnel(arena.echo_authority)
        peer.send(frames.data(stream, b"x"), frames.data(stream, end=True))
        assert peer.expect(Type.DATA, stream).payload == b"x"
        assert peer.expect(Type.DATA, stream, where=lambda f: f.ends_stream).payload == b""
    assert arena.endings() == {}


def priorities(stream: int) -> Iterator[bytes]:
    """PRIORITY without end."""
    for n in range(100_000):
        yield frames.priority(stream, depends=n % 1000 * 2 + 3)


def test_priority_flood(arena: Arena) -> None:
    peer = arena.peer()
    stream = peer.tunnel(arena.echo_authority)
    calmed(arena, peer, priorities(stream))


def test_priority_flood_on_idle_streams(arena: Arena) -> None:
    peer = arena.peer()
    calmed(arena, peer, (frames.priority(n) for n in range(1, 200_001, 2)))


def test_window_update_abuse_flood(arena: Arena) -> None:
    peer = arena.peer()
    calmed(arena, peer, (frames.window_update(0, 1) for _ in range(100_000)))


def test_window_update_abuse_flood_on_a_closed_stream(arena: Arena) -> None:
    peer = arena.peer()
    stream = peer.tunnel(arena.echo_authority)
    peer.send(frames.rst(stream))
    calmed(arena, peer, (frames.window_update(stream, 1) for _ in range(100_000)), "peer_reset")


def test_unknown_and_push_unknown_frame_flood(arena: Arena) -> None:
    peer = arena.peer()
    calmed(arena, peer, (frames.frame(0xEE, 0, 0, b"?") for _ in range(100_000)))


def test_rst_flood_on_closed_streams(arena: Arena) -> None:
    peer = arena.peer()
    stream = peer.tunnel(arena.echo_authority)
    peer.send(frames.rst(stream))
    calmed(arena, peer, (frames.rst(stream) for _ in range(100_000)), "peer_reset")


def test_connect_flood_without_verdicts(arena: Arena) -> None:
    """Streams pile up while the owner thinks: never more than the advertised limit of questions."""
    arena.rule(Hold())
    peer = arena.peer()
    block = frames.connect_block("10.0.0.1:80")
    peer.flood(frames.headers(n, block) for n in range(1, 20_001, 2))
    peer.wait_end()
    assert connects(arena) <= 200
    peer.close()


def test_goaway_flood(arena: Arena) -> None:
    """Repeated GOAWAY is legal once or twice; not for ever."""
    peer = arena.peer()
    peer.tunnel(arena.echo_authority)
    sent = peer.flood(frames.goaway(0, debug=b"bye" * 100) for _ in range(100_000))
    assert sent < 100_000
    assert peer.wait_end().closed
    arena.ended_by({"peer_abuse"})
