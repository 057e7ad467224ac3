"""Every limit by its counter: what is allowed passes, what is too much moves this counter and no other."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator

import pytest

from hbone import _engine
from tests.support import frames, servers
from tests.support.arena import Arena
from tests.support.enginehost import Deliver
from tests.support.frames import Setting, literals
from tests.support.peer import Peer
from tests.support.ports import wait_until

BLOCK = frames.connect_block("10.0.0.1:80")
Pieces = Callable[[int, int], Iterable[bytes]]  # (a living stream, how many)


def repeated(piece: Callable[[int], bytes]) -> Pieces:
    """The same for the living stream, so many times."""
    return lambda stream, n: (piece(stream) for _ in range(n))


def opened(piece: Callable[[int], bytes]) -> Pieces:
    """A new stream each, and this behind it."""
    return lambda stream, n: (
        frames.headers(i, BLOCK) + piece(i) for i in range(stream + 2, stream + 2 * n + 2, 2)
    )


def continued(_: int, n: int) -> Iterator[bytes]:
    yield frames.headers(101, BLOCK[:4], end_headers=False)
    for i in range(n - 1):
        yield frames.continuation(101, BLOCK[4 + i : 5 + i])
    yield frames.continuation(101, BLOCK[3 + n :], end_headers=True)


def late(stream: int, n: int) -> Iterator[bytes]:
    yield frames.headers(stream + 2, BLOCK) + frames.rst(stream + 2)
    for _ in range(n):
        yield frames.data(stream + 2, b"x" * 64)


# counter: how many are allowed, and what they are. Rates are checked with their burst: time allows more, never less.
LIMITS: dict[str, tuple[int, Pieces]] = {
    "abuse_pings": (50, repeated(lambda _: frames.ping())),
    "abuse_settings": (
        9,
        repeated(lambda _: frames.settings({Setting.MAX_FRAME_SIZE: 20_000})),
    ),  # and the first
    "abuse_empty_data": (50, repeated(frames.data)),
    "abuse_late_data": (4096, late),
    "abuse_window_updates": (900, repeated(lambda stream: frames.window_update(stream, 1))),
    "abuse_priority": (100, repeated(frames.priority)),
    "abuse_continuation": (4, continued),
    "abuse_glitches": (100, repeated(lambda _: frames.frame(0xEE, 0, 0, b"?"))),
    "abuse_resets_provoked": (100, opened(lambda n: frames.window_update(n, 0))),
}


def moved(arena: Arena) -> dict[str, int]:
    """The counters of abuse that this attack has moved."""
    now = arena.host.stats()
    return {
        name: n - arena.stats[name] for name, n in now.items() if "abuse" in name and n > arena.stats[name]
    }


def attacked(arena: Arena, peer: Peer, pieces: Iterable[bytes], counter: str) -> None:
    peer.flood(pieces)
    assert peer.wait_end().closed
    assert moved(arena) == {counter: 1}
    arena.only_failure("peer_abuse", "peer_reset", "peer_protocol")


def test_every_counter_of_abuse_has_its_test(arena: Arena) -> None:
    elsewhere = {
        "abuse_buffer",  # tests/unit/engine/test_tunnel_endings.py
        *("abuse_resets", "abuse_short_streams", "abuse_tiny_data", "abuse_headers"),
        *("abuse_key_updates", "abuse_handshake", "abuse_control_queue"),
    }
    assert {name for name in arena.host.stats() if "abuse" in name} == elsewhere | set(LIMITS)


@pytest.mark.parametrize("counter", LIMITS)
def test_what_a_limit_allows_passes(arena: Arena, counter: str) -> None:
    with servers.sink() as sink:
        allowed, pieces = LIMITS[counter]
        arena.rule(Deliver(sink.address))
        peer = arena.peer()
        stream = peer.tunnel("10.0.0.1:80")
        peer.send(*pieces(stream, allowed))
        peer.send(frames.data(stream, b"x" * 100))
        wait_until(lambda: sink.bytes >= 100, "octets behind what is allowed")
        assert moved(arena) == {}


@pytest.mark.parametrize("counter", LIMITS)
def test_what_is_too_much_moves_its_counter_alone(arena: Arena, counter: str) -> None:
    with servers.sink() as sink:
        allowed, pieces = LIMITS[counter]
        arena.rule(Deliver(sink.address))
        peer = arena.peer()
        stream = peer.tunnel("10.0.0.1:80")
        attacked(arena, peer, pieces(stream, 10 * allowed + 1000), counter)


def test_resets_have_a_rate(arena: Arena) -> None:
    """The 201st within moments; a machine so slow that some have leaked away meets the next limit."""
    with servers.sink() as sink:
        arena.rule(Deliver(sink.address))
        peer = arena.peer()
        peer.flood(opened(frames.rst)(-1, 5000))
        assert peer.wait_end().closed
        assert moved(arena) in ({"abuse_resets": 1}, {"abuse_short_streams": 1})


def test_most_streams_must_not_be_short(arena: Arena) -> None:
    """Below the rate of resets, but after 200 of them more than half had not lived for a second."""
    with servers.sink() as sink:
        arena.rule(Deliver(sink.address))
        peer = arena.peer()
        pairs = iter(opened(frames.rst)(-1, 210))
        peer.send(*(next(pairs) for _ in range(150)))
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + 1.5, "30 resets leak away")
        attacked(arena, peer, pairs, "abuse_short_streams")


def test_tiny_frames_have_a_rate(arena: Arena) -> None:
    with servers.sink() as sink:
        arena.rule(Deliver(sink.address))
        peer = arena.peer()
        stream = peer.tunnel("10.0.0.1:80")
        peer.generous = True
        attacked(arena, peer, (frames.data(stream, b"x") * 1000 for _ in range(10_000)), "abuse_tiny_data")


@pytest.mark.parametrize(
    "block", [literals(("x-a", "v" * 140_000)), literals(("x-a", "v" * 900)) * 160], ids=["block", "list"]
)
def test_header_lists_have_a_size(arena: Arena, block: bytes) -> None:
    peer = arena.peer()
    attacked(arena, peer, [frames.headers(1, BLOCK + block)], "abuse_headers")


def test_key_updates_have_a_rate(arena: Arena) -> None:
    peer = arena.peer()
    for _ in range(16):
        peer.update_keys()
    peer.echo(peer.tunnel(arena.echo_authority), b"sixteen are fine")
    with contextlib.suppress(OSError):
        for _ in range(1000):
            peer.update_keys()
    attacked(arena, peer, [], "abuse_key_updates")


def test_a_handshake_has_a_number_of_records(arena: Arena) -> None:
    """A ClientHello of 64 KiB in records of one octet each: 2,048 records are enough for anybody."""
    peer = arena.raw()
    hello = b"\x01\x00\xff\xff\x03\x03" + bytes(3000)
    peer.send_raw(b"".join(b"\x16\x03\x01\x00\x01" + hello[i : i + 1] for i in range(len(hello))))
    wait_until(lambda: moved(arena) == {"abuse_handshake": 1}, "the counter")
    arena.only_failure("peer_abuse")


def test_answers_that_nobody_reads_have_a_size(arena: Arena) -> None:
    """Each request that is not a CONNECT is answered; a client that reads none of the answers is cut."""
    sock = socket.socket()
    for buffer in (
        socket.SO_RCVBUF,
        socket.SO_SNDBUF,
    ):  # little is under way at once, so the canary has its turns
        sock.setsockopt(socket.SOL_SOCKET, buffer, 8192)
    sock.connect(arena.hbone)
    peer = Peer(sock, server=False)
    peer.shake_hands(arena.client)
    peer.start()
    block = literals((":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "a:1"))
    requests = (frames.headers(n, block, end=True) for n in range(1, 2_000_001, 2))
    peer.flood(requests, deaf=True)
    wait_until(lambda: moved(arena) == {"abuse_control_queue": 1}, "the counter")
    arena.only_failure("peer_abuse")
    peer.close()


def test_limits_are_those_of_the_page() -> None:
    """The numbers above are the engine's own."""
    rates = {row[0].lower(): row[1] for row in _engine.BUDGET_RATES}
    counts = {row[0].lower(): row[1] for row in _engine.BUDGET_COUNTS}
    assert LIMITS["abuse_pings"][0] == rates["pings"]
    assert LIMITS["abuse_settings"][0] == rates["settings"] - 1
    assert LIMITS["abuse_empty_data"][0] == rates["empty_data"]
    assert LIMITS["abuse_late_data"][0] == rates["late_data"]
    assert LIMITS["abuse_glitches"][0] == rates["glitches"]
    assert LIMITS["abuse_priority"][0] == counts["priorities"]
    assert LIMITS["abuse_continuation"][0] == counts["continuations"]
    assert LIMITS["abuse_resets_provoked"][0] == counts["resets_provoked"]
    assert LIMITS["abuse_window_updates"][0] <= counts["window_updates_burst"]
