"""Our own certificate runs out while the authority cannot be reached (46)."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from hbone.spiffe import SpiffeId
from hbone.svid import Svid
from istiodlite.api import ca_pb2
from istiodlite.ca.authority import Authority
from istiodlite.ca.issue import chain, issue, read_csr
from tests.adversarial.control.server import Scripted, serving
from tests.support.arena import Arena, Arenas, assert_refused
from tests.support.enginehost import Address, Deliver, EngineHost, TunnelTo
from tests.support.faultproxy import FaultProxy
from tests.support.peer import Peer, Refused
from tests.support.pki import Credential
from tests.support.ports import closed_address
from ztunnel.config import Endpoint
from ztunnel.control_plane import ControlPlane
from ztunnel.identity.ca import CaClient
from ztunnel.identity.manager import IdentityManager
from ztunnel.readiness import Readiness

WEB = SpiffeId("cluster.local", "shop", "web")
OTHER = SpiffeId("cluster.local", "shop", "other")
HOUR = datetime.timedelta(hours=1)
FIRST_NUMBER = 9_000


class EngineSink:
    """Certificates go to the engine under attack, as the agent's do."""

    def __init__(self, host: EngineHost) -> None:
        self._host = host
        self.held: set[int] = set()

    def set_identity(self, number: int, svid: Svid) -> None:
        credential = Credential(svid.chain_pem, svid.key_pem, svid.roots_pem, (str(svid.identity),))
        self._host.identity(FIRST_NUMBER + number, credential)
        self.held.add(number)

    def drop_identity(self, number: int) -> None:
        self._host.engine("drop_identity", FIRST_NUMBER + number)
        self.held.discard(number)


def signer(authority: Authority, lifetime: Callable[[], datetime.timedelta]) -> Callable[..., bytes]:
    def sign(request: ca_pb2.IstioCertificateRequest) -> bytes:
        identity = SpiffeId.parse(request.metadata["ImpersonatedIdentity"])
        now = datetime.datetime.now(datetime.UTC)
        made = issue(authority, identity, read_csr(request.csr), lifetime(), now)
        parts = chain(authority, made)
        return ca_pb2.IstioCertificateResponse(cert_chain=parts).SerializeToString()

    return sign


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not condition():
            await trio.sleep(0.02)


def connect(target: Address) -> socket.socket:
    """An application's connection that has been used."""
    app = socket.create_connection(target, timeout=30)
    speak(app)
    return app


def speak(app: socket.socket) -> None:
    app.sendall(b"hello")
    assert app.recv(5, socket.MSG_WAITALL) == b"hello"


def no_tunnel(hbone: Address, credential: Credential) -> None:
    """Nobody gets a tunnel to a workload that cannot prove who it is."""
    with pytest.raises(Refused):
        Peer.dial(hbone, credential, timeout=30).close()


@pytest.mark.trio
async def test_own_cert_expired_ca_down(arenas: Arenas, tmp_path: Path) -> None:
    """The last certificate serves until its notAfter; then connections are refused with a reason and the agent is not
    ready; when the authority is back, all of that ends by itself. The wall clock is the test's, the rest is real."""
    authority = Authority.load_or_create(tmp_path, "cluster.local")
    ahead, lifetime = [0 * HOUR], [24 * HOUR]
    script = Scripted(sign=signer(authority, lambda: lifetime[0]))
    with arenas.enter() as arena, serving(script) as server, FaultProxy(("127.0.0.1", server.port)) as way:
        plane = ControlPlane(
            Endpoint(*way.address, tls=False), root_ca="", server_name="", token="", cluster_id="Kubernetes"
        )
        sink = EngineSink(arena.host)
        manager = IdentityManager(
            CaClient(plane, ttl=86400),
            sink,
            now=lambda: datetime.datetime.now(datetime.UTC) + ahead[0],
            draw=lambda: 0.0,
        )
        readiness = Readiness()
        readiness.require("certificates", lambda: not manager.expired)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.run)
            number = manager.hold("pod", WEB)
            await until(lambda: number in sink.held)
            hbone, target = listeners(arena, FIRST_NUMBER + number)
            live = await trio.to_thread.run_sync(connect, target)

            way.target = closed_address()
            way.cut()
            ahead[0] = 14 * HOUR  # due for renewal; another pod's request has the clock looked at
            manager.hold("another pod", OTHER)
            held = next(found for found in manager.held() if found.identity == WEB)
            await until(lambda: bool(held.error))
            assert readiness.pending() == []
            (await trio.to_thread.run_sync(connect, target)).close()

            ahead[0] = 25 * HOUR
            await until(lambda: number not in sink.held)
            assert readiness.pending() == ["certificates"]
            await trio.to_thread.run_sync(assert_refused, target)
            await trio.to_thread.run_sync(partial(no_tunnel, hbone, arena.client))
            arena.ended_by({"identity_unavailable"}, timeout=60)  # as server
            assert set(arena.host.endings(arena.via, arena.mark)) <= {"ok", "identity_unavailable"}
            assert arena.host.endings(arena.via, arena.mark)["identity_unavailable"] == 1  # as client
            await trio.to_thread.run_sync(speak, live)

            lifetime[0] = 60 * HOUR
            way.target = ("127.0.0.1", server.port)
            await until(lambda: number in sink.held)
            assert readiness.pending() == []
            (await trio.to_thread.run_sync(connect, target)).close()
            live.close()
            nursery.cancel_scope.cancel()


def listeners(arena: Arena, identity: int) -> tuple[Address, Address]:
    """The workload's HBONE listener, and where its applications' connections to itself go in."""
    hbone = arena.host.listen("HBONE", arena.tag, Deliver(arena.canary.address), identity=identity)
    rule = TunnelTo(hbone, (str(WEB),), identity)
    return hbone, arena.host.listen("OUTBOUND", arena.via, rule)
