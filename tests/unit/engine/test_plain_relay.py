"""Captured connections that go on as plain TCP, and verdicts of every kind."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hbone.engine import Accepted, Address, Closed, Established, ListenerKind, reason_code
from tests.support.pki import Authority, spiffe
from tests.support.ports import closed_address, wait_until
from tests.unit.engine.conftest import App, Host, dial, echo, exchange, expect_reset, pattern, read_all

StartHost = Callable[..., Host]
StartApp = Callable[..., App]


def plain_to(destination: Address) -> Callable[[Host, Any], None]:
    def decide(host: Host, event: Accepted) -> None:
        host.engine.connect_plain(event.token, destination, netns=0)

    return decide


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_accepted_names_both_ends_and_bytes_pass(start_host: StartHost, start_app: StartApp, ip: str) -> None:
    app = start_app(echo, ip)
    host = start_host(plain_to(app.address))
    entry = host.listen(ListenerKind.INBOUND, tag=5, host=ip)
    payload, before = pattern(3_000_000, 1), time.monotonic()
    with dial(entry) as sock:
        mine = sock.getsockname()[:2]
        assert exchange(sock, payload) == payload
    (accepted,) = host.wait(Accepted)
    assert (accepted.tag, accepted.kind, accepted.peer, accepted.local) == (
        5,
        ListenerKind.INBOUND,
        mine,
        entry,
    )
    (established,) = host.wait(Established)
    assert established.remote == app.address
    assert established.peer_identity is None
    (closed,) = host.wait(Closed)
    assert closed == Closed(accepted.token, 0, 0, 0, len(payload), len(payload), True, closed.at)
    assert before <= accepted.at <= closed.at <= time.monotonic()


def engine_side(mine: socket.socket) -> socket.socket:
    """A duplicate of the engine's accepted socket, the other end of `mine`."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            sock = socket.socket(fileno=os.dup(int(name)))
            if sock.family == mine.family and sock.getpeername() == mine.getsockname():
                return sock
            sock.close()
    raise AssertionError("no socket of the engine is connected to this one")


@pytest.mark.parametrize("kind", [ListenerKind.INBOUND, ListenerKind.HBONE])
@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_accepted_sockets_have_the_options_of_their_listener(
    start_host: StartHost, kind: ListenerKind, ip: str
) -> None:
    """Set once for each listening socket: Linux hands them on to every socket accepted there."""
    accepted: list[Accepted] = []
    host = start_host(lambda _, event: accepted.append(event))
    if kind is ListenerKind.HBONE:
        credential = Authority.root().leaf(spiffe("server"))
        pems = credential.chain_pem, credential.key_pem, credential.roots_pem
        host.engine.set_identity(1, *pems, ["cluster.local"])
    entry = host.listen(kind, identity=1, host=ip)
    with dial(entry) as mine:
        wait_until(lambda: host.engine.stats()["accepted"] == 1, "the connection is accepted")
        with engine_side(mine) as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [180, 180, 9]


def test_v4_mapped_peer_is_reported_as_ipv4(start_host: StartHost, start_app: StartApp) -> None:
    app = start_app()
    host = start_host(plain_to(app.address))
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", 0))
        listener.listen()
        port = listener.getsockname()[1]
        host.engine.listen(listener.fileno(), ListenerKind.OUTBOUND, 0, 1)
        with dial(("127.0.0.1", port)) as sock:
            assert exchange(sock, b"x") == b"x"
    (accepted,) = host.wait(Accepted)
    assert accepted.peer[0] == "127.0.0.1"
    assert accepted.local == ("127.0.0.1", port)


def test_many_connections_over_two_workers(start_host: StartHost, start_app: StartApp) -> None:
    app = start_app()
    host = start_host(plain_to(app.address))
    entry = host.listen(ListenerKind.OUTBOUND)

    def run(seed: int) -> bool:
        payload = pattern(seed * 20_011, seed)
        with dial(entry) as sock:
            return exchange(sock, payload) == payload

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(run, range(60)))
    assert set(host.reasons(60)) == {"ok"}


def test_refused_connection_is_reset(start_host: StartHost) -> None:
    host = start_host(lambda h, e: h.engine.refuse(e.token, reason_code("policy_denied"), 401))
    entry = host.listen(ListenerKind.OUTBOUND)
    expect_reset(entry)
    (closed,) = host.wait(Closed)
    assert (host.reasons(), closed.established) == (["policy_denied"], False)


def test_connect_failure_resets_the_client_and_says_why(start_host: StartHost) -> None:
    host = start_host(plain_to(closed_address()))
    entry = host.listen(ListenerKind.OUTBOUND)
    expect_reset(entry)
    (closed,) = host.wait(Closed)
    assert (host.reasons(), closed.errno) == (["connect_refused"], 111)


def test_no_verdict_in_time_is_a_refusal(start_host: StartHost) -> None:
    host = start_host(lambda h, e: None, decision_timeout=0.1)
    entry = host.listen(ListenerKind.OUTBOUND)
    expect_reset(entry)
    assert host.reasons() == ["decision_timeout"]


def test_client_that_gives_up_before_the_verdict_is_noticed(start_host: StartHost) -> None:
    host = start_host(lambda h, e: None)
    entry = host.listen(ListenerKind.OUTBOUND)
    with dial(entry) as sock:
        host.wait(Accepted)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert host.reasons() == ["reset_by_app"]


def test_stale_tokens_are_ignored(start_host: StartHost, start_app: StartApp) -> None:
    app = start_app()
    host = start_host(plain_to(app.address))
    entry = host.listen(ListenerKind.OUTBOUND)
    with dial(entry) as sock:
        assert exchange(sock, b"x") == b"x"
    (closed,) = host.wait(Closed)
    for token in (closed.token, 0, 2**63 - 1, 12345):
        host.engine.cut(token, reason_code("policy_changed"))
        host.engine.refuse(token, 1, 503)
        host.engine.connect_plain(token, app.address, netns=0)
    host.engine.flush()
    with dial(entry) as sock:
        assert exchange(sock, b"y") == b"y"
    assert host.reasons(2) == ["ok", "ok"]


def test_cut_resets_both_sides(start_host: StartHost, start_app: StartApp) -> None:
    outcome: list[str] = []

    def serve(sock: socket.socket) -> None:
        try:
            sock.sendall(b"hi")
            read_all(sock)
            outcome.append("eof")
        except ConnectionResetError:
            outcome.append("reset")

    app = start_app(serve)
    host = start_host(plain_to(app.address))
    entry = host.listen(ListenerKind.OUTBOUND)
    with dial(entry) as sock:
        assert sock.recv(2) == b"hi"
        (established,) = host.wait(Established)
        host.engine.cut(established.token, reason_code("policy_changed"))
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert host.reasons() == ["policy_changed"]
    app.wait_served()
    assert outcome == ["reset"]


def test_unlisten_stops_accepting_and_spares_flows(start_host: StartHost, start_app: StartApp) -> None:
    app = start_app()
    host = start_host(plain_to(app.address))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        handle = host.engine.listen(listener.fileno(), ListenerKind.OUTBOUND, 0, 1)
        where = listener.getsockname()
    with dial(where) as sock:
        host.wait(Established)
        host.engine.unlisten(handle)
        host.engine.unlisten(handle)
        with pytest.raises(OSError):  # noqa: PT012 (the listener goes within the workers' next round)
            while True:
                dial(where).close()
        assert exchange(sock, b"still here") == b"still here"


def test_bad_arguments_are_errors_of_the_caller(start_host: StartHost) -> None:
    host = start_host(lambda h, e: None)
    with pytest.raises(ValueError, match="not an address"):
        host.engine.connect_plain(1, ("example.com", 80), netns=0)
    with pytest.raises(ValueError, match="not an address"):
        host.engine.connect_plain(1, ("127.0.0.1", 65536), netns=0)
    with pytest.raises(OSError):
        host.engine.add_netns(999_999)
    with pytest.raises(OSError):
        host.engine.listen(0, ListenerKind.OUTBOUND, 77, 1)
    with pytest.raises(ValueError, match="identity 1 cannot be used"):
        host.engine.set_identity(1, b"x", b"y", b"z", ["cluster.local"])
