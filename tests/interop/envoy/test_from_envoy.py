"""The real Envoy as HBONE client, our engine as server."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest

from hbone.engine import Closed
from tests.interop.envoy.conftest import ENVOYS, OURS, Mesh
from tests.interop.envoy.process import Envoy
from tests.support import halfclose, patterns, servers
from tests.support.enginehost import Deny
from tests.support.ports import wait_until

pytestmark = pytest.mark.envoy


def through(mesh: Mesh, envoy: Envoy, app: servers.Server) -> tuple[str, int]:
    """Where to connect as the application's client."""
    return through_to(mesh, envoy, app.authority)


def through_to(mesh: Mesh, envoy: Envoy, authority: str) -> tuple[str, int]:
    """The same, for an application at this authority."""
    return envoy.originate_hbone(mesh.envoys, mesh.inbound(), authority, OURS)


def test_octets_both_ways_over_eight_streams(mesh: Mesh, tmp_path: Path, echo_server: servers.Server) -> None:
    with Envoy(tmp_path, "client") as envoy:
        patterns.many(through(mesh, envoy, echo_server), 8, 4 << 20)
        assert envoy.stat("cluster.hbone.upstream_cx_total") == 1
        asked = [g.event for g in mesh.host.events() if g.kind == "ConnectRequested" and g.tag == mesh.tag]
        assert len(asked) == 8
        assert {a.peer_identity for a in asked} == {ENVOYS}
        assert {a.authority for a in asked} == {echo_server.authority}
        assert mesh.host.endings(mesh.tag) in ({}, {"ok": 8})


def test_many_short_connections_with_pings_between(
    mesh: Mesh, tmp_path: Path, echo_server: servers.Server
) -> None:
    with Envoy(tmp_path, "client") as envoy:
        target = through(mesh, envoy, echo_server)
        until, seed = time.monotonic() + 2, 0
        while time.monotonic() < until or seed < 300:
            patterns.exchange(target, seed, 200)
            seed += 1
        assert envoy.stat("cluster.hbone.upstream_cx_total") == 1
        assert envoy.stat("cluster.hbone.http2.keepalive_timeout") == 0


def test_two_hundred_and_fifty_at_once(mesh: Mesh, tmp_path: Path, echo_server: servers.Server) -> None:
    """Above the limit we advertise (200) Envoy opens a second connection."""
    with Envoy(tmp_path, "client") as envoy:
        target = through(mesh, envoy, echo_server)
        patterns.exchange(target, 1, 10)  # now Envoy has seen the limit
        socks = [socket.create_connection(target, timeout=30) for _ in range(250)]
        for n, sock in enumerate(socks):
            sock.sendall(b"%03d" % n)
        for n, sock in enumerate(socks):
            assert sock.recv(3, socket.MSG_WAITALL) == b"%03d" % n
            sock.close()
        assert envoy.stat("cluster.hbone.upstream_cx_total") >= 2


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_half_close_by_the_client(mesh: Mesh, tmp_path: Path, size: int) -> None:
    with patterns.digest_server() as app, Envoy(tmp_path, "client") as envoy:
        patterns.half_close(through(mesh, envoy, app), size)


def test_half_close_by_the_server(mesh: Mesh, tmp_path: Path) -> None:
    with (
        patterns.early_fin_server(3_000_000) as app,
        Envoy(tmp_path, "client") as envoy,
        socket.create_connection(through(mesh, envoy, app), timeout=20) as sock,
    ):
        assert patterns.read_all(sock, 3) == patterns.octets(1, 3_000_000)
        sock.sendall(bytes(100_000))
        sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: app.bytes == 100_000, "what was sent after the server's FIN")


@pytest.mark.parametrize("order", halfclose.ORDERS)
def test_half_closes_in_all_six_orders(mesh: Mesh, tmp_path: Path, order: str) -> None:
    with halfclose.application() as listener, Envoy(tmp_path, "client") as envoy:
        client = socket.create_connection(through_to(mesh, envoy, halfclose.authority(listener)), timeout=30)
        with halfclose.meet(client, listener) as (ours, theirs):
            halfclose.play(order, ours, theirs, 300_000)


def test_our_drain_lets_live_streams_finish(mesh: Mesh, tmp_path: Path, echo_server: servers.Server) -> None:
    with Envoy(tmp_path, "client") as envoy:
        target = through(mesh, envoy, echo_server)
        with socket.create_connection(target, timeout=30) as sock:
            sock.sendall(b"1")
            assert sock.recv(1) == b"1"
            mesh.host.engine("drain", mesh.tag)
            wait_until(lambda: envoy.stat("cluster.hbone.upstream_cx_close_notify") == 1, "Envoy saw GOAWAY")
            for _ in range(20):
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
        wait_until(lambda: envoy.stat("cluster.hbone.upstream_cx_active") == 0, "the connection closed")
        assert set(mesh.host.endings(mesh.tag)) <= {"ok"}


def test_a_refusal_is_understood(mesh: Mesh, tmp_path: Path, echo_server: servers.Server) -> None:
    with Envoy(tmp_path, "client") as envoy:
        server = mesh.inbound(Deny("policy_denied", 401))
        target = envoy.originate_hbone(mesh.envoys, server, echo_server.authority, OURS)
        with socket.create_connection(target, timeout=30) as sock:
            sock.sendall(b"let me in")
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(100) == b""
        given_up = "cluster.hbone.upstream_cx_connect_attempts_exceeded"
        wait_until(lambda: envoy.stat(given_up) == 1, "Envoy took it for a refusal")
        assert mesh.host.wait(Closed, tag=mesh.tag).status == 401
        assert not echo_server.connections


def test_envoy_dies_in_the_middle(mesh: Mesh, tmp_path: Path) -> None:
    """The application behind us sees a reset."""
    seen: list[bytes | OSError] = []

    def handler(sock: socket.socket) -> None:
        try:
            while True:
                seen.append(sock.recv(100))
                if not seen[-1]:
                    return
        except OSError as problem:
            seen.append(problem)

    with servers.Server(handler) as app, Envoy(tmp_path, "client") as envoy:
        with socket.create_connection(through(mesh, envoy, app), timeout=30) as sock:
            sock.sendall(b"half")
            wait_until(lambda: bool(seen), "the first octets")
            envoy.kill()
        wait_until(lambda: len(seen) > 1, "the end")
        assert isinstance(seen[1], ConnectionResetError), f"the application saw {seen[1]!r}"


def test_it_resumes_until_our_identity_is_another(
    mesh: Mesh, tmp_path: Path, echo_server: servers.Server
) -> None:
    """Envoy offers what we gave it by default; the name that we ask about is the one its full handshake proved."""
    with Envoy(tmp_path, "client") as envoy:
        before = mesh.host.stats()["handshakes_resumed"]
        target = envoy.originate_hbone(mesh.envoys, mesh.inbound(), echo_server.authority, OURS, requests=1)
        for seed in range(3):
            patterns.exchange(target, seed, 200)
        assert envoy.stat("cluster.hbone.ssl.session_reused") == 2
        assert mesh.host.stats()["handshakes_resumed"] == before + 2
        asked = [g.event for g in mesh.host.events() if g.kind == "ConnectRequested" and g.tag == mesh.tag]
        assert [a.peer_identity for a in asked] == [ENVOYS] * 3
        mesh.host.identity(1, mesh.ours)
        patterns.exchange(target, 3, 200)
        assert envoy.stat("cluster.hbone.ssl.session_reused") == 2
        assert envoy.stat("cluster.hbone.upstream_cx_total") == 4
