"""Workload certificates (X.509-SVIDs): asking for one, and checking what the CA gave.

Sources: SPIFFE X.509-SVID; Istio's CreateCertificate answers a list whose first element is the leaf,
whose last element holds the roots (one or more), and whose middle holds intermediates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hbone.spiffe import SpiffeError, SpiffeId

__all__ = ["Svid", "SvidError", "from_issued", "identity_of", "make_csr"]

_MIN_ELEMENTS: Final = 2
_MAX_CERTIFICATES: Final = 32


class SvidError(ValueError):
    """The CA's answer cannot be used; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Svid:
    """A checked certificate with its key. PEM throughout; times are aware and in UTC.

    `chain_pem` is the leaf followed by the intermediates, without roots.
    """

    identity: SpiffeId
    chain_pem: bytes
    key_pem: bytes
    roots_pem: bytes
    not_before: datetime
    not_after: datetime
    serial: int


def make_csr(identity: SpiffeId) -> tuple[str, bytes]:
    """A signing request and its new P-256 key (PKCS#8), both PEM.

    The subject is empty, so the one extension, a URI SAN, has to be critical (RFC 5280, 4.2.1.6).
    """
    key = ec.generate_private_key(ec.SECP256R1())
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(san, critical=True)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return csr.public_bytes(serialization.Encoding.PEM).decode(), key_pem


def from_issued(identity: SpiffeId, key_pem: bytes, cert_chain: Sequence[str], now: datetime) -> Svid:
    """Check an issued chain against what was asked for, at the aware time `now`.

    Raises SvidError unless the leaf is for `identity` and for this key, is valid now, and is signed,
    over the given intermediates, by one of the given roots.
    """
    if len(cert_chain) < _MIN_ELEMENTS:
        raise SvidError(f"the CA sent {len(cert_chain)} certificates; a leaf and the roots are needed")
    chain = [certificate for element in cert_chain[:-1] for certificate in _read(element)]
    roots = _read(cert_chain[-1])
    leaf = chain[0]
    found = identity_of(leaf)
    if found != identity:
        raise SvidError(f"the CA issued a certificate for {found}, not for {identity}")
    _check_key(leaf, key_pem)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise SvidError(
            f"the certificate is valid from {leaf.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"
            f" to {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}, which is not now"
        )
    _check_signatures(chain, roots)
    return Svid(
        identity=identity,
        chain_pem=_pem(chain),
        key_pem=key_pem,
        roots_pem=_pem(roots),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        serial=leaf.serial_number,
    )


def identity_of(certificate: x509.Certificate) -> SpiffeId:
    """The identity in the certificate's only URI SAN; none, several or another shape: SvidError."""
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = san.get_values_for_type(x509.UniformResourceIdentifier)
        return SpiffeId.parse(uri)
    except (x509.ExtensionNotFound, SpiffeError, ValueError) as error:
        raise SvidError(f"the certificate does not carry exactly one SPIFFE identity: {error}") from error


def _read(pem: str) -> list[x509.Certificate]:
    try:
        certificates = x509.load_pem_x509_certificates(pem.encode())
    except ValueError as error:
        raise SvidError("the CA sent something that is not a PEM certificate") from error
    if len(certificates) > _MAX_CERTIFICATES:
        raise SvidError(f"the CA sent more than {_MAX_CERTIFICATES} certificates in one element")
    return certificates


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def _check_key(leaf: x509.Certificate, key_pem: bytes) -> None:
    private = serialization.load_pem_private_key(key_pem, None)
    if leaf.public_key() != private.public_key():
        raise SvidError("the CA issued a certificate for another key")


def _check_signatures(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]) -> None:
    for issued, issuer in pairwise(chain):
        if not _issued_by(issued, issuer):
            raise SvidError("the CA's chain is out of order or not signed by its next certificate")
    if not any(_issued_by(chain[-1], root) for root in roots):
        raise SvidError("the CA's chain does not lead to any of the roots it sent")


def _issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    try:
        return issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False
