"""Ends of connections: each side's by itself, in every order, too late, and by reset."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from hbone.engine import Closed
from tests.support import halfclose, patterns, servers
from tests.support.arena import CLIENT_ID, Arena, assert_reset
from tests.support.enginehost import Address, Deliver, TunnelTo
from tests.support.ports import address, wait_until


def through_both(arena: Arena, application: Address) -> Address:
    """Where to connect to reach this application by two engines."""
    arena.rule(Deliver(application))
    return arena.host.listen("OUTBOUND", arena.via, TunnelTo(arena.hbone, (arena.server.uri,), CLIENT_ID))


ENDS = ("client", "server")
SIZES = (0, 70_000, 3_000_000)


@pytest.mark.parametrize("first", ENDS)
@pytest.mark.parametrize("size", SIZES)
def test_half_close_matrix(arena: Arena, first: str, size: int) -> None:
    """FIN from one side, then data the other way, then its FIN: every octet, then a clean end, both ways."""
    got: dict[str, bytes | BaseException] = {}
    come, done = threading.Event(), threading.Event()
    payload = patterns.octets(1, size)

    def play(sock: socket.socket, mine: str) -> None:
        try:
            if mine == first:
                patterns.write_in_pieces(sock, payload, 1)
                got[mine] = patterns.read_all(sock, 2)
            else:
                got[mine] = patterns.read_all(sock, 3)
                patterns.write_in_pieces(sock, payload[::-1], 4)
        except OSError as problem:
            got[mine] = problem

    def handler(sock: socket.socket) -> None:
        come.set()
        play(sock, "server")
        done.set()

    with servers.Server(handler) as server:
        app = arena.app(through_both(arena, server.address))
        app.settimeout(30)
        play(app, "client")
        assert done.wait(60)
    other = ENDS[first == "client"]
    assert got[other] == payload
    assert got[first] == payload[::-1]
    assert arena.endings() == {}


@pytest.mark.parametrize("order", halfclose.ORDERS)
@pytest.mark.parametrize("size", [1, 300_000])
def test_half_close_matrix_of_all_six_orders(arena: Arena, order: str, size: int) -> None:
    with halfclose.application() as listener:
        client = arena.app(through_both(arena, address(listener)))
        with halfclose.meet(client, listener) as (ours, theirs):
            halfclose.play(order, ours, theirs, size)
    for tag in (arena.tag, arena.via):
        closed = arena.host.wait(Closed, tag=tag, since=arena.mark)
        assert arena.host.slug(closed.reason_code) == "ok"


@pytest.mark.parametrize("who", ENDS)
def test_half_closed_for_too_long(arena: Arena, who: str) -> None:
    """One side ended, the other never does: reset at the half-close deadline, with its reason."""

    def handler(sock: socket.socket) -> None:
        if who == "server":
            sock.shutdown(socket.SHUT_WR)

    with servers.Server(handler) as server:
        app = arena.app(through_both(arena, server.address))
        if who == "client":
            app.shutdown(socket.SHUT_WR)
        else:
            app.settimeout(30)
            assert app.recv(1) == b""
        wait_until(lambda: bool(arena.endings()), "the half-close deadline of 3 s")
        assert set(arena.endings()) <= {"half_close_timeout", "peer_reset"}


@pytest.mark.parametrize("who", ENDS)
def test_reset_stays_a_reset(arena: Arena, who: str) -> None:
    """An abort on one side is an abort on the other, never a clean end."""
    linger = struct.pack("ii", 1, 0)
    seen: list[object] = []
    come, go = threading.Event(), threading.Event()

    def handler(sock: socket.socket) -> None:
        sock.recv(1)
        come.set()
        if who == "server":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            sock.close()
        else:
            try:
                seen.append(sock.recv(1))
            except OSError as problem:
                seen.append(problem)
            go.set()

    with servers.Server(handler) as server:
        app = arena.app(through_both(arena, server.address))
        app.sendall(b"x")
        assert come.wait(60)
        if who == "server":
            assert_reset(app)
        else:
            app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            app.close()
            assert go.wait(60)
            assert isinstance(seen[0], ConnectionResetError), f"the application saw {seen[0]!r}"
