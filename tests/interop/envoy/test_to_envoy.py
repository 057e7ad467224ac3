"""Our engine as HBONE client, the real Envoy as server."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from hbone.engine import Closed
from tests.interop.envoy.conftest import ENVOYS, Mesh
from tests.interop.envoy.process import Envoy
from tests.support import halfclose, patterns, servers
from tests.support.arena import assert_refused, assert_reset
from tests.support.pki import spiffe
from tests.support.ports import address, closed_address, wait_until

pytestmark = pytest.mark.envoy


def test_octets_both_ways_over_eight_streams(mesh: Mesh, tmp_path: Path, echo_server: servers.Server) -> None:
    with Envoy(tmp_path, "server") as envoy:
        target = mesh.outbound(envoy.serve_hbone(mesh.envoys, echo_server.address))
        patterns.many(target, 8, 4 << 20)
        assert envoy.stat("http.hbone.downstream_cx_total") == 1, "the streams did not share a tunnel"
        assert envoy.stat("http.hbone.downstream_rq_total") == 8


def test_many_short_connections(mesh: Mesh, tmp_path: Path, echo_server: servers.Server) -> None:
    with Envoy(tmp_path, "server") as envoy:
        target = mesh.outbound(envoy.serve_hbone(mesh.envoys, echo_server.address))
        for seed in range(300):
            patterns.exchange(target, seed, 200)
        assert envoy.stat("http.hbone.downstream_cx_total") == 1


def test_a_hundred_and_fifty_at_once(mesh: Mesh, tmp_path: Path, echo_server: servers.Server) -> None:
    """More than one tunnel's share (100): a second tunnel, no failure."""
    with Envoy(tmp_path, "server") as envoy:
        target = mesh.outbound(envoy.serve_hbone(mesh.envoys, echo_server.address))
        socks = [socket.create_connection(target, timeout=30) for _ in range(150)]
        for n, sock in enumerate(socks):
            sock.sendall(b"%03d" % n)
        for n, sock in enumerate(socks):
            assert sock.recv(3, socket.MSG_WAITALL) == b"%03d" % n
            sock.close()
        assert envoy.stat("http.hbone.downstream_cx_total") == 2


def test_envoys_stream_limit_is_honoured(mesh: Mesh, tmp_path: Path, echo_server: servers.Server) -> None:
    with Envoy(tmp_path, "server") as envoy:
        target = mesh.outbound(envoy.serve_hbone(mesh.envoys, echo_server.address, streams=4))
        patterns.many(target, 20, 100_000)


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_half_close_by_the_client(mesh: Mesh, tmp_path: Path, size: int) -> None:
    with patterns.digest_server() as app, Envoy(tmp_path, "server") as envoy:
        patterns.half_close(mesh.outbound(envoy.serve_hbone(mesh.envoys, app.address)), size)


def test_half_close_by_the_server(mesh: Mesh, tmp_path: Path) -> None:
    """Envoy 1.40 ends a tunnel with RST_STREAM(NO_ERROR) once the application behind it ends its direction. What
    came before is complete, so our application must see all of it and a clean end."""
    with patterns.early_fin_server(10_000) as app, Envoy(tmp_path, "server") as envoy:
        target = mesh.outbound(envoy.serve_hbone(mesh.envoys, app.address))
        with socket.create_connection(target, timeout=20) as sock:
            assert patterns.read_all(sock, 3) == patterns.octets(1, 10_000)


@pytest.mark.parametrize("order", halfclose.ORDERS)
def test_half_closes_in_all_six_orders(mesh: Mesh, tmp_path: Path, order: str) -> None:
    """After the server's FIN nothing gets through Envoy any more (see above): there the order ends."""
    with halfclose.application() as listener, Envoy(tmp_path, "server") as envoy:
        target = mesh.outbound(envoy.serve_hbone(mesh.envoys, address(listener)))
        with halfclose.meet(socket.create_connection(target, timeout=30), listener) as (ours, theirs):
            halfclose.play(order.partition("s")[0] + "s", ours, theirs, 300_000)


def test_goaway_from_envoy_with_live_streams(mesh: Mesh, tmp_path: Path, echo_server: servers.Server) -> None:
    """Envoy retires a connection after three requests: live streams go on, later ones get a new tunnel."""
    with Envoy(tmp_path, "server") as envoy:
        limit: dict[str, Any] = {
            "common_http_protocol_options": {"max_requests_per_connection": 3},
            "drain_timeout": "0.2s",
        }
        target = mesh.outbound(envoy.serve_hbone(mesh.envoys, echo_server.address, **limit))
        kept = [socket.create_connection(target, timeout=30) for _ in range(2)]
        for sock in kept:
            sock.sendall(b"1")
            assert sock.recv(1) == b"1"
        for seed in range(30):
            patterns.exchange(target, seed, 1000)
            time.sleep(0.01)
        for sock in kept:
            sock.sendall(b"2")
            assert sock.recv(1) == b"2"
            sock.close()
        assert envoy.stat("http.hbone.downstream_cx_total") >= 8


def test_draining_envoy(mesh: Mesh, tmp_path: Path, echo_server: servers.Server) -> None:
    """Graceful drain of the listener: what runs goes on; nothing is reported as failed."""
    with Envoy(tmp_path, "server") as envoy:
        target = mesh.outbound(envoy.serve_hbone(mesh.envoys, echo_server.address, drain_timeout="0.5s"))
        with socket.create_connection(target, timeout=30) as sock:
            sock.sendall(b"1")
            assert sock.recv(1) == b"1"
            mark = len(mesh.host.events())
            envoy.get("/drain_listeners?graceful&skip_exit", "POST")
            deadline = time.monotonic() + 1.2
            while time.monotonic() < deadline:  # the drain lasts two seconds, then Envoy closes
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
                time.sleep(0.02)
            assert mesh.host.endings(mesh.tag, mark) == {}


def test_envoy_dies(mesh: Mesh, tmp_path: Path, echo_server: servers.Server) -> None:
    with Envoy(tmp_path, "server") as envoy:
        target = mesh.outbound(envoy.serve_hbone(mesh.envoys, echo_server.address))
        with socket.create_connection(target, timeout=30) as sock:
            sock.sendall(b"1")
            assert sock.recv(1) == b"1"
            envoy.kill()
            assert_reset(sock)
        assert_refused(target)
        wait_until(lambda: mesh.host.endings(mesh.tag)["connect_refused"] >= 1, "the refusal")
        assert set(mesh.host.endings(mesh.tag)) <= {"connect_refused", "peer_reset", "truncated"}


def test_no_application_behind_envoy(mesh: Mesh, tmp_path: Path) -> None:
    with Envoy(tmp_path, "server") as envoy:
        target = mesh.outbound(envoy.serve_hbone(mesh.envoys, closed_address()))
        assert_refused(target)
        closed = mesh.host.wait(Closed, tag=mesh.tag)
        assert mesh.host.slug(closed.reason_code) == "peer_refused"
        assert closed.status == 503


def test_another_workload_than_expected(mesh: Mesh, tmp_path: Path, echo_server: servers.Server) -> None:
    with Envoy(tmp_path, "server") as envoy:
        server = envoy.serve_hbone(mesh.envoys, echo_server.address)
        target = mesh.outbound(server, sans=("spiffe://cluster.local/ns/default/sa/other",))
        assert_refused(target)
        wait_until(lambda: set(mesh.host.endings(mesh.tag)) == {"peer_san_mismatch"}, "the reason")
        assert envoy.stat("http.hbone.downstream_rq_total") == 0


def test_its_sessions_are_resumed_until_our_identity_is_another(
    mesh: Mesh, tmp_path: Path, echo_server: servers.Server
) -> None:
    """Other expected names make another tunnel to the same place."""
    with Envoy(tmp_path, "server") as envoy:
        server = envoy.serve_hbone(mesh.envoys, echo_server.address)
        before = mesh.host.stats()["handshakes_resumed"]
        for seed in range(3):
            patterns.exchange(mesh.outbound(server, sans=(ENVOYS, spiffe(f"other-{seed}"))), seed, 200)
        reused = "listener.127.0.0.1_0.ssl.session_reused"
        assert envoy.stat(reused) == 2
        assert mesh.host.stats()["handshakes_resumed"] == before + 2
        mesh.host.identity(1, mesh.ours)
        patterns.exchange(mesh.outbound(server), 3, 200)
        assert envoy.stat(reused) == 2
        assert envoy.stat("http.hbone.downstream_cx_total") == 4
        assert_refused(mesh.outbound(server, sans=(spiffe("another"),)))
        assert envoy.stat(reused) == 2, "who is not expected is not resumed with"
