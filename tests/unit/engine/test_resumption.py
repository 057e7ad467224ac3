"""TLS sessions: resumed between the same two identities, and by nobody whom a full handshake would refuse today."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable

import pytest

from hbone.engine import ConnectRequested, Established
from tests.support.pki import Authority, spiffe
from tests.support.ports import wait_until
from tests.unit.engine.conftest import CLIENT_URI, SERVER_URI, Mesh, dial, exchange
from tests.unit.engine.resuming import ROOM, refused, resumed, talk

StartMesh = Callable[..., Mesh]

OTHER_URI = spiffe("other")


@pytest.fixture
def mesh(start_mesh: StartMesh) -> Mesh:
    """Each connection that is open at the same time as others has a tunnel of its own."""
    return start_mesh(workers=1, max_sessions=ROOM, out={"pool_streams": 1})


def test_a_second_tunnel_resumes_and_carries_the_same_names(mesh: Mesh) -> None:
    with contextlib.ExitStack() as stack:
        for count in range(3):
            talk(mesh, stack)
            assert resumed(mesh) == (count, count)
        assert {event.peer_identity for event in mesh.out.wait(Established, 3)} == {SERVER_URI}
        assert {event.peer_identity for event in mesh.into.wait(ConnectRequested, 3)} == {CLIENT_URI}
        assert mesh.into.engine.stats()["tunnels_opened"] == 3
        for number in range(3):
            with mesh.dial() as sock:
                payload = bytes([number]) * 300_000
                assert exchange(sock, payload) == payload


def test_keys_are_changed_on_resumed_tunnels_too(start_mesh: StartMesh) -> None:
    mesh = start_mesh(
        workers=1, max_sessions=ROOM, rekey_records=3, out={"pool_streams": 1, "rekey_records": 3}
    )
    with contextlib.ExitStack() as stack:
        talk(mesh, stack)
        with mesh.dial() as sock:
            for _ in range(10):  # with 30 the peers would take it for abuse
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
        assert resumed(mesh) == (1, 1)
    assert mesh.out.engine.stats()["keys_updated"] > 5


@pytest.mark.parametrize("side", ["out", "into"])
def test_there_is_no_resumption_where_it_is_off(start_mesh: StartMesh, side: str) -> None:
    settings: dict[str, dict[str, int]] = {
        "out": {"pool_streams": 1, "max_sessions": ROOM},
        "into": {"max_sessions": ROOM},
    }
    del settings[side]["max_sessions"]
    mesh = start_mesh(workers=1, **settings)
    with contextlib.ExitStack() as stack:
        talk(mesh, stack)
        talk(mesh, stack)
        assert resumed(mesh) == (0, 0)


@pytest.mark.parametrize("side", ["out", "into"])
@pytest.mark.parametrize("what", ["same name", "other root"])
def test_another_certificate_of_ours_begins_with_no_session(mesh: Mesh, side: str, what: str) -> None:
    with contextlib.ExitStack() as stack:
        talk(mesh, stack)
        ca = mesh.ca if what == "same name" else Authority.root("another")
        for host, uri in ((mesh.into, SERVER_URI), (mesh.out, CLIENT_URI)):
            if what == "other root" or host is getattr(mesh, side):
                Mesh.set_identity(host, ca.leaf(uri))
        talk(mesh, stack)
        assert resumed(mesh) == (0, 0)
        talk(mesh, stack)
        assert resumed(mesh) == (1, 1), "between the new ones there is one"


def test_a_session_is_of_no_use_to_another_identity_of_the_same_node(mesh: Mesh) -> None:
    other = mesh.ca.leaf(OTHER_URI)
    mesh.out.engine.set_identity(2, other.chain_pem, other.key_pem, other.roots_pem, ("cluster.local",))
    ip, port = mesh.app

    def as_other(host: object, event: ConnectRequested) -> None:
        mesh.out.engine.connect_tunnel(
            event.token, mesh.hbone, netns=0, identity=2, sans=mesh.sans, authority=f"{ip}:{port}", headers=()
        )

    with contextlib.ExitStack() as stack:
        talk(mesh, stack)
        mesh.out.decide = as_other
        talk(mesh, stack)
        assert resumed(mesh) == (0, 0)
        assert mesh.into.wait(ConnectRequested, 2)[1].peer_identity == OTHER_URI
        talk(mesh, stack)
        assert resumed(mesh) == (1, 1)
        assert mesh.into.wait(ConnectRequested, 3)[2].peer_identity == OTHER_URI


def test_who_is_not_expected_any_more_is_not_resumed_with(mesh: Mesh) -> None:
    with contextlib.ExitStack() as stack:
        talk(mesh, stack)
        mesh.sans = (OTHER_URI,)
        assert refused(mesh) == "peer_san_mismatch"
        assert resumed(mesh) == (0, 0)
        mesh.sans = (OTHER_URI, SERVER_URI)
        talk(mesh, stack)
        assert mesh.out.wait(Established, 2)[1].peer_identity == SERVER_URI


@pytest.mark.parametrize("side", ["out", "into"])
def test_who_has_been_revoked_does_not_resume(mesh: Mesh, side: str) -> None:
    server, client = mesh.ca.leaf(SERVER_URI), mesh.ca.leaf(CLIENT_URI)
    Mesh.set_identity(mesh.into, server)
    Mesh.set_identity(mesh.out, client)
    with contextlib.ExitStack() as stack:
        talk(mesh, stack)
        talk(mesh, stack)
        assert resumed(mesh) == (1, 1)
        judge, judged = (mesh.out, server) if side == "out" else (mesh.into, client)
        judge.engine.set_crls([mesh.ca.crl(judged.leaf.serial_number)])
        mesh.out.closed(2)
        assert refused(mesh) == ("peer_cert_revoked" if side == "out" else "tls_handshake_failed")
        assert resumed(mesh) == (1, 1)
        assert judge.engine.stats()["revoked_outbound" if side == "out" else "revoked_inbound"] >= 2


def test_a_resumed_tunnel_is_cut_when_its_peer_is_revoked(mesh: Mesh) -> None:
    server = mesh.ca.leaf(SERVER_URI)
    Mesh.set_identity(mesh.into, server)
    with contextlib.ExitStack() as stack:
        talk(mesh, stack)
        sock = stack.enter_context(mesh.dial())
        mesh.out.wait(Established, 2)
        assert resumed(mesh) == (1, 1)
        mesh.out.engine.set_crls([mesh.ca.crl(server.leaf.serial_number)])
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert mesh.out.reasons(2) == ["peer_cert_revoked"] * 2


@pytest.mark.parametrize("side", ["out", "into"])
def test_whose_certificate_has_expired_does_not_resume(mesh: Mesh, side: str) -> None:
    expiring = mesh.ca.leaf(SERVER_URI if side == "out" else CLIENT_URI, not_after=4)
    Mesh.set_identity(mesh.into if side == "out" else mesh.out, expiring)
    with contextlib.ExitStack() as stack:
        talk(mesh, stack)
        until = expiring.leaf.not_valid_after_utc.timestamp()
        wait_until(lambda: time.time() > until + 1, "the certificate expires", timeout=30)
        assert refused(mesh) == ("peer_cert_expired" if side == "out" else "tls_handshake_failed")
        assert resumed(mesh) == (0, 0)


def test_more_sessions_than_there_is_room_for(start_mesh: StartMesh) -> None:
    """The oldest make room; whoever finds none shakes hands in full."""
    mesh = start_mesh(workers=1, max_sessions=ROOM, out={"pool_streams": 1}, into={"max_sessions": 1})
    contexts = [mesh.ca.leaf(CLIENT_URI).ssl_context(server=False) for _ in range(2)]
    with contextlib.ExitStack() as stack:
        talk(mesh, stack)
        for context in contexts:
            with dial(mesh.hbone) as plain, context.wrap_socket(plain) as sock:
                assert sock.recv(1)
        talk(mesh, stack)
        assert resumed(mesh) == (0, 0)
        talk(mesh, stack)
        assert resumed(mesh) == (1, 1)


def test_another_implementation_resumes_with_our_server(mesh: Mesh) -> None:
    context = mesh.ca.leaf(CLIENT_URI).ssl_context(server=False)
    session: ssl.SSLSession | None = None
    reused = []
    for _ in range(3):
        with dial(mesh.hbone) as plain, context.wrap_socket(plain, session=session) as sock:
            assert sock.recv(1), "our SETTINGS, behind the ticket"
            reused.append(sock.session_reused)
            session = sock.session
    assert reused == [False, True, True]
    assert mesh.into.engine.stats()["handshakes_resumed"] == 2


def test_a_session_lasts_an_hour_at_most(mesh: Mesh) -> None:
    context = mesh.ca.leaf(CLIENT_URI).ssl_context(server=False)
    with dial(mesh.hbone) as plain, context.wrap_socket(plain) as sock:
        assert sock.recv(1)
        assert sock.session is not None
        assert 0 < sock.session.ticket_lifetime_hint <= 3600
