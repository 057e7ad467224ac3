"""Connections on which nothing happens: nothing happens to them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from hbone.engine import Closed
from tests.support.ports import wait_until
from tests.unit.engine.conftest import Mesh

KEEPALIVE = "02"


def test_idle_connection_outlives_every_deadline_for_others(start_mesh: Callable[..., Mesh]) -> None:
    """PING goes on; what bounds waiting, stalling, half-closing and empty tunnels does not touch it."""
    for_others = ("pool_idle_timeout", "half_close_timeout", "stall_timeout", "answer_patience")
    mesh = start_mesh(workers=1, ping_interval=0.2, **dict.fromkeys(for_others, 0.2))
    with mesh.dial() as app:
        app.sendall(b"before")
        assert app.recv(6, socket.MSG_WAITALL) == b"before"
        for host in (mesh.out, mesh.into):
            first = host.engine.stats()["pings_sent"]
            wait_until(
                lambda host=host, first=first: host.engine.stats()["pings_sent"] >= first + 5,  # type: ignore[misc]
                "five times PING",
                timeout=60,
            )
        app.sendall(b"after")
        assert app.recv(5, socket.MSG_WAITALL) == b"after"
        assert not mesh.out.all(Closed)
        assert not mesh.into.all(Closed)


def timers() -> dict[tuple[str, str], str]:
    """What the kernel waits for, by (local, remote) address of each established IPv4 socket of this namespace."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {(row[1], row[2]): row[5][:2] for row in rows if row[3] == "01"}


def as_kernel(where: tuple[str, int]) -> str:
    return f"{int.from_bytes(socket.inet_aton(where[0]), 'little'):08X}:{where[1]:04X}"


def test_kernel_keeps_both_legs_alive(start_mesh: Callable[..., Mesh]) -> None:
    """TCP keepalive runs on all that the engine accepted or dialled: the application's connection, both ends of the
    tunnel, and the connection to the server."""
    accepted: list[socket.socket] = []

    def serve(sock: socket.socket) -> None:
        accepted.append(sock)
        while data := sock.recv(100):
            sock.sendall(data)

    mesh = start_mesh(serve, workers=1)
    with ExitStack() as stack:
        app = stack.enter_context(mesh.dial())
        app.sendall(b"x")
        assert app.recv(1) == b"x"
        onward = accepted[0].getpeername()
        tunnels = [pair for pair in timers() if as_kernel(mesh.hbone) in pair]
        assert len(tunnels) == 2
        legs = [
            (as_kernel(app.getpeername()), as_kernel(app.getsockname())),
            (as_kernel(onward), as_kernel(mesh.app)),
            *tunnels,
        ]
        for leg in legs:
            wait_until(lambda leg=leg: timers().get(leg) == KEEPALIVE, f"keepalive of {leg}", timeout=60)  # type: ignore[misc]
