"""A gateway: CONNECT streams that go on as CONNECT streams of another tunnel."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

import pytest

from hbone.engine import REASONS, ConnectRequested, Established, ListenerKind, reason_code
from tests.support.pki import spiffe
from tests.support.ports import wait_until
from tests.unit.engine.conftest import Host, Mesh, dial, exchange, expect_reset, pattern, read_all

StartMesh = Callable[..., Mesh]
StartHost = Callable[..., Host]
GATEWAY_URI = spiffe("gateway")
BIG = 5_000_000


class Gateway:
    """client -> `mesh.out` -> the gateway -> `mesh.into` -> application."""

    def __init__(self, mesh: Mesh, start_host: StartHost) -> None:
        self.mesh, self.onward = mesh, mesh.hbone
        self.sans: tuple[str, ...] = mesh.sans
        self.host = start_host(self.decide, workers=1)
        Mesh.set_identity(self.host, mesh.ca.leaf(GATEWAY_URI))
        mesh.hbone = self.host.listen(ListenerKind.HBONE, tag=9, identity=1)
        mesh.sans = (GATEWAY_URI,)

    def decide(self, host: Host, event: ConnectRequested) -> None:
        host.engine.connect_tunnel(
            event.token,
            self.onward,
            netns=0,
            identity=1,
            sans=self.sans,
            authority=event.authority,
            headers=event.headers,
        )

    def empty(self) -> None:
        """Until nothing is left of any flow."""
        wait_until(lambda: self.host.engine.stats()["flows_live"] == 0, "no flow is left in the gateway")


@pytest.fixture
def start_gateway(start_mesh: StartMesh, start_host: StartHost) -> Callable[..., Gateway]:
    return lambda *serve: Gateway(start_mesh(*serve, workers=1), start_host)


def test_bytes_and_ends_pass_both_ways(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway()
    payload = pattern(BIG, 1)
    with gateway.mesh.dial() as sock:
        assert exchange(sock, payload) == payload
    mesh = gateway.mesh
    for host in (mesh.out, gateway.host, mesh.into):
        (closed,) = host.closed(1)
        assert (REASONS[closed.reason_code], closed.bytes_from_client, closed.bytes_to_client) == (
            "ok",
            BIG,
            BIG,
        )
    (established,) = gateway.host.wait(Established)
    assert established.peer_identity == spiffe("server")
    assert established.remote == gateway.onward
    (request,) = mesh.into.wait(ConnectRequested)
    assert request.peer_identity == GATEWAY_URI
    assert dict(request.headers) == dict(mesh.headers)
    gateway.empty()


def test_the_server_may_end_first(start_gateway: Callable[..., Gateway]) -> None:
    got: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        sock.sendall(b"bye")
        sock.shutdown(socket.SHUT_WR)
        got.append(read_all(sock))

    gateway = start_gateway(serve)
    payload = pattern(BIG, 2)
    with gateway.mesh.dial() as sock:
        assert read_all(sock) == b"bye"
        sock.sendall(payload)
    wait_until(lambda: got == [payload], "the server read everything")
    assert gateway.host.reasons() == ["ok"]
    gateway.empty()


def test_many_at_once_share_one_tunnel(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway()
    failed: list[BaseException] = []

    def one(seed: int) -> None:
        try:
            with gateway.mesh.dial() as sock:
                payload = pattern(200_000 + seed, seed)
                assert exchange(sock, payload) == payload
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert set(gateway.host.reasons(30)) == {"ok"}
    assert gateway.host.engine.stats()["tunnels_dialled"] == 1
    gateway.empty()


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_passes_as_a_reset(start_gateway: Callable[..., Gateway], side: str) -> None:
    seen: list[str] = []
    reset = struct.pack("ii", 1, 0)

    def serve(sock: socket.socket) -> None:
        sock.sendall(b"hello")
        if side == "server":
            sock.recv(1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            sock.close()
            return
        try:
            seen.append(repr(read_all(sock)))
        except ConnectionResetError:
            seen.append("reset")

    gateway = start_gateway(serve)
    with gateway.mesh.dial() as sock:
        assert sock.recv(5) == b"hello"
        if side == "server":
            sock.sendall(b"x")
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    if side == "client":
        wait_until(lambda: seen == ["reset"], "the server saw the reset")
    assert gateway.host.reasons() == ["peer_reset"]
    gateway.empty()


def test_what_the_far_side_refuses_is_refused(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway()
    gateway.mesh.into.decide = lambda host, event: host.engine.refuse(
        event.token, reason_code("policy_denied"), 401
    )
    expect_reset(gateway.mesh.entry)
    assert gateway.host.reasons() == ["peer_refused"]
    (closed,) = gateway.mesh.out.closed()
    assert (REASONS[closed.reason_code], closed.status) == ("peer_refused", 503)
    assert gateway.host.all(Established) == []
    gateway.empty()


@pytest.mark.parametrize("why", ["peer_san_mismatch", "connect_refused", "identity_unavailable"])
def test_a_tunnel_that_cannot_be_had_is_said(start_gateway: Callable[..., Gateway], why: str) -> None:
    gateway = start_gateway()
    if why == "peer_san_mismatch":
        gateway.sans = (spiffe("somebody-else"),)
    elif why == "connect_refused":
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as gone:
            gateway.onward = gone.getsockname()
    else:
        with gateway.mesh.dial() as sock:  # the tunnel to the gateway stands before its identity goes
            assert exchange(sock, b"x") == b"x"
        gateway.host.engine.drop_identity(1)
    expect_reset(gateway.mesh.entry)
    assert gateway.host.reasons(1 + (why == "identity_unavailable"))[-1] == why
    gateway.empty()


def test_a_cut_ends_both_halves(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway()
    with gateway.mesh.dial() as sock, gateway.mesh.dial() as other:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        (request,) = gateway.host.wait(ConnectRequested, 1)[:1]
        other.sendall(b"b")
        assert other.recv(1) == b"b"
        assert {token for token, _, _ in gateway.host.engine.counters()} <= {
            event.token for event in gateway.host.all(ConnectRequested)
        }
        gateway.host.engine.cut(request.token, reason_code("policy_changed"))
        gateway.host.engine.flush()
        with pytest.raises(ConnectionResetError):
            assert sock.recv(1)
        assert gateway.host.reasons() == ["policy_changed"]
        assert gateway.mesh.into.reasons() == ["peer_reset"]
        assert exchange(other, b"still") == b"still"
    gateway.empty()


def test_losing_the_far_tunnel_is_no_clean_end(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway()
    with gateway.mesh.dial() as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        gateway.mesh.into.stop()
        with pytest.raises(ConnectionResetError):
            assert sock.recv(1)
    (reason,) = gateway.host.reasons()
    assert reason in ("truncated", "peer_reset")
    gateway.empty()


def test_a_client_that_leaves_while_the_far_tunnel_is_dialled(start_gateway: Callable[..., Gateway]) -> None:
    gateway = start_gateway()
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as silent:
        gateway.onward = silent.getsockname()
        with dial(gateway.mesh.entry) as sock:
            gateway.host.wait(ConnectRequested)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert gateway.host.reasons() == ["peer_reset"]
        gateway.empty()
