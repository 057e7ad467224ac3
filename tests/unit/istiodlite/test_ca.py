"""The authority: its files, what it signs, whom it refuses."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import json
import re
from pathlib import Path

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hbone.spiffe import SpiffeId
from istiodlite.ca.authority import CA_KEY, ROOT_CERT, Authority
from istiodlite.ca.authorize import Allowed, Denied, Trust, authorize
from istiodlite.ca.caller import Caller
from istiodlite.ca.files import DataError
from istiodlite.ca.issue import RequestError, chain, issue, lifetime_of, read_csr
from istiodlite.ca.pods import PodIndex
from istiodlite.ca.serving import LIFETIME, NAMES_AGE, ServingCertificate, ServingPair
from istiodlite.ca.tokens import TokenError, load_or_create_token_key, mint, verify
from istiodlite.objects import Meta, ObjectKey, Pod

NOW = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
WEB = SpiffeId("cluster.local", "shop", "web")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.load_or_create(tmp_path / "data", "cluster.local", NOW)


def csr(key: object = None, **subject: str) -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, value) for value in subject.values()])
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://evil/ns/a/sa/b")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name).add_extension(san, critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()  # type: ignore[arg-type]


def leaf_of(
    authority: Authority, lifetime: datetime.timedelta = DAY, now: datetime.datetime = NOW
) -> x509.Certificate:
    return issue(authority, WEB, read_csr(csr()), lifetime, now)


def test_the_root_is_kept_and_is_a_ten_year_ca(tmp_path: Path) -> None:
    first = Authority.load_or_create(tmp_path, "cluster.local", NOW)
    again = Authority.load_or_create(tmp_path, "cluster.local", NOW + DAY)
    assert first.roots_pem == again.roots_pem
    constraints = first.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    assert first.certificate.not_valid_after_utc == NOW + datetime.timedelta(days=3650)


def test_an_expired_root_is_issued_again_with_the_same_key(tmp_path: Path) -> None:
    first = Authority.load_or_create(tmp_path, "cluster.local", NOW)
    later = Authority.load_or_create(tmp_path, "cluster.local", NOW + datetime.timedelta(days=3650))
    assert later.certificate.not_valid_after_utc > first.certificate.not_valid_after_utc
    leaf_of(first).verify_directly_issued_by(later.certificate)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    Authority.load_or_create(tmp_path, "cluster.local", NOW)
    (tmp_path / CA_KEY).chmod(0o644)
    with pytest.raises(DataError, match="others may read this key; chmod 600"):
        Authority.load_or_create(tmp_path, "cluster.local", NOW)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (CA_KEY, "garbage", "not a private key"),
        (ROOT_CERT, "garbage", "not a certificate"),
        (CA_KEY, None, "is not; restore it"),
    ],
)
def test_broken_files_are_refused_and_never_replaced(
    tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    Authority.load_or_create(tmp_path, "cluster.local", NOW)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=message):
        Authority.load_or_create(tmp_path, "cluster.local", NOW)


def test_a_certificate_of_another_key_is_refused(tmp_path: Path) -> None:
    Authority.load_or_create(tmp_path / "a", "cluster.local", NOW)
    other = Authority.load_or_create(tmp_path / "b", "cluster.local", NOW)
    (tmp_path / "a" / ROOT_CERT).write_bytes(other.roots_pem)
    with pytest.raises(DataError, match="does not belong to"):
        Authority.load_or_create(tmp_path / "a", "cluster.local", NOW)


def test_a_missing_certificate_is_made_again_from_the_key(tmp_path: Path) -> None:
    first = Authority.load_or_create(tmp_path, "cluster.local", NOW)
    (tmp_path / ROOT_CERT).unlink()
    leaf_of(first).verify_directly_issued_by(
        Authority.load_or_create(tmp_path, "cluster.local", NOW).certificate
    )


def test_a_leaf_has_exactly_the_allowed_identity(authority: Authority) -> None:
    leaf = leaf_of(authority)
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert san.critical
    assert [(type(name), name.value) for name in san.value] == [(x509.UniformResourceIdentifier, str(WEB))]
    assert leaf.subject == x509.Name([])


def test_a_leaf_has_the_usages_of_both_ends(authority: Authority) -> None:
    leaf = leaf_of(authority)
    extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(extended) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert (usage.value.digital_signature, usage.value.key_encipherment) == (True, True)
    assert not usage.value.key_cert_sign
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_leaf_begins_two_minutes_ago_and_ends_as_asked(authority: Authority) -> None:
    leaf = leaf_of(authority)
    assert leaf.not_valid_before_utc == NOW - datetime.timedelta(minutes=2)
    assert leaf.not_valid_after_utc == NOW + DAY


def test_a_leaf_never_outlives_the_root(authority: Authority) -> None:
    end = authority.certificate.not_valid_after_utc
    assert leaf_of(authority, 90 * DAY, end - DAY).not_valid_after_utc == end


def test_serial_numbers_are_random_and_long(authority: Authority) -> None:
    serials = {leaf_of(authority).serial_number for _ in range(20)}
    assert len(serials) == 20
    assert max(serials).bit_length() > 96


def test_the_chain_is_the_leaf_and_then_the_roots(authority: Authority) -> None:
    leaf = leaf_of(authority)
    first, roots = chain(authority, leaf)
    assert x509.load_pem_x509_certificate(first.encode()) == leaf
    assert roots.encode() == authority.roots_pem


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["p256", "p384", "ed25519", "rsa2048"],
)
def test_keys_that_are_accepted(key: object) -> None:
    assert read_csr(csr(key)) == key.public_key()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (rsa.generate_private_key(65537, 1024), "1024 bits"),  # noqa: S505
        (ec.generate_private_key(ec.SECP224R1()), "curve secp224r1"),
        (dsa.generate_private_key(2048), "type of key"),
    ],
    ids=["rsa1024", "p224", "dsa"],
)
def test_keys_that_are_refused(key: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_csr(csr(key))


@pytest.mark.parametrize(
    "text",
    ["", "garbage", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "ü"],
)
def test_what_is_no_signing_request_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="not a signing request"):
        read_csr(text)


def test_a_request_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(RequestError, match="more than 16384"):
        read_csr(csr() + " " * 17000)


def test_a_request_whose_signature_is_of_another_key_is_refused() -> None:
    data = bytearray(x509.load_pem_x509_csr(csr().encode()).public_bytes(serialization.Encoding.DER))
    data[-1] ^= 1
    broken = x509.load_der_x509_csr(bytes(data)).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(RequestError, match="signature"):
        read_csr(broken)


def test_lifetimes() -> None:
    assert lifetime_of(0) == DAY
    assert lifetime_of(90 * 86400) == 90 * DAY
    for seconds in (-1, 90 * 86400 + 1, 2**62):
        with pytest.raises(RequestError, match="lifetime"):
            lifetime_of(seconds)


def agent(node: str = "n1", uid: str = "u1", **more: str) -> Pod:
    meta = Meta(name=more.get("name", "ztunnel-1"), namespace="istio-system", uid=uid)
    return Pod(meta, node=node, service_account=more.get("account", "ztunnel"))


def web(node: str = "n1", phase: str = "Running") -> Pod:
    return Pod(Meta(name="web", namespace="shop"), node=node, service_account="web", phase=phase)


def index(*pods: Pod) -> PodIndex:
    return PodIndex().apply({ObjectKey("Pod", pod.meta.namespace, pod.meta.name): pod for pod in pods})


CALLER = Caller("istio-system", "ztunnel", "ztunnel-1", "u1", "n1")
TRUST = Trust("cluster.local", frozenset({("istio-system", "ztunnel")}))


def test_an_agent_may_have_the_identity_of_a_pod_on_its_node() -> None:
    assert authorize(CALLER, str(WEB), index(agent(), web()), TRUST) == Allowed(WEB)


def test_anyone_may_have_its_own_identity_of_our_trust_domain() -> None:
    caller = Caller("shop", "web")
    trust = Trust("corp", frozenset())
    assert authorize(caller, None, PodIndex(), trust) == Allowed(SpiffeId("corp", "shop", "web"))
    assert authorize(caller, "", PodIndex(), trust) == Allowed(SpiffeId("corp", "shop", "web"))


def test_the_identity_of_a_bound_token_ends_with_its_pod() -> None:
    own = SpiffeId("cluster.local", "istio-system", "ztunnel")
    assert authorize(CALLER, None, index(agent()), TRUST) == Allowed(own)
    assert isinstance(authorize(CALLER, None, index(), TRUST), Denied)
    assert isinstance(authorize(CALLER, None, index(agent(uid="successor")), TRUST), Denied)


@pytest.mark.parametrize(
    ("caller", "requested", "pods", "reason"),
    [
        (CALLER, str(WEB), [agent(), web("n2")], "no pod of shop/web runs on node n1"),
        (CALLER, str(WEB), [agent()], "no pod of shop/web"),
        (CALLER, str(WEB), [agent(), web(phase="Failed")], "no pod of shop/web"),
        (CALLER, "spiffe://other/ns/shop/sa/web", [agent(), web()], "another trust domain"),
        (CALLER, "spiffe://cluster.local/shop/web", [agent(), web()], "requested identity"),
        (CALLER, "nonsense", [agent(), web()], "requested identity"),
        (Caller("shop", "web", "web", "", "n1"), str(WEB), [agent(), web()], "not a trusted node account"),
        (Caller("istio-system", "ztunnel"), str(WEB), [agent(), web()], "not bound to a pod"),
        (Caller("istio-system", "ztunnel", "ztunnel-1", ""), str(WEB), [agent(), web()], "not bound"),
        (CALLER, str(WEB), [web()], "is not known"),
        (CALLER, str(WEB), [agent(uid="u2"), web()], "has UID u2, the token u1"),
        (CALLER, str(WEB), [agent(uid=""), web()], "has UID \\(none\\)"),
        (CALLER, str(WEB), [agent(account="other"), web()], "runs as other"),
        (CALLER, str(WEB), [agent("n2"), web("n2")], "is on node n2, the token says n1"),
        (CALLER, str(WEB), [agent(""), web()], "is on node"),
        (Caller("istio-system", "ztunnel", "ztunnel-1", "u1"), str(WEB), [agent(""), web("")], "no node yet"),
    ],
)
def test_every_refusal_of_impersonation(caller: Caller, requested: str, pods: list[Pod], reason: str) -> None:
    decision = authorize(caller, requested, index(*pods), TRUST)
    assert isinstance(decision, Denied)
    assert re.search(reason, decision.reason), decision.reason


def test_a_pod_that_succeeded_still_counts() -> None:
    assert isinstance(authorize(CALLER, str(WEB), index(agent(), web(phase="Succeeded")), TRUST), Allowed)


def test_the_pod_index_follows_moves_and_removals_and_leaves_old_snapshots_alone() -> None:
    first = index(web("n1"))
    key = ObjectKey("Pod", "shop", "web")
    second = first.apply({key: web("n2")})
    third = second.apply({key: None})
    assert [one.runs_on("n1", "shop", "web") for one in (first, second, third)] == [True, False, False]
    assert [one.runs_on("n2", "shop", "web") for one in (first, second, third)] == [False, True, False]


def test_two_pods_of_an_account_on_a_node_and_one_goes() -> None:
    other = Pod(Meta(name="web2", namespace="shop"), node="n1", service_account="web")
    pods = index(web(), other).apply({ObjectKey("Pod", "shop", "web"): None})
    assert pods.runs_on("n1", "shop", "web")


KEY = ec.generate_private_key(ec.SECP256R1())


def test_a_token_says_who_its_caller_is() -> None:
    assert verify(mint(KEY, CALLER, NOW), KEY.public_key(), NOW) == CALLER
    unbound = Caller("shop", "web")
    assert verify(mint(KEY, unbound, NOW), KEY.public_key(), NOW) == unbound


def forged(**changes: object) -> str:
    claims = jwt.decode(mint(KEY, CALLER, NOW), options={"verify_signature": False})
    claims.update(changes)
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, KEY, algorithm="ES256")


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (mint(ec.generate_private_key(ec.SECP256R1()), CALLER, NOW), "Signature"),
        (mint(KEY, CALLER, NOW - DAY), "expired"),
        (mint(KEY, CALLER, NOW + DAY), "not valid yet"),
        (forged(aud="other"), "udience"),
        (forged(iss="other"), "ssuer"),
        (forged(sub="system:serviceaccount:kube-system:admin"), "differ"),
        (forged(**{"kubernetes.io": None}), "no kubernetes.io"),
        (forged(**{"kubernetes.io": {"namespace": "x"}}), "no service account"),
        (forged(exp=None), "exp"),
        (forged(exp="soon"), "exp"),
        ("", "token refused"),
        ("x" * 20000, "too long"),
    ],
)
def test_every_refusal_of_a_token(token: str, reason: str) -> None:
    with pytest.raises(TokenError, match=reason):
        verify(token, KEY.public_key(), NOW)


def test_a_token_without_signature_is_refused() -> None:
    claims = jwt.decode(mint(KEY, CALLER, NOW), options={"verify_signature": False})
    with pytest.raises(TokenError):
        verify(jwt.encode(claims, None, algorithm="none"), KEY.public_key(), NOW)


def test_a_token_signed_with_the_public_key_as_a_secret_is_refused() -> None:
    claims = jwt.decode(mint(KEY, CALLER, NOW), options={"verify_signature": False})
    public = KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )

    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    signed = f"{encoded(json.dumps({'alg': 'HS256'}).encode())}.{encoded(json.dumps(claims).encode())}"
    token = f"{signed}.{encoded(hmac.digest(public, signed.encode(), hashlib.sha256))}"
    with pytest.raises(TokenError):
        verify(token, KEY.public_key(), NOW)


def test_the_token_key_is_kept_and_is_not_the_cas(tmp_path: Path) -> None:
    first, second = load_or_create_token_key(tmp_path), load_or_create_token_key(tmp_path)
    assert first.public_key() == second.public_key()
    assert first.public_key() != Authority.load_or_create(tmp_path, "cluster.local", NOW).key.public_key()


def names_in(pair: ServingPair) -> list[str]:
    leaf = x509.load_pem_x509_certificate(pair.chain_pem)
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [*san.get_values_for_type(x509.DNSName), *map(str, san.get_values_for_type(x509.IPAddress))]


def test_the_serving_certificate_is_renewed_at_half_of_its_life(authority: Authority) -> None:
    serving = ServingCertificate(authority, lambda: ["istiod.istio-system.svc", "10.0.0.1"])
    first = serving.current(NOW)
    assert names_in(first) == ["istiod.istio-system.svc", "10.0.0.1"]
    assert serving.current(NOW + LIFETIME / 2 - DAY / 24) is first
    assert serving.current(NOW + LIFETIME / 2).not_after > first.not_after


def test_the_serving_certificate_follows_new_addresses_and_ignores_lost_ones(authority: Authority) -> None:
    names = ["a.svc"]
    serving = ServingCertificate(authority, lambda: list(names))
    first = serving.current(NOW)
    names.append("10.0.0.2")
    assert serving.current(NOW + NAMES_AGE / 2) is first, "names are asked for only now and then"
    second = serving.current(NOW + NAMES_AGE)
    assert names_in(second) == ["a.svc", "10.0.0.2"]
    names.pop()
    assert serving.current(NOW + 2 * NAMES_AGE) is second
