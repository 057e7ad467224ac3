"""From a signing request to a certificate chain: what is checked, what is ignored, what is set.

The identity is never read from the request: extensions and subject of the CSR are ignored, the SAN is what
authorization allowed. From the CSR come only the key and the proof that the caller has it.
"""

import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from hbone.spiffe import SpiffeId
from istiodlite.ca.authority import Authority

MAX_CSR_BYTES = 16 * 1024
DEFAULT_LIFETIME = datetime.timedelta(hours=24)
MAX_LIFETIME = datetime.timedelta(days=90)
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


class RequestError(ValueError):
    """The request itself is not acceptable (gRPC INVALID_ARGUMENT)."""


def read_csr(pem: str) -> CertificatePublicKeyTypes:
    """The public key of a signing request whose signature is right. Raises RequestError."""
    if len(pem) > MAX_CSR_BYTES:
        raise RequestError(f"the CSR has {len(pem)} bytes, more than {MAX_CSR_BYTES}")
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        key = csr.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise RequestError("the CSR is not a signing request in PEM") from None
    # Before the signature: verifying one of a huge key is the caller's way to spend our time.
    _check_key(key)
    try:
        valid = csr.is_signature_valid
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        valid = False
    if not valid:
        raise RequestError("the CSR's signature does not verify")
    return key


def _check_key(key: CertificatePublicKeyTypes) -> None:
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise RequestError(f"curve {key.curve.name} is not accepted; use P-256")
    elif isinstance(key, rsa.RSAPublicKey):
        if not 2048 <= key.key_size <= 4096:
            raise RequestError(
                f"an RSA key of {key.key_size} bits is not accepted; use 2048 to 4096, or P-256"
            )
    elif not isinstance(key, ed25519.Ed25519PublicKey):
        raise RequestError("this type of key is not accepted; use ECDSA P-256")


def lifetime_of(seconds: int) -> datetime.timedelta:
    """0 is the default; negative or over the maximum raises RequestError."""
    if seconds == 0:
        return DEFAULT_LIFETIME
    if seconds < 0 or seconds > MAX_LIFETIME.total_seconds():
        raise RequestError(
            f"a lifetime of {seconds} s is not accepted; ask for 1 to {MAX_LIFETIME.days} days"
        )
    return datetime.timedelta(seconds=seconds)


def issue(
    authority: Authority,
    identity: SpiffeId,
    key: CertificatePublicKeyTypes,
    lifetime: datetime.timedelta,
    now: datetime.datetime,
) -> x509.Certificate:
    """A workload certificate, for both ends of mutual TLS."""
    return authority.sign(
        key,
        [x509.UniformResourceIdentifier(str(identity))],
        [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
        now,
        lifetime,
    )


def chain(authority: Authority, leaf: x509.Certificate) -> list[str]:
    """As agents split it: one PEM an element, the leaf first, the bundle of roots last."""
    own = [leaf.public_bytes(serialization.Encoding.PEM), *authority.intermediates_pem, authority.roots_pem]
    return [pem.decode() for pem in own]
