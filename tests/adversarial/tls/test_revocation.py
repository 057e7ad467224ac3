"""Certificates that were revoked (39): refused when they come, cut when they are there already."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support import frames
from tests.support.arena import Arena, assert_reset
from tests.support.frames import Type
from tests.support.peer import Peer, Refused
from tests.support.pki import Credential, spiffe


@pytest.fixture
def clean_lists(arena: Arena) -> Iterator[None]:
    """No list outlives its test: the engine is shared."""
    yield
    arena.host.engine("set_crls", [])


def revoke(arena: Arena, *credentials: Credential) -> None:
    serials = [credential.leaf.serial_number for credential in credentials]
    arena.host.engine("set_crls", [arena.authority.crl(*serials)])


def turned_away(hbone: tuple[str, int], credential: Credential) -> bool:
    """A new connection gets no HTTP/2."""
    try:
        with Peer.dial(hbone, credential) as peer:
            end = peer.wait_end()
            return end.closed and end.frames == []
    except Refused:
        return True


@pytest.mark.usefixtures("clean_lists")
def test_revoked_new_and_open(arena: Arena) -> None:
    """The thief's tunnel ends within a second, with all its streams; its neighbour notices nothing; and the
    thief does not come back."""
    thief = arena.authority.leaf(spiffe("thief"))
    bad, good = arena.dial(thief), arena.peer()
    bad.start()
    streams = [bad.tunnel(arena.echo_authority) for _ in range(3)]
    kept = good.tunnel(arena.echo_authority)
    for stream in streams:
        bad.echo(stream, b"before")
    began = time.monotonic()
    revoke(arena, thief)
    end = bad.wait_end()
    assert time.monotonic() - began < 30
    assert end.closed
    assert any(frame.kind == Type.GOAWAY for frame in bad.received)
    arena.wait_endings({"peer_cert_revoked": 4})  # three streams and their tunnel
    good.echo(kept, b"as before")
    assert turned_away(arena.hbone, thief)
    arena.wait_endings({"peer_cert_revoked": 5})
    assert arena.counted("revoked_inbound") == 2
    good.echo(good.tunnel(arena.echo_authority), b"new streams too")


@pytest.mark.usefixtures("clean_lists")
def test_revoked_server_new_and_open(arena: Arena) -> None:
    """The same when the engine is the client: the application's connection is reset, a new one is refused."""
    thief = arena.authority.leaf(arena.server.uri)
    server = arena.evil_server()
    target = arena.outbound(server)
    app = arena.app(target)
    peer = arena.accept(server, thief)
    peer.start()
    stream = peer.expect(Type.HEADERS).stream
    peer.send(frames.headers(stream, peer.encoder.encode([(":status", "200")])))
    app.sendall(b"before")
    assert peer.expect(Type.DATA).payload == b"before"
    revoke(arena, thief)
    assert_reset(app)
    arena.wait_endings({"peer_cert_revoked": 1})  # the flow; tunnels of the pool belong to no tag
    with socket.create_connection(target, timeout=30) as again:
        with contextlib.suppress(Refused), arena.accept(server, thief) as second:
            second.wait_end()
        assert_reset(again)
    arena.wait_endings({"peer_cert_revoked": 2})
    assert arena.counted("revoked_outbound") == 2
