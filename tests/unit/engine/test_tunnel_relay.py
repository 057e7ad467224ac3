"""Bytes through two engines: whole, in order, both ways, and counted."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from hbone.engine import Closed, ConnectRequested, Established
from tests.support.ports import wait_until
from tests.unit.engine.conftest import (
    CLIENT_URI,
    SERVER_URI,
    Host,
    Mesh,
    exchange,
    pattern,
    read_all,
    split_authority,
)

StartMesh = Callable[..., Mesh]


def test_request_carries_authority_headers_and_identities(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    with mesh.dial() as sock:
        assert exchange(sock, b"hello") == b"hello"
    (request,) = mesh.into.wait(ConnectRequested)
    assert request.method == "CONNECT"
    assert request.authority == f"{mesh.app[0]}:{mesh.app[1]}"
    assert request.headers == mesh.headers
    assert request.peer_identity == CLIENT_URI
    assert request.local == mesh.hbone
    assert request.tag == 7
    (established,) = mesh.out.wait(Established)
    assert established.peer_identity == SERVER_URI
    assert established.remote == mesh.hbone


def test_answer_carries_the_headers_of_the_verdict(start_mesh: StartMesh) -> None:
    """And each 200 its own, also when the application is not there at once, or not at all."""
    mesh = start_mesh(workers=1)

    def deliver(host: Host, event: ConnectRequested) -> None:
        number = len(host.all(ConnectRequested))
        headers = (("baggage", f"k8s.cluster.name=c{number}"), ("x-more", "text")) if number else ()
        host.engine.connect_plain(event.token, split_authority(event.authority), netns=0, headers=headers)

    mesh.into.decide = deliver
    for _ in range(3):
        with mesh.dial() as sock:
            assert exchange(sock, b"x") == b"x"
    found = [event.response_headers for event in mesh.out.wait(Established, 3)]
    assert found == [(), *((("baggage", f"k8s.cluster.name=c{n}"), ("x-more", "text")) for n in (1, 2))]
    with pytest.raises(ValueError, match="header cannot be sent"):
        mesh.into.engine.connect_plain(1, mesh.app, netns=0, headers=(("bad name", ""),))


def test_sockets_are_counted_while_they_are_open(start_mesh: StartMesh) -> None:
    mesh = start_mesh(workers=2)
    names = ("sockets_outbound", "sockets_inbound", "sockets_hbone")
    with mesh.dial() as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        assert [mesh.out.engine.stats()[name] for name in names] == [1, 0, 0]
        assert [mesh.into.engine.stats()[name] for name in names] == [0, 0, 1]
    mesh.out.wait(Closed)
    mesh.set_identity(mesh.out, mesh.ca.leaf(CLIENT_URI))  # its tunnels go
    for host in (mesh.out, mesh.into):
        engine = host.engine
        wait_until(
            lambda engine=engine: not any(engine.stats()[name] for name in names),  # type: ignore[misc]
            "no socket is open",
            timeout=30,
        )


def test_counters_and_closed_are_exact(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    with mesh.dial() as sock:
        sock.sendall(b"x" * 1000)
        assert len(sock.recv(1000, socket.MSG_WAITALL)) == 1000
        (established,) = mesh.out.wait(Established)
        latest: dict[int, tuple[int, int]] = {}

        def counted() -> bool:
            latest.update({token: (up, down) for token, up, down in mesh.out.engine.counters()})
            return latest == {established.token: (1000, 1000)}

        wait_until(counted, "both directions counted")
        assert mesh.out.engine.counters() == []
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
    for host in (mesh.out, mesh.into):
        assert [(e.bytes_from_client, e.bytes_to_client, e.reason_code) for e in host.closed()] == [
            (1000, 1000, 0)
        ]
        assert host.engine.counters() == []


@pytest.mark.parametrize(
    "config", [{}, {"stream_window": 4096, "stream_window_max": 8192}], ids=["default", "small"]
)
def test_many_parallel_streams_keep_their_bytes(start_mesh: StartMesh, config: dict[str, int]) -> None:
    mesh = start_mesh(**config)
    draw = random.Random(1)
    sizes = [draw.choice([0, 1, 100, 16384, 100_000, 1_500_000]) + draw.randrange(1000) for _ in range(40)]

    def run(job: tuple[int, int]) -> bool:
        seed, size = job
        payload = pattern(size, seed)
        with mesh.dial() as sock:
            return exchange(sock, payload) == payload

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(run, enumerate(sizes)))
    for host in (mesh.out, mesh.into):
        ends = host.closed(len(sizes))
        assert sorted(e.bytes_from_client for e in ends) == sorted(sizes)
        assert sorted(e.bytes_to_client for e in ends) == sorted(sizes)
        assert {e.reason_code for e in ends} == {0}


def test_keys_are_renewed_on_the_way(start_mesh: StartMesh) -> None:
    mesh = start_mesh(workers=1, rekey_records=300)
    payload = pattern(8 << 20, 3)
    with mesh.dial() as sock:
        assert exchange(sock, payload) == payload
    assert mesh.out.reasons() == ["ok"]
    for host in (mesh.out, mesh.into):
        assert host.engine.stats()["keys_updated"] >= 2


def test_streams_of_one_way_share_a_tunnel(start_mesh: StartMesh) -> None:
    mesh = start_mesh(workers=1)
    for _ in range(20):
        with mesh.dial() as sock:
            assert exchange(sock, b"ping") == b"ping"
    assert mesh.out.engine.stats()["tunnels_dialled"] == 1
    assert len(mesh.out.wait(Closed, 20)) == 20


def test_ipv6_end_to_end(start_mesh: StartMesh) -> None:
    mesh = start_mesh(host="::1")
    payload = pattern(300_000, 5)
    with mesh.dial() as sock:
        assert exchange(sock, payload) == payload
    (request,) = mesh.into.wait(ConnectRequested)
    assert request.peer[0] == "::1"
    assert request.local == mesh.hbone
