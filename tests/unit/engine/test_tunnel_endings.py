"""How tunnelled flows end: half-close in every order, resets, refusals, drains, deadlines, shutdown."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hbone.engine import (
    REASONS,
    Accepted,
    Closed,
    ConnectRequested,
    Established,
    ListenerKind,
    TunnelFailed,
    reason_code,
)
from tests.support.pki import Authority, spiffe
from tests.support.ports import closed_address, wait_until
from tests.unit.engine.conftest import (
    App,
    Host,
    Mesh,
    deliver,
    echo,
    exchange,
    expect_reset,
    pattern,
    read_all,
)

StartMesh = Callable[..., Mesh]
StartHost = Callable[..., Host]

BIG = 700_000


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# -- half-close


def test_server_speaks_on_after_the_client_ended(start_mesh: StartMesh) -> None:
    def serve(sock: socket.socket) -> None:
        got = read_all(sock)
        sock.sendall(got * 2)

    mesh = start_mesh(serve)
    payload = pattern(BIG, 1)
    with mesh.dial() as sock:
        assert exchange(sock, payload) == payload * 2
    assert mesh.out.reasons() == mesh.into.reasons() == ["ok"]


def test_client_speaks_on_after_the_server_ended(start_mesh: StartMesh) -> None:
    got: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        sock.sendall(b"bye")
        sock.shutdown(socket.SHUT_WR)
        got.append(read_all(sock))

    mesh = start_mesh(serve)
    payload = pattern(BIG, 2)
    with mesh.dial() as sock:
        assert read_all(sock) == b"bye"
        sock.sendall(payload)
    assert mesh.out.reasons() == mesh.into.reasons() == ["ok"]
    wait_until(lambda: bool(got), "the server read everything")
    assert got == [payload]


def test_both_end_at_once_after_data_crossed(start_mesh: StartMesh) -> None:
    def serve(sock: socket.socket) -> None:
        sock.sendall(pattern(BIG, 4))
        sock.shutdown(socket.SHUT_WR)
        read_all(sock)

    mesh = start_mesh(serve)
    with mesh.dial() as sock:
        assert exchange(sock, pattern(BIG, 3)) == pattern(BIG, 4)
    for host in (mesh.out, mesh.into):
        (end,) = host.closed()
        assert (end.reason_code, end.bytes_from_client, end.bytes_to_client) == (0, BIG, BIG)


def test_eof_without_a_byte_passes(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    with mesh.dial() as sock:
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
    assert mesh.out.reasons() == ["ok"]


def test_half_closed_flow_ends_at_its_deadline(start_mesh: StartMesh) -> None:
    release = threading.Event()
    mesh = start_mesh(lambda sock: release.wait(60) and None, out={"half_close_timeout": 0.2})
    with mesh.dial() as sock:
        sock.shutdown(socket.SHUT_WR)
        assert mesh.out.reasons() == ["half_close_timeout"]
        assert mesh.into.reasons() == ["peer_reset"]
    release.set()


# -- resets


def test_client_reset_reaches_the_server_as_reset(start_mesh: StartMesh) -> None:
    outcome: list[str] = []

    def serve(sock: socket.socket) -> None:
        sock.sendall(b"hi")
        try:
            read_all(sock)
            outcome.append("eof")
        except ConnectionResetError:
            outcome.append("reset")

    mesh = start_mesh(serve)
    sock = mesh.dial()
    assert sock.recv(2) == b"hi"
    reset(sock)
    assert mesh.out.reasons() == ["reset_by_app"]
    assert mesh.into.reasons() == ["peer_reset"]
    wait_until(lambda: bool(outcome), "the server noticed")
    assert outcome == ["reset"]


def test_server_reset_reaches_the_client_as_reset(start_mesh: StartMesh) -> None:
    def serve(sock: socket.socket) -> None:
        sock.recv(1)
        reset(sock)

    mesh = start_mesh(serve)
    with mesh.dial() as sock:
        sock.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert mesh.into.reasons() == ["reset_by_app"]
    assert mesh.out.reasons() == ["peer_reset"]


@pytest.mark.parametrize("size", [1, 8 << 20], ids=["an_octet", "more_than_any_buffer"])
@pytest.mark.parametrize("who", ["client", "server"])
def test_closing_with_unread_data_is_a_reset_for_the_other(
    start_mesh: StartMesh, who: str, size: int
) -> None:
    """As without a mesh: whoever still speaks to somebody who has closed learns it, and nothing stays buffered."""
    ended: list[str] = []

    def speak(sock: socket.socket) -> None:
        try:
            sock.sendall(bytes(size))
            ended.append("reset" if not read_all(sock) else "data")
        except (ConnectionResetError, BrokenPipeError):
            ended.append("reset")

    def leave(sock: socket.socket) -> None:
        assert select.select([sock], [], [], 30)[0], "nothing to leave unread"
        sock.close()

    mesh = start_mesh(speak if who == "client" else leave)
    sock = mesh.dial()
    (leave if who == "client" else speak)(sock)
    assert mesh.out.reasons() == ["reset_by_app" if who == "client" else "peer_reset"]
    assert mesh.into.reasons() == ["peer_reset" if who == "client" else "reset_by_app"]
    wait_until(lambda: ended == ["reset"], "the one who spoke noticed", timeout=30)
    sock.close()


@pytest.mark.parametrize("side", ["out", "into"])
def test_cut_resets_the_flow_and_spares_its_tunnel(start_mesh: StartMesh, side: str) -> None:
    mesh = start_mesh(workers=1)
    host: Host = getattr(mesh, side)
    with mesh.dial() as other, mesh.dial() as sock:
        other.sendall(b"a")
        sock.sendall(b"b")
        assert (other.recv(1), sock.recv(1)) == (b"a", b"b")
        mine = sock.getsockname()[:2]
        if side == "out":
            (token,) = [e.token for e in host.wait(Accepted, 2) if e.peer == mine]
        else:
            token = host.wait(Established, 2)[1].token
        host.engine.cut(token, reason_code("policy_changed"))
        gone, alive = (sock, other) if side == "out" else (None, None)
        assert host.reasons() == ["policy_changed"]
        if gone and alive:
            with pytest.raises(ConnectionResetError):
                gone.recv(1)
            assert exchange(alive, b"still") == b"still"
    assert mesh.out.engine.stats()["tunnels_dialled"] == 1


# -- refusals


def test_refusal_carries_its_status(start_mesh: StartMesh) -> None:
    mesh = start_mesh(workers=1)
    mesh.into.decide = lambda h, e: h.engine.refuse(e.token, reason_code("policy_denied"), 401)
    for _ in range(3):
        expect_reset(mesh.entry)
    ends = mesh.out.closed(3)
    assert {(REASONS[e.reason_code], e.status, e.established) for e in ends} == {("peer_refused", 401, False)}
    assert set(mesh.into.reasons(3)) == {"policy_denied"}
    assert mesh.out.engine.stats()["tunnels_dialled"] == 1


def test_dead_upstream_is_answered_503(start_mesh: StartMesh) -> None:
    mesh = start_mesh(app=closed_address())
    expect_reset(mesh.entry)
    (end,) = mesh.out.closed()
    assert (REASONS[end.reason_code], end.status) == ("peer_refused", 503)
    (end,) = mesh.into.closed()
    assert (REASONS[end.reason_code], end.status, end.errno) == ("connect_refused", 503, 111)


def test_undecided_request_is_answered_at_the_deadline(start_mesh: StartMesh) -> None:
    mesh = start_mesh(into={"decision_timeout": 0.1})
    mesh.into.decide = lambda h, e: None
    expect_reset(mesh.entry)
    assert mesh.into.reasons() == ["decision_timeout"]
    assert mesh.out.closed()[0].status == 503


def test_nobody_listens_at_the_tunnels_end(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    mesh.hbone = closed_address()
    expect_reset(mesh.entry)
    (end,) = mesh.out.closed()
    assert (REASONS[end.reason_code], end.errno, end.status) == ("connect_refused", 111, 0)


# -- TLS


def outcome(mesh: Mesh) -> str:
    """The outbound reason of one attempt."""
    expect_reset(mesh.entry)
    (reason,) = mesh.out.reasons()
    return reason


def test_peer_with_another_name_gets_no_byte(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    mesh.sans = (spiffe("somebody-else"),)
    assert outcome(mesh) == "peer_san_mismatch"
    assert mesh.into.all(ConnectRequested) == []


def test_no_expected_name_always_fails(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    mesh.sans = ()
    assert outcome(mesh) == "peer_san_mismatch"


def test_peer_of_another_authority_is_refused(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    Mesh.set_identity(mesh.out, Authority.root().leaf(spiffe("client")))
    assert outcome(mesh) == "peer_cert_invalid"


def test_client_of_another_authority_is_refused(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    stranger = Authority.root().leaf(spiffe("client"))
    Mesh.set_identity(mesh.out, stranger.trusting(mesh.ca))
    assert outcome(mesh) == "tls_handshake_failed"
    (failure,) = mesh.into.wait(TunnelFailed)
    assert (REASONS[failure.reason_code], failure.inbound, failure.tag) == ("peer_cert_invalid", True, 7)


def test_client_of_another_trust_domain_is_refused_unless_accepted(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    Mesh.set_identity(mesh.out, mesh.ca.leaf(spiffe("client", domain="other.example")))
    assert outcome(mesh) == "tls_handshake_failed"
    (failure,) = mesh.into.wait(TunnelFailed)
    assert REASONS[failure.reason_code] == "peer_trust_domain"
    Mesh.set_identity(mesh.into, mesh.ca.leaf(spiffe("server")), ("cluster.local", "other.example"))
    with mesh.dial() as sock:
        assert exchange(sock, b"x") == b"x"


def test_expired_peer_is_refused(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    Mesh.set_identity(mesh.into, mesh.ca.leaf(spiffe("server"), not_before=-100, not_after=-5))
    assert outcome(mesh) == "peer_cert_expired"


def test_missing_identity_is_said(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    mesh.out.engine.drop_identity(1)
    assert outcome(mesh) == "identity_unavailable"


def test_new_certificate_serves_new_streams_and_spares_open_ones(start_mesh: StartMesh) -> None:
    mesh = start_mesh(workers=1)
    with mesh.dial() as old:
        old.sendall(b"a")
        assert old.recv(1) == b"a"
        Mesh.set_identity(mesh.out, mesh.ca.leaf(spiffe("renewed")))
        with mesh.dial() as new:
            assert exchange(new, b"b") == b"b"
        assert exchange(old, b"c") == b"c"
    first, second = mesh.into.wait(ConnectRequested, 2)
    assert (first.peer_identity, second.peer_identity) == (spiffe("client"), spiffe("renewed"))


# -- drain


def test_drain_lets_streams_finish_and_takes_no_more(start_mesh: StartMesh) -> None:
    mesh = start_mesh(workers=1)
    with mesh.dial() as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        mesh.into.engine.drain(7)
        wait_until(lambda: mesh.out.engine.stats()["goaways_received"] > 0, "GOAWAY came")
        expect_reset(mesh.entry)
        assert exchange(sock, b"finish") == b"finish"
    assert sorted(mesh.out.reasons(2)) == ["connect_refused", "ok"]
    wait_until(lambda: mesh.into.engine.stats()["tunnels_live"] == 0, "the drained tunnel ended")


def test_flow_moves_to_a_new_tunnel_when_the_pooled_one_is_dead(
    start_mesh: StartMesh, start_host: StartHost
) -> None:
    mesh = start_mesh(workers=1)
    with mesh.dial() as sock:
        assert exchange(sock, b"first") == b"first"
    replacement = start_host(deliver, workers=1)
    Mesh.set_identity(replacement, mesh.ca.leaf(spiffe("server")))
    mesh.into.stop()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(mesh.hbone)
        again.listen()
        replacement.engine.listen(again.fileno(), ListenerKind.HBONE, 0, 7, 1)
        with mesh.dial() as sock:
            assert exchange(sock, b"second") == b"second"
    assert mesh.out.reasons(2) == ["ok", "ok"]


# -- slow readers and shutdown


def test_stalled_reader_holds_bounded_memory_and_nobody_else(start_mesh: StartMesh) -> None:
    sent: list[int] = [0]

    def serve(sock: socket.socket) -> None:
        if sock.recv(1) == b"e":
            sock.sendall(b"e")
            return
        chunk = bytes(1 << 16)
        while True:
            sent[0] += sock.send(chunk)

    mesh = start_mesh(serve, workers=1, out={"stream_window": 65536, "stream_window_max": 131072})
    with mesh.dial() as stalled:
        stalled.sendall(b"d")
        last = -1

        def still() -> bool:
            nonlocal last
            before, last = last, sent[0]
            return before == last > 0

        wait_until(still, "the sender is held back", every=0.2)
        assert sent[0] < 24 << 20  # windows and socket buffers
        for _ in range(20):
            with mesh.dial() as sock:
                sock.sendall(b"e")
                assert sock.recv(1) == b"e"


def test_what_dead_flows_had_buffered_is_forgotten(start_mesh: StartMesh) -> None:
    sent = [0]

    def serve(sock: socket.socket) -> None:
        if sock.recv(1) == b"e":
            echo(sock)
            return
        while True:
            sent[0] += sock.send(bytes(1 << 16))

    window = 256 << 10
    limits = {"stream_window": window, "stream_window_max": window, "tunnel_buffer_max": 1 << 20}
    mesh = start_mesh(serve, workers=1, out=limits)
    with mesh.dial() as alive:
        alive.sendall(b"e")
        for _ in range(8):
            last = -1

            def still() -> bool:
                nonlocal last
                before, last = last, sent[0]
                return before == last

            sock = mesh.dial()
            sock.sendall(b"d")
            wait_until(still, "the sender is held back", every=0.1)
            reset(sock)
        assert mesh.out.reasons(8) == ["reset_by_app"] * 8
        payload = pattern(BIG, 6)
        assert exchange(alive, payload) == payload
    assert mesh.out.engine.stats()["abuse_buffer"] == 0


def test_more_than_a_tunnel_may_buffer_costs_the_slowest_reader(start_mesh: StartMesh) -> None:
    def serve(sock: socket.socket) -> None:
        while True:
            sock.sendall(bytes(1 << 16))

    mesh = start_mesh(serve, workers=1, out={"tunnel_buffer_max": 128 << 10})
    with mesh.dial():
        assert mesh.out.reasons() == ["stalled"]
    assert mesh.out.engine.stats()["abuse_buffer"] == 1


def test_reader_that_never_reads_is_cut_at_its_deadline(start_mesh: StartMesh) -> None:
    def serve(sock: socket.socket) -> None:
        while True:
            sock.sendall(bytes(1 << 16))

    mesh = start_mesh(serve, out={"stall_timeout": 0.3})
    with mesh.dial():
        assert mesh.out.reasons() == ["stalled"]
    assert mesh.into.reasons() == ["peer_reset"]


def fds() -> set[str]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except OSError:
            continue
    return found


def test_stop_with_live_flows_closes_everything_and_every_token(start_app: Callable[..., App]) -> None:
    app = start_app()
    before = fds()
    mesh = Mesh(app.address, {}, {}, "127.0.0.1")
    socks = [mesh.dial() for _ in range(10)]
    for sock in socks:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    netns = os.open("/proc/self/ns/net", os.O_RDONLY)
    mesh.out.engine.add_netns(netns)
    os.close(netns)
    mesh.stop()
    for sock in socks:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        sock.close()
    app.stop()
    ends: list[Any] = mesh.out.all(Closed)
    assert {e.token for e in ends} == {e.token for e in mesh.out.all(Accepted)}
    assert [REASONS[e.reason_code] for e in ends] == ["shutdown"] * 10
    assert fds() - before == set()
    mesh.out.engine.stop()
