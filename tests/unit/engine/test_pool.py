"""Tunnels shared by flows: one dial for all who wait, limits of both sides, reuse, idleness."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from hbone.engine import Accepted, Closed, Established, TunnelClosed, TunnelOpened
from tests.support.pki import spiffe
from tests.support.ports import wait_until
from tests.unit.engine.conftest import CLIENT_URI, SERVER_URI, Mesh, exchange, expect_reset

StartMesh = Callable[..., Mesh]


def hold(mesh: Mesh, count: int, stack: ExitStack) -> list[socket.socket]:
    """So many live flows, each proved by an echo."""
    socks = [stack.enter_context(mesh.dial()) for _ in range(count)]
    for n, sock in enumerate(socks):
        sock.sendall(bytes([n]))
    for n, sock in enumerate(socks):
        assert sock.recv(1) == bytes([n])
    return socks


def test_all_who_wait_share_one_dial(start_mesh: StartMesh) -> None:
    mesh = start_mesh(workers=1)
    with ExitStack() as stack:
        hold(mesh, 50, stack)
        assert mesh.out.engine.stats()["tunnels_dialled"] == 1
    assert set(mesh.out.reasons(50)) == {"ok"}


def test_a_full_tunnel_is_joined_by_another_and_used_again(start_mesh: StartMesh) -> None:
    mesh = start_mesh(workers=1, out={"pool_streams": 4})
    with ExitStack() as stack:
        hold(mesh, 12, stack)
        assert mesh.out.engine.stats()["tunnels_dialled"] == 3
    mesh.out.wait(Closed, 12)
    with ExitStack() as stack:
        hold(mesh, 12, stack)
    assert mesh.out.engine.stats()["tunnels_dialled"] == 3


def test_the_peers_stream_limit_is_honoured(start_mesh: StartMesh) -> None:
    mesh = start_mesh(workers=1, into={"stream_limit": 2})
    with ExitStack() as stack:
        hold(mesh, 10, stack)
        assert mesh.out.engine.stats()["tunnels_dialled"] >= 5
    assert set(mesh.out.reasons(10)) == {"ok"}


def test_other_sans_or_identity_take_another_tunnel(start_mesh: StartMesh) -> None:
    mesh = start_mesh(workers=1)
    with ExitStack() as stack:
        hold(mesh, 1, stack)
        mesh.sans = (SERVER_URI, spiffe("also"))
        hold(mesh, 2, stack)
        assert mesh.out.engine.stats()["tunnels_dialled"] == 2


def test_idle_tunnel_is_released_on_both_sides(start_mesh: StartMesh) -> None:
    mesh = start_mesh(workers=1, tunnel_events=True, out={"pool_idle_timeout": 0.1})
    with mesh.dial() as sock:
        assert exchange(sock, b"x") == b"x"
    for host in (mesh.out, mesh.into):
        (opened,) = host.wait(TunnelOpened)
        (closed,) = host.wait(TunnelClosed)
        assert (closed.tunnel, opened.inbound) == (opened.tunnel, host is mesh.into)
        assert opened.peer_identity == (SERVER_URI if host is mesh.out else CLIENT_URI)
    assert mesh.out.engine.stats()["pool_idle_released"] == 1
    for host in (mesh.out, mesh.into):
        engine = host.engine
        wait_until(lambda engine=engine: engine.stats()["tunnels_live"] == 0, "the tunnel is gone")  # type: ignore[misc]


@pytest.mark.parametrize("how", ["replaced", "dropped"])
def test_tunnels_of_a_replaced_identity_go_with_their_last_stream(start_mesh: StartMesh, how: str) -> None:
    mesh = start_mesh(workers=1, tunnel_events=True)
    engine = mesh.out.engine
    with ExitStack() as stack:
        (sock,) = hold(mesh, 1, stack)
        if how == "dropped":
            engine.drop_identity(1)
        mesh.set_identity(mesh.out, mesh.ca.leaf(CLIENT_URI))
        hold(mesh, 1, stack)
        assert engine.stats()["tunnels_dialled"] == 2
        sock.sendall(b"the old tunnel lives while it is needed")
        assert sock.recv(100)
        assert not mesh.out.all(TunnelClosed)
        old, _ = mesh.out.wait(TunnelOpened, 2)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        (closed,) = mesh.out.wait(TunnelClosed)
        assert closed.tunnel == old.tunnel
        assert engine.stats()["pool_retired"] == 1
        assert mesh.out.reasons() == ["ok"]


def test_idle_tunnels_of_a_replaced_identity_go_at_once(start_mesh: StartMesh) -> None:
    mesh = start_mesh(workers=2)
    engine = mesh.out.engine
    with ExitStack() as stack:
        hold(mesh, 6, stack)
    mesh.out.wait(Closed, 6)
    wait_until(lambda: mesh.into.engine.stats()["flows_live"] == 0, "all streams have ended")
    pooled = engine.stats()["tunnels_live"]
    assert pooled
    mesh.set_identity(mesh.out, mesh.ca.leaf(CLIENT_URI))
    wait_until(lambda: engine.stats()["tunnels_live"] == 0, "none is kept", timeout=30)
    assert engine.stats()["pool_retired"] == pooled


def test_silent_peer_is_found_dead_and_its_flows_end(start_mesh: StartMesh) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mesh = start_mesh(out={"handshake_timeout": 0.2})
        mesh.hbone = mute.getsockname()
        with mesh.dial():
            assert mesh.out.reasons() == ["tls_handshake_timeout"]


def test_flows_above_the_limit_are_shed(start_mesh: StartMesh) -> None:
    mesh = start_mesh(workers=1, out={"max_flows": 5})
    with ExitStack() as stack:
        hold(mesh, 5, stack)
        expect_reset(mesh.entry)
        assert mesh.out.engine.stats()["shed_flows"] == 1
        assert len(mesh.out.all(Accepted)) == len(mesh.out.all(Established)) == 5


def test_an_idle_engine_does_nothing(start_mesh: StartMesh) -> None:
    mesh = start_mesh(workers=2)
    with ExitStack() as stack:
        hold(mesh, 3, stack)
        before = -1

        def asleep() -> bool:
            nonlocal before
            last, before = before, mesh.out.engine.stats()["loops"]
            return last == before

        wait_until(asleep, "rounds stopped", every=0.3)
