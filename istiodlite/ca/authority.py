"""The self-signed root, kept on disk, and the certificates it signs.

ECDSA P-256 rather than RSA 2048: a leaf is signed about thirty times faster (whole nodes ask at once), the
chain on every mesh handshake is about 700 bytes shorter, and every peer of an ambient mesh verifies it.
"""

import datetime
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from istiodlite.ca.files import DataError, locked_directory, write_atomically

ROOT_LIFETIME = datetime.timedelta(days=3650)
# With less than this share of its life left, the root is issued again with the same key.
RENEW_SHARE = 0.2
CLOCK_SKEW = datetime.timedelta(minutes=2)

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

CA_KEY = "ca-key.pem"
ROOT_CERT = "root-cert.pem"
# While one root replaces another; see istiodlite.ca.roots.
NEXT_KEY = "next-ca-key.pem"
NEXT_ROOT = "next-root-cert.pem"
OLD_ROOTS = "old-root-certs.pem"
CROSS_CERT = "cross-cert.pem"


def load_or_create_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A P-256 key from a 0600 file, made if missing. The directory's lock has to be held."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_file(path, pem, 0o600)
        return key
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; make it readable") from None
    if path.stat().st_mode & 0o077:
        raise DataError(f"{path}: others may read this key; chmod 600 it, or delete it if it may have leaked")
    try:
        loaded = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise DataError(f"{path}: not a private key in PEM; restore it or delete it") from None
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise DataError(f"{path}: not an elliptic curve key; restore it or delete it")
    return loaded


def write_file(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all; raises DataError."""
    try:
        write_atomically(path, data, mode)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; choose a writable --data directory") from None


class Issuer(Protocol):
    """Where to get the authority as it stands now: roots are replaced while a server runs."""

    def snapshot(self) -> "Authority": ...


@dataclass(frozen=True, slots=True)
class Authority:
    """Key and certificate of the issuer. `roots_pem` is the bundle that peers have to trust;
    `intermediates_pem` leads from the issuer up to it, one PEM an element, empty if the issuer is the root."""

    trust_domain: str
    key: SigningKey
    certificate: x509.Certificate
    roots_pem: bytes
    intermediates_pem: tuple[bytes, ...] = ()

    @classmethod
    def load_or_create(
        cls, directory: Path | str, trust_domain: str, now: datetime.datetime | None = None
    ) -> Self:
        """The root kept in `directory` (made, 0700, if missing). Raises DataError."""
        directory = Path(directory)
        now = now or datetime.datetime.now(datetime.UTC)
        with locked_directory(directory):
            had_key = (directory / CA_KEY).exists()
            if not had_key and (directory / ROOT_CERT).exists():
                raise DataError(
                    f"{directory}: {ROOT_CERT} is there, {CA_KEY} is not; restore it or delete both"
                )
            key = load_or_create_key(directory / CA_KEY)
            certificate = _settled_root(directory, key, trust_domain, now)
            others = [*read_certificates(directory / NEXT_ROOT), *read_certificates(directory / OLD_ROOTS)]
            cross = [
                one
                for one in read_certificates(directory / CROSS_CERT)
                if one.public_key() == key.public_key() and now < one.not_valid_after_utc
            ]
        trusted = [certificate, *(one for one in others if now < one.not_valid_after_utc)]
        roots = b"".join(dict.fromkeys(map(_pem, trusted)))
        return cls(trust_domain, key, certificate, roots, tuple(map(_pem, cross)))

    def snapshot(self) -> Self:
        """Itself: an authority whose root does not change."""
        return self

    def sign(
        self,
        public_key: CertificatePublicKeyTypes,
        san: list[x509.GeneralName],
        usages: list[x509.ObjectIdentifier],
        now: datetime.datetime,
        lifetime: datetime.timedelta,
    ) -> x509.Certificate:
        """A leaf with an empty subject. Its end is clamped to the root's."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(new_serial())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(min(now + lifetime, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_LEAF_USAGE, critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            # Critical because the subject is empty (RFC 5280, 4.2.1.6).
            .add_extension(x509.SubjectAlternativeName(san), critical=True)
            .add_extension(authority_key(self.certificate), critical=False)
        )
        return builder.sign(self.key, hashes.SHA256())


def _public(issuer: x509.Certificate) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    key = issuer.public_key()
    assert isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey))
    return key


def authority_key(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """As the issuer names its key itself; an issuer from elsewhere may use another hash than we would."""
    try:
        named = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(_public(issuer))
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(named)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _usage(*, leaf: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=leaf,
        key_encipherment=leaf,
        key_cert_sign=not leaf,
        crl_sign=not leaf,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


_LEAF_USAGE = _usage(leaf=True)


def new_serial() -> int:
    """128 random bits; positive, and never 0."""
    return secrets.randbits(128) or 1


def read_certificates(path: Path) -> list[x509.Certificate]:
    """All of a file; none if there is no such file. Raises DataError."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; make it readable") from None
    except ValueError:
        raise DataError(
            f"{path}: not a certificate in PEM; delete it, it is made again from the key"
        ) from None


def _settled_root(
    directory: Path, key: ec.EllipticCurvePrivateKey, trust_domain: str, now: datetime.datetime
) -> x509.Certificate:
    """The certificate of the key that signs: as it is on disk, or made (again) because there is none or it has
    expired."""
    path = directory / ROOT_CERT
    found = read_certificates(path)
    certificate = found[0] if found else None
    if certificate is not None and certificate.public_key() != key.public_key():
        certificate = _half_activated(directory, key)
    if certificate is None or certificate.not_valid_after_utc <= now:
        # With the same key and name, so that what it signed still leads to it.
        certificate = self_signed(key, trust_domain, now, certificate.subject if certificate else None)
        write_file(path, _pem(certificate), 0o644)
    return certificate


def _half_activated(directory: Path, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Completes a change of roots that was broken off after the key and before the certificate."""
    following = read_certificates(directory / NEXT_ROOT)
    if not following or following[0].public_key() != key.public_key():
        raise DataError(
            f"{directory / ROOT_CERT}: does not belong to {CA_KEY} beside it; restore the matching pair"
        )
    write_file(directory / ROOT_CERT, _pem(following[0]), 0o644)
    for name in (NEXT_KEY, NEXT_ROOT):
        (directory / name).unlink(missing_ok=True)
    return following[0]


def is_old(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    """So little of its life is left that the root is to be issued again."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - now < life * RENEW_SHARE


def self_signed(
    key: SigningKey, trust_domain: str, now: datetime.datetime, subject: x509.Name | None = None
) -> x509.Certificate:
    """A new root certificate for this key. One that replaces another needs the other's subject, or what that
    one signed would no longer lead to it."""
    name = subject or x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain)])
    begin = now - CLOCK_SKEW
    builder = ca_builder(name, name, key.public_key(), begin, now + ROOT_LIFETIME)
    return builder.sign(key, hashes.SHA256())


def ca_builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: CertificatePublicKeyTypes,
    begin: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    """A certificate that may sign others, to be signed."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(new_serial())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(leaf=False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
