"""A session cut anywhere means the same (22)."""

from __future__ import annotations

import itertools
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import frames
from tests.support.arena import Arena
from tests.support.frames import Type
from tests.support.peer import Peer

QUIET = (Type.SETTINGS, Type.WINDOW_UPDATE, Type.PING)


def session(authority: str) -> bytes:
    """A client's whole life: two tunnels, padding, CONTINUATION, unknown frames, half close, reset."""
    block = frames.connect_block(authority, ("baggage", "k8s.namespace.name=a"))
    return b"".join(
        [
            frames.PREFACE,
            frames.settings({4: 70_000}),
            frames.settings_ack(),
            frames.window_update(0, 100_000),
            frames.headers(1, block[:20], end_headers=False),
            frames.continuation(1, block[20:], end_headers=True),
            frames.data(1, b"hello"),
            frames.frame(0xAB, 3, 0, b"unknown"),
            frames.priority(3, 1),
            frames.headers(3, frames.connect_block(authority)),
            frames.data(3, b"padded", pad=9),
            frames.ping(b"12345678"),
            frames.data(1, b" world", end=True),
            frames.data(3, b"!", end=True, pad=0),
        ]
    )


def outcome(peer: Peer) -> dict[int, tuple[str, bytes, bool]]:
    """What came back on each stream: status, octets, whether it ended; waits for both ends."""
    deadline = time.monotonic() + 5
    while sum(f.ends_stream or f.kind == Type.RST_STREAM for f in peer.received) < 2:
        assert time.monotonic() < deadline, f"not finished: {[f.kind for f in peer.received]}"
        assert peer.pump(5), f"ended early: {peer.ending}"
    found: dict[int, tuple[str, bytes, bool]] = {}
    for stream in (1, 3):
        mine = [f for f in peer.received if f.stream == stream and f.kind not in QUIET]
        status = peer.fields(mine[0])[":status"]
        octets = b"".join(f.payload for f in mine if f.kind == Type.DATA)
        found[stream] = (status, octets, mine[-1].ends_stream)
    return found


EXPECTED = {1: ("200", b"hello world", True), 3: ("200", b"padded!", True)}


def run(arena: Arena, pieces: list[bytes], *, as_segments: bool) -> None:
    """Play the session in pieces: each a record of its own, or TLS records cut into TCP segments."""
    with Peer.dial(arena.hbone, arena.client) as peer:
        peer.polite = False
        for piece in pieces:
            if as_segments:
                peer.send_raw(piece)
                peer.pump(0.0005)
            else:
                peer.send(piece)
        assert outcome(peer) == EXPECTED


def cut(octets: bytes, places: list[int]) -> list[bytes]:
    """The octets in pieces."""
    marks = [0, *sorted(set(places)), len(octets)]
    return [octets[a:b] for a, b in itertools.pairwise(marks) if a != b]


def test_split_invariance_of_two_records(arena: Arena) -> None:
    octets = session(arena.echo_authority)
    for place in range(1, len(octets)):
        run(arena, cut(octets, [place]), as_segments=False)
    assert arena.endings() == {}


def test_split_invariance_of_octet_records(arena: Arena) -> None:
    octets = session(arena.echo_authority)
    run(arena, [octets[i : i + 1] for i in range(len(octets))], as_segments=False)


def test_split_invariance_of_octet_segments(arena: Arena) -> None:
    with Peer.dial(arena.hbone, arena.client) as peer:
        peer.polite = False
        sealed = peer.seal(session(arena.echo_authority))
        for at in range(len(sealed)):
            peer.send_raw(sealed[at : at + 1])
            peer.pump(0.0002)
        assert outcome(peer) == EXPECTED


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.integers(1, 400), max_size=12))
def test_split_invariance_at_random(arena: Arena, places: list[int]) -> None:
    octets = session(arena.echo_authority)
    run(arena, cut(octets, [p for p in places if p < len(octets)]), as_segments=False)
