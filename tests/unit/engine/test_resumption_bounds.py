"""What a TLS session is good for: once, with both certificates still good, for a while behind a full handshake."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from hbone.engine import Address, ListenerKind
from tests.support import frames
from tests.support.pki import Credential, spiffe, unverified_context
from tests.support.pki import load_chain as show
from tests.support.ports import wait_until
from tests.unit.engine.conftest import CLIENT_URI, SERVER_URI, App, Mesh, dial
from tests.unit.engine.resuming import ROOM, HelloRelay, refused, resumed, takes_session, talk

StartMesh = Callable[..., Mesh]

HEADERS_1 = b"\1\4\0\0\0\1"  # type, END_HEADERS, stream 1: what follows the length of a frame
STATUS_200 = b"\x88"
SHORT_S = 2


@pytest.fixture
def mesh(start_mesh: StartMesh) -> Mesh:
    """Each connection that is open at the same time as others has a tunnel of its own."""
    return start_mesh(workers=1, max_sessions=ROOM, out={"pool_streams": 1})


class Client:
    """Another implementation as client of an HBONE listener; it does not look at what the server shows."""

    def __init__(self, credential: Credential, where: Address) -> None:
        self.context, self.where = unverified_context(server=False), where
        show(self.context, credential)

    def greet(self, session: ssl.SSLSession | None = None) -> tuple[bool, ssl.SSLSession]:
        """One tunnel: whether it resumed, and the session for the next one."""
        with dial(self.where) as plain, self.context.wrap_socket(plain, session=session) as sock:
            assert sock.recv(1), "our SETTINGS, behind the ticket"
            assert sock.session is not None
            return bool(sock.session_reused), sock.session


class Server:
    """Another implementation as HBONE server, which gives tickets and lets any session resume that is its own."""

    def __init__(self, credential: Credential) -> None:
        self._context = credential.ssl_context(server=True)
        self._context.num_tickets = 1
        self.results: list[bool | str] = []
        self.app = App(self._serve)

    def _serve(self, plain: socket.socket) -> None:
        try:
            with self._context.wrap_socket(plain, server_side=True) as sock:
                self.results.append(bool(sock.session_reused))
                self._answer(sock)
        except ssl.SSLError as error:
            self.results.append(error.reason or "failed")

    def _answer(self, sock: ssl.SSLSocket) -> None:
        """One stream without a byte, then the end."""
        sock.sendall(frames.settings())
        seen = b""
        while HEADERS_1 not in seen and (data := sock.recv(65536)):
            seen += data
        sock.sendall(frames.headers(1, STATUS_200, end=True))
        sock.recv(1)

    def meet(self, mesh: Mesh) -> None:
        """Has the engine dial it, to the end."""
        known, done = len(self.results), len(mesh.out.closed(0))
        with dial(mesh.entry) as sock, contextlib.suppress(ConnectionResetError):
            wait_until(lambda: len(self.results) > known, "a handshake")
            sock.recv(1)
        mesh.out.closed(done + 1)
        wait_until(lambda: mesh.out.engine.stats()["tunnels_live"] == 0, "no tunnel is pooled")


@pytest.fixture
def server(mesh: Mesh) -> Iterator[Server]:
    """The one that the mesh's client side dials."""
    made = Server(mesh.ca.leaf(SERVER_URI))
    mesh.hbone = made.app.address
    yield made
    made.app.stop()


def wait_expired(credential: Credential) -> None:
    until = credential.leaf.not_valid_after_utc.timestamp()
    wait_until(lambda: time.time() > until + 1, "the certificate expires")


def test_a_session_is_used_once(mesh: Mesh) -> None:
    client = Client(mesh.ca.leaf(CLIENT_URI), mesh.hbone)
    _, session = client.greet()
    assert client.greet(session)[0]
    assert not client.greet(session)[0], "it is spent"


def test_as_many_tunnels_resume_as_there_were_before(mesh: Mesh) -> None:
    """Each handshake leaves a session, so that one place may have several."""
    with contextlib.ExitStack() as stack:
        relay = stack.enter_context(HelloRelay(mesh.hbone))
        arrived = threading.Barrier(2)

        def in_step(hello: bytes) -> bytes:
            """Both have said hello before either is answered."""
            arrived.wait(60)
            return hello

        mesh.hbone = relay.address
        relay.change = in_step
        for expected in (0, 2, 4):
            pair = [stack.enter_context(mesh.dial()) for _ in range(2)]
            for sock in pair:
                sock.sendall(b"hello")
            assert [sock.recv(5) for sock in pair] == [b"hello"] * 2
            assert resumed(mesh) == (expected, expected)


def test_what_another_listener_gave_is_of_no_use(mesh: Mesh) -> None:
    """Of an identity of its own, in the same process."""
    other = mesh.ca.leaf(spiffe("other"))
    mesh.into.engine.set_identity(2, other.chain_pem, other.key_pem, other.roots_pem, ("cluster.local",))
    elsewhere = mesh.into.listen(ListenerKind.HBONE, tag=8, identity=2)
    client = Client(mesh.ca.leaf(CLIENT_URI), mesh.hbone)
    _, session = client.greet()
    client.where = elsewhere
    assert not client.greet(session)[0]


def test_who_is_of_no_accepted_trust_domain_any_more_does_not_resume(mesh: Mesh) -> None:
    with contextlib.ExitStack() as stack:
        talk(mesh, stack)
        Mesh.set_identity(mesh.into, mesh.ca.leaf(SERVER_URI), ("elsewhere",))
        assert refused(mesh) == "tls_handshake_failed"
        assert resumed(mesh) == (0, 0)


def test_we_resume_with_another_implementations_server(mesh: Mesh, server: Server) -> None:
    for _ in range(3):
        server.meet(mesh)
    assert server.results == [False, True, True]


def test_our_own_certificate_has_expired_as_client(mesh: Mesh, server: Server) -> None:
    ours = mesh.ca.leaf(CLIENT_URI, not_after=5)
    Mesh.set_identity(mesh.out, ours)
    server.meet(mesh)
    wait_expired(ours)
    server.meet(mesh)
    assert True not in server.results
    assert "CERTIFICATE_VERIFY_FAILED" in server.results


def test_our_own_certificate_has_expired_as_server(mesh: Mesh) -> None:
    ours = mesh.ca.leaf(SERVER_URI, not_after=5)
    Mesh.set_identity(mesh.into, ours)
    client = Client(mesh.ca.leaf(CLIENT_URI), mesh.hbone)
    _, session = client.greet()
    wait_expired(ours)
    assert not client.greet(session)[0]


def test_our_own_certificate_is_revoked_as_client(mesh: Mesh, server: Server) -> None:
    ours = mesh.ca.leaf(CLIENT_URI)
    Mesh.set_identity(mesh.out, ours)
    server.meet(mesh)
    mesh.out.engine.set_crls([mesh.ca.crl(ours.leaf.serial_number)])
    server.meet(mesh)
    assert server.results == [False, False]


def test_our_own_certificate_is_revoked_as_server(mesh: Mesh) -> None:
    ours = mesh.ca.leaf(SERVER_URI)
    Mesh.set_identity(mesh.into, ours)
    client = Client(mesh.ca.leaf(CLIENT_URI), mesh.hbone)
    _, session = client.greet()
    mesh.into.engine.set_crls([mesh.ca.crl(ours.leaf.serial_number)])
    assert not client.greet(session)[0]


def test_resuming_does_not_prolong_as_server(start_mesh: StartMesh) -> None:
    """What counts is when the peer last showed its key."""
    mesh = start_mesh(workers=1, max_sessions=ROOM, session_lifetime=SHORT_S)
    client = Client(mesh.ca.leaf(CLIENT_URI), mesh.hbone)
    _, session = client.greet()
    assert session.ticket_lifetime_hint == SHORT_S
    deadline = time.monotonic() + 60
    reused = True
    while reused:
        assert time.monotonic() < deadline, "each session is resumed"
        reused, session = client.greet(session)


def test_resuming_does_not_prolong_as_client(mesh: Mesh, start_mesh: StartMesh) -> None:
    brief = start_mesh(
        workers=1, max_sessions=ROOM, out={"pool_streams": 1, "session_lifetime": SHORT_S}, into={}
    )
    server = Server(brief.ca.leaf(SERVER_URI))
    brief.hbone = server.app.address
    server.meet(brief)
    deadline = time.monotonic() + 60
    while server.results.count(False) < 2:
        assert time.monotonic() < deadline, "each session is resumed"
        server.meet(brief)
    server.app.stop()


def test_a_wrong_binder_proves_nothing(mesh: Mesh) -> None:
    """Who knows a ticket but not its secret."""
    with HelloRelay(mesh.hbone) as relay, contextlib.ExitStack() as stack:
        mesh.hbone = relay.address
        talk(mesh, stack)
        relay.change = lambda hello: hello[:-1] + bytes([hello[-1] ^ 1])
        assert refused(mesh) == "tls_handshake_failed"
        assert resumed(mesh) == (0, 0)
        relay.change = bytes
        talk(mesh, stack)
        assert resumed(mesh) == (0, 0), "the session is spent"


def test_a_hello_that_is_replayed_opens_nothing(mesh: Mesh) -> None:
    with HelloRelay(mesh.hbone) as relay, contextlib.ExitStack() as stack:
        target, mesh.hbone = mesh.hbone, relay.address
        talk(mesh, stack)
        talk(mesh, stack)
        assert resumed(mesh) == (1, 1)
        opened = mesh.into.engine.stats()["tunnels_opened"]
        assert not takes_session(target, relay.hellos[1]), "once was enough"
        assert resumed(mesh) == (1, 1)
        assert mesh.into.engine.stats()["tunnels_opened"] == opened


def test_a_hello_that_arrives_before_the_true_one_opens_nothing(mesh: Mesh) -> None:
    with HelloRelay(mesh.hbone) as relay, contextlib.ExitStack() as stack:
        target, mesh.hbone = mesh.hbone, relay.address
        talk(mesh, stack)

        def overtake(hello: bytes) -> bytes:
            assert takes_session(target, hello)
            return hello

        relay.change = overtake
        talk(mesh, stack)
        assert resumed(mesh) == (0, 0), "whoever holds the key shakes hands in full then"
        assert mesh.into.engine.stats()["tunnels_opened"] == 2
