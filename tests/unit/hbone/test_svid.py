"""Asking for a certificate, and checking what the CA gave."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from hbone.spiffe import SpiffeId
from hbone.svid import Svid, SvidError, from_issued, make_csr
from tests.support import pki

IDENTITY = SpiffeId("cluster.local", "shop", "cart")
URI = str(IDENTITY)


def now() -> datetime:
    return datetime.now(UTC)


def elements(credential: pki.Credential) -> list[str]:
    """The CA's answer for a credential: leaf, intermediates one by one, all roots in the last."""
    chain = x509.load_pem_x509_certificates(credential.chain_pem)
    return [pki.cert_to_pem(cert).decode() for cert in chain] + [credential.roots_pem.decode()]


def take(credential: pki.Credential, *, at: datetime | None = None) -> Svid:
    return from_issued(IDENTITY, credential.key_pem, elements(credential), at or now())


def test_the_request_has_an_empty_subject_and_one_critical_uri() -> None:
    csr_pem, key_pem = make_csr(IDENTITY)
    csr = x509.load_pem_x509_csr(csr_pem.encode())
    (extension,) = csr.extensions
    assert csr.is_signature_valid
    assert list(csr.subject) == []
    assert extension.critical
    assert isinstance(extension.value, x509.SubjectAlternativeName)
    assert list(extension.value) == [x509.UniformResourceIdentifier(URI)]
    key = load_pem_private_key(key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    assert key_pem.startswith(b"-----BEGIN PRIVATE KEY-----")


def test_every_request_has_a_key_of_its_own() -> None:
    assert make_csr(IDENTITY)[1] != make_csr(IDENTITY)[1]


@pytest.mark.parametrize("intermediates", [0, 1, 3])
def test_a_sound_chain_is_taken_with_its_roots_apart(intermediates: int) -> None:
    authority = pki.Authority.root().chain_of(intermediates)
    credential = authority.leaf(URI)
    svid = take(credential)
    assert svid.identity == IDENTITY
    assert svid.chain_pem == credential.chain_pem
    assert svid.roots_pem == credential.roots_pem
    assert svid.key_pem == credential.key_pem
    assert svid.serial == credential.leaf.serial_number
    assert svid.not_before == credential.leaf.not_valid_before_utc
    assert svid.not_after == credential.leaf.not_valid_after_utc


def test_several_roots_are_all_kept() -> None:
    old, new = pki.Authority.root("old"), pki.Authority.root("new")
    credential = new.leaf(URI)
    answer = [*elements(credential)[:-1], pki.join_roots(old, new).decode()]
    svid = from_issued(IDENTITY, credential.key_pem, answer, now())
    assert len(x509.load_pem_x509_certificates(svid.roots_pem)) == 2


def test_intermediates_may_stand_in_one_element() -> None:
    credential = pki.Authority.root().chain_of(2).leaf(URI)
    answer = [credential.chain_pem.decode(), credential.roots_pem.decode()]
    assert from_issued(IDENTITY, credential.key_pem, answer, now()).chain_pem == credential.chain_pem


@pytest.mark.parametrize("count", [0, 1])
def test_an_answer_without_roots_is_refused(count: int) -> None:
    credential = pki.Authority.root().leaf(URI)
    with pytest.raises(SvidError, match="needed"):
        from_issued(IDENTITY, credential.key_pem, elements(credential)[:count], now())


@pytest.mark.parametrize(
    "uris",
    [
        (),
        ("spiffe://cluster.local/ns/shop/sa/other",),
        ("spiffe://elsewhere/ns/shop/sa/cart",),
        (URI, "spiffe://cluster.local/ns/shop/sa/other"),
        (URI, URI),
        ("https://cluster.local/",),
    ],
)
def test_a_certificate_for_anyone_else_is_refused(uris: tuple[str, ...]) -> None:
    with pytest.raises(SvidError):
        take(pki.Authority.root().leaf(*uris, dns=["cart"]))


def test_a_certificate_for_another_key_is_refused() -> None:
    credential = pki.Authority.root().leaf(URI)
    with pytest.raises(SvidError, match="another key"):
        from_issued(IDENTITY, make_csr(IDENTITY)[1], elements(credential), now())


def test_a_certificate_of_another_kind_of_key_is_refused() -> None:
    credential = pki.Authority.root().leaf(URI, key="ec-p384")
    with pytest.raises(SvidError, match="another key"):
        from_issued(IDENTITY, make_csr(IDENTITY)[1], elements(credential), now())


@pytest.mark.parametrize("seconds", [-3601, 86401])
def test_a_certificate_that_is_not_valid_now_is_refused(seconds: int) -> None:
    credential = pki.Authority.root().leaf(URI, not_before=-3600, not_after=86400)
    with pytest.raises(SvidError, match="not now"):
        take(credential, at=now() + timedelta(seconds=seconds))


def test_a_chain_that_does_not_lead_to_the_roots_sent_is_refused() -> None:
    credential = pki.Authority.root("a").leaf(URI)
    stranger = pki.Authority.root("a")
    with pytest.raises(SvidError, match="does not lead"):
        from_issued(IDENTITY, credential.key_pem, elements(credential.trusting(stranger)), now())


def test_a_chain_in_the_wrong_order_is_refused() -> None:
    credential = pki.Authority.root().chain_of(2).leaf(URI)
    leaf, first, second, roots = elements(credential)
    with pytest.raises(SvidError, match="out of order"):
        from_issued(IDENTITY, credential.key_pem, [leaf, second, first, roots], now())


def test_a_leaf_signed_by_a_leaf_is_refused() -> None:
    signer = pki.as_authority(pki.Authority.root().leaf("spiffe://cluster.local/ns/shop/sa/evil"))
    with pytest.raises(SvidError, match="out of order"):
        take(signer.leaf(URI))


@pytest.mark.parametrize("junk", ["", "<html>503</html>", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
@pytest.mark.parametrize("position", [0, 1])
def test_something_that_is_no_certificate_is_refused_in_one_line(junk: str, position: int) -> None:
    credential = pki.Authority.root().leaf(URI)
    answer = elements(credential)
    answer[position] = junk
    with pytest.raises(SvidError) as caught:
        from_issued(IDENTITY, credential.key_pem, answer, now())
    assert "\n" not in str(caught.value)


def test_endless_chains_are_refused() -> None:
    credential = pki.Authority.root().leaf(URI)
    answer = [credential.chain_pem.decode() * 40, credential.roots_pem.decode()]
    with pytest.raises(SvidError, match="more than"):
        from_issued(IDENTITY, credential.key_pem, answer, now())
