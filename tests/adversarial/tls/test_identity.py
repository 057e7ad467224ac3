"""Certificates that are not good enough, from clients and from servers (33 - 38)."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable

import pytest

from tests.support import frames, sanitized
from tests.support.arena import Arena, Arenas, assert_reset
from tests.support.frames import Type
from tests.support.peer import Peer, Refused
from tests.support.pki import (
    CLIENT_AUTH,
    DAY,
    SERVER_AUTH,
    Authority,
    Credential,
    as_authority,
    key_to_pem,
    load_chain,
    spiffe,
    unverified_context,
)

ME = spiffe("client")
LONG_PATH = "spiffe://cluster.local/ns/" + "n" * 3000 + "/sa/x"

Mint = Callable[[Authority], Credential]


def forged_by_leaf(root: Authority) -> Credential:
    """A certificate signed by an ordinary workload's certificate."""
    return as_authority(root.leaf(spiffe("thief"))).leaf(ME)


DEFECTS: dict[str, tuple[Mint, str]] = {
    "chain_defects-unknown_ca": (lambda r: Authority.root("stranger").leaf(ME), "peer_cert_invalid"),
    "chain_defects-same_name_other_ca": (
        lambda r: Authority.root("arena root").leaf(ME),
        "peer_cert_invalid",
    ),
    "chain_defects-signed_by_leaf": (forged_by_leaf, "peer_cert_invalid"),
    "chain_defects-intermediate_without_ca": (
        lambda r: r.intermediate(ca=False).leaf(ME),
        "peer_cert_invalid",
    ),
    "chain_defects-path_length_exceeded": (
        # names differ: a certificate issued to its own name does not count (RFC 5280 4.2.1.9)
        lambda r: r.intermediate("last", path_length=0).intermediate("one too many").leaf(ME),
        "peer_cert_invalid",
    ),
    "chain_defects-ca_leaf": (lambda r: r.leaf(ME, ca=True), "peer_cert_invalid"),
    "chain_defects-sha1": (lambda r: r.weak_leaf(ME, digest="sha1"), "peer_cert_invalid"),
    "chain_defects-rsa_1024": (lambda r: r.weak_leaf(ME, rsa_bits=1024), "peer_cert_invalid"),
    "chain_defects-chain_of_100": (lambda r: r.chain_of(100).leaf(ME), "peer_cert_invalid"),
    "expired_or_future-expired": (lambda r: r.leaf(ME, not_after=-1), "peer_cert_expired"),
    "expired_or_future-expired_long_ago": (
        lambda r: r.leaf(ME, not_before=-2 * DAY, not_after=-DAY),
        "peer_cert_expired",
    ),
    "expired_or_future-future": (lambda r: r.leaf(ME, not_before=30), "peer_cert_expired"),
    "expired_or_future-expired_intermediate": (
        lambda r: r.intermediate(not_after=-10).leaf(ME),
        "peer_cert_expired",
    ),
    "san_shapes-two_uris": (lambda r: r.leaf(ME, spiffe("other")), "peer_cert_invalid"),
    "san_shapes-two_equal_uris": (lambda r: r.leaf(ME, ME), "peer_cert_invalid"),
    "san_shapes-spiffe_and_https": (lambda r: r.leaf(ME, "https://example.com/"), "peer_cert_invalid"),
    "san_shapes-dns_only": (lambda r: r.leaf(dns=["client.default.svc"]), "peer_cert_invalid"),
    "san_shapes-no_name": (lambda r: r.leaf(subject="client"), "peer_cert_invalid"),
    "san_shapes-common_name_only": (lambda r: r.leaf(subject=ME), "peer_cert_invalid"),
    "san_shapes-https_uri": (
        lambda r: r.leaf("https://cluster.local/ns/default/sa/client"),
        "peer_cert_invalid",
    ),
    "san_shapes-upper_case_scheme": (
        lambda r: r.leaf("SPIFFE://cluster.local/ns/default/sa/client"),
        "peer_cert_invalid",
    ),
    "san_shapes-empty_path": (lambda r: r.leaf("spiffe://cluster.local"), "peer_cert_invalid"),
    "san_shapes-only_slash": (lambda r: r.leaf("spiffe://cluster.local/"), "peer_cert_invalid"),
    "san_shapes-short_path": (lambda r: r.leaf("spiffe://cluster.local/ns/default"), "peer_cert_invalid"),
    "san_shapes-extra_segment": (lambda r: r.leaf(ME + "/extra"), "peer_cert_invalid"),
    "san_shapes-empty_segment": (
        lambda r: r.leaf("spiffe://cluster.local/ns//sa/client"),
        "peer_cert_invalid",
    ),
    "san_shapes-relative_namespace": (
        lambda r: r.leaf("spiffe://cluster.local/ns/../sa/client"),
        "peer_cert_invalid",
    ),
    "san_shapes-relative_account": (
        lambda r: r.leaf("spiffe://cluster.local/ns/default/sa/."),
        "peer_cert_invalid",
    ),
    "san_shapes-path_3k": (lambda r: r.leaf(LONG_PATH), "peer_cert_invalid"),
    "san_shapes-userinfo": (
        lambda r: r.leaf("spiffe://me@cluster.local/ns/default/sa/client"),
        "peer_cert_invalid",
    ),
    "san_shapes-port": (
        lambda r: r.leaf("spiffe://cluster.local:1/ns/default/sa/client"),
        "peer_cert_invalid",
    ),
    "san_shapes-query": (lambda r: r.leaf(ME + "?a=b"), "peer_cert_invalid"),
    "san_shapes-nul": (
        lambda r: r.leaf("spiffe://cluster.local/ns/default/sa/client\0.evil"),
        "peer_cert_invalid",
    ),
    "wrong_trust_domain-other_domain": (
        lambda r: r.leaf(spiffe("client", domain="evil.example")),
        "peer_trust_domain",
    ),
    "wrong_trust_domain-domain_prefix": (
        lambda r: r.leaf(spiffe("client", domain="cluster.local.evil")),
        "peer_trust_domain",
    ),
    "wrong_trust_domain-domain_part": (
        lambda r: r.leaf(spiffe("client", domain="cluster")),
        "peer_trust_domain",
    ),
}

ONLY_SERVERS = {
    "chain_defects-client_eku_only": (lambda r: r.leaf(ME, usages=[CLIENT_AUTH]), "peer_cert_invalid"),
    "chain_defects-no_eku": (lambda r: r.leaf(ME, usages=None), "peer_cert_invalid"),
}
ONLY_CLIENTS = {
    "chain_defects-server_eku_only": (lambda r: r.leaf(ME, usages=[SERVER_AUTH]), "peer_cert_invalid"),
    "chain_defects-no_eku": (lambda r: r.leaf(ME, usages=None), "peer_cert_invalid"),
}


def turned_away(peer: Peer) -> None:
    """No tunnel octet: at most an alert, then the end."""
    try:
        peer.send(frames.PREFACE + frames.settings())
    except OSError:
        peer.ending.how = "reset"
    end = peer.wait_end()
    assert end.closed
    assert end.frames == []
    assert end.how != "close_notify"


def table(more: dict[str, tuple[Mint, str]]) -> pytest.MarkDecorator:
    """All defects as parameters."""
    rows = {**DEFECTS, **more}
    if more is ONLY_SERVERS:  # a client expects whole identities, whatever their trust domain
        rows = {name: row for name, row in rows.items() if row[1] != "peer_trust_domain"}
    return pytest.mark.parametrize(("mint", "slug"), rows.values(), ids=rows.keys())


@table(ONLY_CLIENTS)
def test_defective_client_is_turned_away(arena: Arena, mint: Mint, slug: str) -> None:
    credential = mint(arena.authority)
    spent = arena.host.cpu()
    try:
        peer = arena.dial(credential)
    except Refused:
        pass
    else:
        turned_away(peer)
    arena.only_failure(slug)
    assert sanitized.kind() or arena.host.cpu() - spent < 0.1
    assert not any(
        g.kind == "ConnectRequested" for g in arena.host.events()[arena.mark :] if g.tag == arena.tag
    )


CERTIFICATE_EXPIRED, CERTIFICATE_UNKNOWN, UNKNOWN_CA, CERTIFICATE_REQUIRED = 45, 46, 48, 116


@pytest.mark.parametrize(
    ("defect", "alert"),
    [
        (None, CERTIFICATE_REQUIRED),
        ("chain_defects-unknown_ca", UNKNOWN_CA),
        ("expired_or_future-expired", CERTIFICATE_EXPIRED),
        ("expired_or_future-future", CERTIFICATE_EXPIRED),
        ("wrong_trust_domain-other_domain", CERTIFICATE_UNKNOWN),
        ("san_shapes-dns_only", CERTIFICATE_UNKNOWN),
    ],
)
def test_alert_says_what_was_wrong_with_the_certificate(arena: Arena, defect: str | None, alert: int) -> None:
    """RFC 8446 section 6.2, and as Istio's ztunnel (but for a name that is no SPIFFE ID: access_denied there). Whoever
    runs the other side reads it in a log."""
    credential = DEFECTS[defect][0](arena.authority) if defect else None
    peer = Peer.dial(arena.hbone, credential)
    arena._closing.callback(peer.close)
    assert peer.wait_end().alert == alert


def test_alert_of_a_client_that_meets_another_workload(arena: Arena) -> None:
    """The server learns that it was not the one that was looked for."""
    server = arena.evil_server()
    app = arena.app(arena.outbound(server, sans=(spiffe("somebody-else"),)))
    with pytest.raises(Refused, match="CERTIFICATE_UNKNOWN"):
        arena.accept(server)
    assert_reset(app)


@table(ONLY_SERVERS)
def test_defective_server_gets_no_application_octet(arena: Arena, mint: Mint, slug: str) -> None:
    """`sans` names the identity the certificate claims, so that only the defect can be the reason."""
    credential = mint(arena.authority)
    server = arena.evil_server()
    app = arena.app(arena.outbound(server, sans=tuple(u.split("\0")[0] for u in credential.uris) or (ME,)))
    app.sendall(b"secret")
    try:
        peer = arena.accept(server, credential, context=server_context(credential))
    except Refused:
        pass
    else:
        end = peer.wait_end()
        assert end.closed
        assert not any(f.kind in (Type.DATA, Type.HEADERS) for f in end.frames)
    assert_reset(app)
    arena.ended_by({slug})


def server_context(credential: Credential) -> ssl.SSLContext:
    """A server that asks for a client certificate and takes any."""
    context = unverified_context(server=True)
    load_chain(context, credential)
    return context


def test_no_client_cert(arena: Arena) -> None:
    try:
        peer = Peer.dial(arena.hbone, None)
    except Refused:
        pass
    else:
        with peer:
            turned_away(peer)
    arena.only_failure("peer_cert_missing")


@pytest.mark.parametrize(
    "mint",
    [
        lambda r: r.leaf(ME),
        lambda r: r.intermediate().leaf(ME),
        lambda r: r.chain_of(3).leaf(ME),
        lambda r: r.leaf(ME, key="ec-p384"),
        lambda r: r.leaf(ME, key="rsa-2048"),
        lambda r: r.leaf(ME, key="ed25519"),
        lambda r: r.leaf(ME, dns=["a.example"], ips=["10.0.0.1"]),
        lambda r: r.leaf(ME, subject="O=whatever"),
        lambda r: r.leaf(ME, not_before=-2, not_after=30),
        lambda r: r.leaf(ME, extra_chain=[Authority.root("unrelated").cert]),
        lambda r: r.leaf(ME, padding=4000),
    ],
    ids=[
        *("plain", "one_intermediate", "three_intermediates", "p384", "rsa_2048", "ed25519", "more_names"),
        *("with_subject", "short_lived", "unrelated_extra", "unknown_extension"),
    ],
)
def test_sound_certificates_are_taken_from_both_sides(arena: Arena, mint: Mint) -> None:
    credential = mint(arena.authority)
    with Peer.dial(arena.hbone, credential) as peer:
        peer.start()
        peer.echo(peer.tunnel(arena.echo_authority), b"in")
    server = arena.evil_server()
    app = arena.app(arena.outbound(server, sans=(ME,)))
    terminator = arena.accept(server, credential)
    terminator.start()
    got = terminator.expect(Type.HEADERS)
    terminator.send(frames.headers(got.stream, terminator.encoder.encode([(":status", "200")])))
    app.sendall(b"out")
    assert terminator.read_exactly(got.stream, 3) == b"out"


def test_expired_or_future_to_the_very_second(arena: Arena) -> None:
    """No tolerance for skew: valid until the very second, and not one longer."""
    credential = arena.authority.leaf(ME, not_after=3)
    ends = credential.leaf.not_valid_after_utc.timestamp()
    with Peer.dial(arena.hbone, credential) as peer:
        peer.start()
    while time.time() <= ends + 1:  # X.509 times are whole seconds, inclusive
        time.sleep(0.05)
    try:
        peer = arena.dial(credential)
    except Refused:
        pass
    else:
        turned_away(peer)
    arena.only_failure("peer_cert_expired")


def test_wrong_trust_domain_is_accepted_once_configured_as_an_alias(arenas: Arenas) -> None:
    foreign = arenas.authority.leaf(spiffe("client", domain="old.example"))
    with arenas.enter(domains=("cluster.local", "old.example")) as arena:
        with Peer.dial(arena.hbone, foreign) as peer:
            peer.start()
            peer.echo(peer.tunnel(arena.echo_authority), b"alias")
        arena.settle()
        evil = arenas.authority.leaf(spiffe("client", domain="evil.example"))
        try:
            third = arena.dial(evil)
        except Refused:
            pass
        else:
            turned_away(third)
        arena.only_failure("peer_trust_domain")


@pytest.mark.parametrize(
    "sans",
    [
        (spiffe("other"),),
        (spiffe("server") + "x",),
        (spiffe("serve"),),
        (spiffe("Server"),),
        (spiffe("server", namespace="other"),),
        (),
    ],
    ids=["other", "longer", "shorter", "case", "namespace", "none"],
)
def test_wrong_san(arena: Arena, sans: tuple[str, ...]) -> None:
    """Right CA, other workload at that address: refused before any application octet is sent."""
    server = arena.evil_server()
    app = arena.app(arena.outbound(server, sans=sans))
    app.sendall(b"secret")
    try:
        peer = arena.accept(server, timeout=2)
    except (Refused, TimeoutError):
        pass  # with no name to expect, not dialling at all is right too
    else:
        end = peer.wait_end()
        assert end.closed
        assert not any(f.kind in (Type.DATA, Type.HEADERS) for f in end.frames)
    assert_reset(app)
    arena.ended_by({"peer_san_mismatch"})


def test_any_one_of_the_expected_names_will_do(arena: Arena) -> None:
    server = arena.evil_server()
    app = arena.app(arena.outbound(server, sans=(spiffe("a"), arena.server.uri, spiffe("z"))))
    peer = arena.accept(server)
    peer.start()
    stream = peer.expect(Type.HEADERS).stream
    peer.send(frames.headers(stream, peer.encoder.encode([(":status", "200")])))
    app.sendall(b"hello")
    assert peer.read_exactly(stream, 5) == b"hello"


def test_chain_of_a_megabyte(arena: Arena) -> None:
    """A huge certificate costs the sender, not us."""
    credential = arena.authority.leaf(ME, padding=1 << 20)
    before, spent = arena.host.rss(), arena.host.cpu()
    try:
        peer = arena.dial(credential)
    except Refused:
        pass
    else:
        turned_away(peer)
    assert set(arena.endings()) <= {"peer_cert_invalid", "tls_handshake_failed", "peer_abuse"}
    arena.ended_once()
    assert sanitized.kind() or arena.host.rss() - before < 2 << 20
    assert sanitized.kind() or arena.host.cpu() - spent < 0.1


def test_a_root_is_not_a_workload(arena: Arena) -> None:
    """Whoever holds only the root's own certificate has no identity."""
    root = Credential(arena.authority.pem, _key(arena.authority), arena.authority.roots_pem, ())
    try:
        peer = arena.dial(root)
    except Refused:
        pass
    else:
        turned_away(peer)
    arena.only_failure("peer_cert_invalid")


def _key(authority: Authority) -> bytes:
    return key_to_pem(authority.key)
