"""Revoked and expired certificates: new handshakes, and tunnels that are open already."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from hbone.engine import REASONS, ConnectRequested, Established, TunnelFailed
from tests.support.pki import DAY, Authority, Credential
from tests.support.ports import wait_until
from tests.unit.engine.conftest import CLIENT_URI, SERVER_URI, Mesh, exchange, expect_reset

StartMesh = Callable[..., Mesh]


def serial(credential: Credential) -> int:
    return credential.leaf.serial_number


def works(mesh: Mesh) -> bool:
    with mesh.dial() as sock:
        return exchange(sock, b"x") == b"x"


def refused(mesh: Mesh) -> str:
    """The reason that a new connection of the application's ends with."""
    done = len(mesh.out.closed(0))
    expect_reset(mesh.entry)
    return mesh.out.reasons(done + 1)[-1]


@pytest.mark.parametrize("inbound", [False, True])
def test_revoked_peer_is_refused(start_mesh: StartMesh, inbound: bool) -> None:
    mesh = start_mesh()
    server, client = mesh.ca.leaf(SERVER_URI), mesh.ca.leaf(CLIENT_URI)
    Mesh.set_identity(mesh.into, server)
    Mesh.set_identity(mesh.out, client)
    judge = mesh.into if inbound else mesh.out
    judge.engine.set_crls([mesh.ca.crl(serial(client if inbound else server))])
    assert refused(mesh) == ("tls_handshake_failed" if inbound else "peer_cert_revoked")
    (failure, *_) = judge.wait(TunnelFailed)
    assert (REASONS[failure.reason_code], failure.inbound) == ("peer_cert_revoked", inbound)
    assert judge.engine.stats()["revoked_inbound" if inbound else "revoked_outbound"] >= 1
    assert mesh.into.all(ConnectRequested) == []
    judge.engine.set_crls([])
    assert works(mesh)


@pytest.mark.parametrize("inbound", [False, True])
def test_open_tunnels_of_a_revoked_peer_are_cut_and_no_others(start_mesh: StartMesh, inbound: bool) -> None:
    mesh = start_mesh(workers=2)
    server, client = mesh.ca.leaf(SERVER_URI), mesh.ca.leaf(CLIENT_URI)
    Mesh.set_identity(mesh.into, server)
    Mesh.set_identity(mesh.out, client)
    judge = mesh.into if inbound else mesh.out
    with mesh.dial() as first, mesh.dial() as second:
        mesh.out.wait(Established, 2)
        # a new certificate on the judged side: this one's tunnel has another serial number
        if inbound:
            Mesh.set_identity(mesh.out, mesh.ca.leaf(CLIENT_URI))
        else:
            Mesh.set_identity(mesh.into, mesh.ca.leaf(SERVER_URI))
            Mesh.set_identity(mesh.out, client)  # replaced: new streams get new tunnels
        with mesh.dial() as other:
            mesh.out.wait(Established, 3)
            judge.engine.set_crls([mesh.ca.crl(serial(client if inbound else server))])
            began = time.monotonic()
            for sock in (first, second):
                with pytest.raises(ConnectionResetError):
                    assert sock.recv(1)
            assert time.monotonic() - began < 30
            assert judge.reasons(2) == ["peer_cert_revoked"] * 2
            assert exchange(other, b"still") == b"still"
    assert sorted(judge.reasons(3)) == ["ok", "peer_cert_revoked", "peer_cert_revoked"]


def test_revoked_intermediate_takes_all_below_it(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    middle = mesh.ca.intermediate()
    Mesh.set_identity(mesh.into, middle.leaf(SERVER_URI))
    with mesh.dial() as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        mesh.out.engine.set_crls([middle.crl(), mesh.ca.crl(middle.cert.serial_number)])
        with pytest.raises(ConnectionResetError):
            assert sock.recv(1)
    assert refused(mesh) == "peer_cert_revoked"


def test_lists_speak_only_for_their_issuer(start_mesh: StartMesh) -> None:
    """Neither an issuer's name with another key, nor another issuer with the same serial number, revokes."""
    mesh = start_mesh()
    server = mesh.ca.leaf(SERVER_URI)
    Mesh.set_identity(mesh.into, server)
    name = mesh.ca.cert.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    namesake, stranger = Authority.root(str(name)), Authority.root("stranger")
    mesh.out.engine.set_crls([namesake.crl(serial(server)), stranger.crl(serial(server)), mesh.ca.crl(1, 2)])
    assert mesh.out.engine.stats()["crls"] == 3
    assert works(mesh)


def test_stale_list_stays_in_force(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    server = mesh.ca.leaf(SERVER_URI)
    mesh.out.engine.set_crls([mesh.ca.crl(serial(server), not_after=-5)])
    assert mesh.out.engine.stats()["crls_stale"] == 1
    assert works(mesh)  # what it does not name is allowed
    Mesh.set_identity(mesh.into, server)

    def refused_with_new_identity() -> bool:
        # workers take identities over in their next round: a connection of this one may still meet those before
        Mesh.set_identity(mesh.out, mesh.ca.leaf(CLIENT_URI))
        return refused(mesh) == "peer_cert_revoked"

    wait_until(refused_with_new_identity, "the revoked server is refused")


def crl_with(ca: Authority, extension: x509.ExtensionType, *, critical: bool) -> bytes:
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(ca.cert.subject)
    builder = builder.last_update(now).next_update(now + dt.timedelta(days=1))
    signed = builder.add_extension(extension, critical=critical).sign(ca.key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
INDIRECT = x509.IssuingDistributionPoint(None, None, False, False, None, True, False)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (lambda ca: b"nonsense", "PEM data is broken"),
        (lambda ca: b"\x30\x03\x02\x01\x01", "neither PEM nor DER"),
        (lambda ca: ca.crl(1)[:-60], "PEM data is broken"),
        (lambda ca: ca.crl(1) + ca.crl(2)[:100], "PEM data is broken"),
        (lambda ca: crl_with(ca, x509.DeltaCRLIndicator(1), critical=True), "delta"),
        (lambda ca: crl_with(ca, UNKNOWN, critical=True), "critical extension"),
        (lambda ca: crl_with(ca, INDIRECT, critical=True), "indirect"),
    ],
)
def test_unusable_lists_are_refused_and_the_old_ones_stay(
    start_mesh: StartMesh, broken: Callable[[Authority], bytes], why: str
) -> None:
    mesh = start_mesh()
    server = mesh.ca.leaf(SERVER_URI)
    Mesh.set_identity(mesh.into, server)
    mesh.out.engine.set_crls([mesh.ca.crl(serial(server))])
    with pytest.raises(ValueError, match=why):
        mesh.out.engine.set_crls([broken(mesh.ca)])
    assert refused(mesh) == "peer_cert_revoked"


def test_files_may_be_der_or_empty_or_hold_several_lists(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    server = mesh.ca.leaf(SERVER_URI)
    Mesh.set_identity(mesh.into, server)
    other = Authority.root("other")
    several = other.crl(1) + b"\n" + mesh.ca.crl(serial(server))
    der = x509.load_pem_x509_crl(mesh.ca.crl(serial(server))).public_bytes(serialization.Encoding.DER)
    for files, count in (([several], 2), ([b"", der, b"\n"], 1)):
        mesh.out.engine.set_crls(files)
        assert mesh.out.engine.stats()["crls"] == count
        assert refused(mesh) == "peer_cert_revoked"
    with pytest.raises(TypeError):
        mesh.out.engine.set_crls(["text"])  # type: ignore[list-item]
    mesh.out.engine.set_crls([b"", b" \n"])
    assert works(mesh)


@pytest.mark.parametrize("inbound", [False, True])
def test_open_tunnels_outlive_the_peers_certificate_unless_asked(
    start_mesh: StartMesh, inbound: bool
) -> None:
    mesh = start_mesh(**{"into" if inbound else "out": {"cut_expired": True}})
    judge, other = (mesh.into, mesh.out) if inbound else (mesh.out, mesh.into)
    peer = mesh.ca.leaf(CLIENT_URI if inbound else SERVER_URI, not_before=-DAY, not_after=2)
    Mesh.set_identity(other, peer)
    with mesh.dial() as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        with pytest.raises(ConnectionResetError):
            assert sock.recv(1)
    assert dt.datetime.now(dt.UTC) > peer.leaf.not_valid_after_utc
    assert judge.reasons(1) == ["peer_cert_expired"]


def test_expired_peer_keeps_its_tunnel_by_default(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    peer = mesh.ca.leaf(SERVER_URI, not_before=-DAY, not_after=5)
    Mesh.set_identity(mesh.into, peer)
    with mesh.dial() as sock:
        sock.sendall(b"a")
        assert sock.recv(1) == b"a"
        over = peer.leaf.not_valid_after_utc + dt.timedelta(seconds=1)
        wait_until(lambda: dt.datetime.now(dt.UTC) > over, "the certificate ran out")
        assert exchange(sock, b"still here") == b"still here"


def test_lists_may_come_after_the_stop(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    mesh.out.stop()
    mesh.out.engine.set_crls([mesh.ca.crl(1)])
    assert mesh.out.engine.stats()["crls"] == 1
