"""Before the first frame: garbage and drip (1, 2)."""

from __future__ import annotations

import random
import time

import pytest

from tests.support import frames, tls13
from tests.support.arena import Arena
from tests.support.frames import Code

CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(194)


@pytest.mark.parametrize(
    "garbage",
    [
        random.Random(1).randbytes(64),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        CLIENT_HELLO,
        frames.PREFACE[:-1] + b"\r" + frames.settings(),
        frames.settings() + frames.PREFACE,
    ],
    ids=["random", "http1", "tls_in_tls", "last_octet_wrong", "settings_first"],
)
def test_preface_garbage_ends_the_connection(arena: Arena, garbage: bytes) -> None:
    peer = arena.dial()
    peer.send(garbage)
    end = peer.wait_end()
    assert end.closed
    assert end.goaway in (None, Code.PROTOCOL_ERROR)
    arena.only_failure("peer_protocol")


def test_preface_garbage_without_end_is_not_collected(arena: Arena) -> None:
    before = arena.host.rss()
    peer = arena.dial()
    sent = peer.flood(random.Random(2).randbytes(16_384) for _ in range(2000))
    assert peer.wait_end().closed
    assert sent < 2000
    assert arena.host.rss() - before < 1 << 20
    arena.only_failure("peer_protocol")


def test_first_frame_after_preface_has_to_be_settings(arena: Arena) -> None:
    peer = arena.dial()
    peer.send(frames.PREFACE + frames.ping())
    end = peer.wait_end()
    assert end.closed
    assert end.goaway == Code.PROTOCOL_ERROR
    arena.only_failure("peer_protocol")


@pytest.mark.parametrize("silent", [True, False], ids=["nothing", "octet_by_octet"])
def test_preface_drip_ends_at_the_preface_deadline(arena: Arena, silent: bool) -> None:
    peer = arena.dial()
    peer.polite = False  # an acknowledgement would be garbage here
    start, at = time.monotonic(), 0
    while not peer.ending.closed and time.monotonic() - start < 30:
        if not silent and at < len(frames.PREFACE) - 1:
            peer.send(frames.PREFACE[at : at + 1])
            at += 1
        if not peer.pump(0.1):
            break
    assert peer.ending.closed
    assert 0.8 < time.monotonic() - start < 30  # preface_timeout is 1 s here
    arena.only_failure("peer_protocol")


def test_preface_in_single_octet_records_is_fine(arena: Arena) -> None:
    peer = arena.dial()
    peer.polite = False
    hello = frames.PREFACE + frames.settings()
    for octet in hello:
        peer.send_record(tls13.APPLICATION, bytes([octet]))
    stream = peer.tunnel(arena.echo_authority)
    peer.echo(stream, b"after all")
    assert arena.endings() == {}
