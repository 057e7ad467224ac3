"""What no peer can bring about: defects of the engine itself, and the end of all stream ids (20).

A change of state that its tables do not have ends what it concerned, and nothing else. The engine under test is the
real one with one function wrapped (`tests/support/wrapped.c`), so that a peer can ask for it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from hbone import _engine
from hbone.engine import Defect
from tests.support import frames, sanitized
from tests.support.arena import Arena, Arenas
from tests.support.frames import Code, Type
from tests.support.peer import Peer
from tests.support.ports import wait_until

MACHINES = [name for name, _, _ in _engine.MACHINES]


def forbidden(machine: str, state: str) -> list[tuple[str, str]]:
    """(state, each that its table does not lead to)."""
    states, moves = next((s, m) for name, s, m in _engine.MACHINES if name == machine)
    allowed = {to for start, to, _ in moves if start == state}
    return [(state, to) for to, _ in states if to not in allowed]


def ask_for(machine: str, to: str) -> bytes:
    """The PING that has it tried."""
    states = next(s for name, s, _ in _engine.MACHINES if name == machine)
    target = [name for name, _ in states].index(to)
    return frames.ping(b"MOVE" + bytes([MACHINES.index(machine), target, 0, 0]))


def told(arena: Arena, machine: str, start: str, to: str) -> None:
    """The owner hears what was tried, once; it is counted."""
    wait_until(lambda: arena.counted("defects") == 1, "the defect is counted")
    event = arena.host.wait(Defect, since=arena.mark, timeout=30)
    assert event.detail == f"a {machine} must not go from {start} to {to}"


@pytest.fixture
def fragile(arenas: Arenas) -> Iterator[Arena]:
    with arenas.enter(extension=str(sanitized.wrapped())) as arena:
        yield arena


@pytest.mark.parametrize(
    ("machine", "start", "to"),
    [("flow", *move) for move in forbidden("flow", "RELAYING")]
    + [("stream", *move) for move in forbidden("stream", "OPEN")],
)
def test_defect_of_a_flow_ends_that_flow(fragile: Arena, machine: str, start: str, to: str) -> None:
    peer = fragile.peer()
    hurt, neighbour = peer.tunnel(fragile.echo_authority), peer.tunnel(fragile.echo_authority)
    peer.send(ask_for(machine, to))
    peer.expect_rst(hurt, Code.CONNECT_ERROR)
    told(fragile, machine, start, to)
    peer.echo(neighbour, b"the same tunnel goes on")
    fragile.wait_endings({"internal": 1}, timeout=30)


@pytest.mark.parametrize(
    ("machine", "start", "to"),
    [("tunnel", *move) for move in forbidden("tunnel", "OPEN")]
    + [("drain", *move) for move in forbidden("drain", "NO")],
)
def test_defect_of_a_tunnel_ends_that_tunnel(fragile: Arena, machine: str, start: str, to: str) -> None:
    other = fragile.peer()
    elsewhere = other.tunnel(fragile.echo_authority)
    peer = fragile.peer()
    for _ in range(2):
        peer.tunnel(fragile.echo_authority)
    peer.send(ask_for(machine, to))
    ending = peer.wait_end()
    assert ending.closed
    assert ending.goaway == Code.INTERNAL_ERROR
    told(fragile, machine, start, to)
    other.echo(elsewhere, b"another tunnel goes on")
    fragile.wait_endings({"internal": 3}, timeout=30)  # two flows and their tunnel


def test_id_exhaustion_as_client(fragile: Arena) -> None:
    """A tunnel whose stream ids run out gets no more; the next connection has another tunnel, and none fails."""
    server = fragile.evil_server()
    target = fragile.outbound(server)

    def serve(tunnel: Peer) -> socket.socket:
        app = fragile.app(target)
        stream = tunnel.expect(Type.HEADERS, timeout=30).stream
        tunnel.send(frames.headers(stream, tunnel.encoder.encode([(":status", "200")])))
        app.sendall(b"through")
        assert tunnel.read_exactly(stream, 7, timeout=30) == b"through"
        return app

    waiting = fragile.app(target)
    first = fragile.accept(server)
    first.start()
    stream = first.expect(Type.HEADERS, timeout=30).stream
    first.send(frames.ping(b"LAST\0\0\0\0"))
    first.expect(Type.PING, where=lambda f: bool(f.flags & frames.ACK), timeout=30)
    first.send(frames.headers(stream, first.encoder.encode([(":status", "200")])))
    apps = [serve(first) for _ in range(4)]
    late = fragile.app(target)
    second = fragile.accept(server)
    second.start()
    stream = second.expect(Type.HEADERS, timeout=30).stream
    assert stream == 1
    second.send(frames.headers(stream, second.encoder.encode([(":status", "200")])))
    late.sendall(b"through")
    assert second.read_exactly(stream, 7, timeout=30) == b"through"
    assert fragile.endings() == {}
    for app in (waiting, *apps):
        app.close()
    for got in [f for f in first.received if f.kind == Type.HEADERS]:
        first.send(frames.data(got.stream, end=True))
    assert first.wait_end().closed, "a tunnel that can carry nothing more is kept"
    assert fragile.endings() == {}
