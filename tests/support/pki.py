"""A certificate mint for tests: sound SPIFFE certificates, and every defect a peer could present.

Everything goes out as PEM bytes, the shape `hbone.engine.Engine.set_identity` and `ssl` files take.
Times are given as offsets from now in seconds so that "expired two seconds ago" reads as it is meant.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import ssl
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

KeyKind = Literal["ec-p256", "ec-p384", "rsa-2048", "rsa-1024", "ed25519"]
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
PADDING_OID = ObjectIdentifier("1.3.6.1.4.1.99999.1")  # a private arc nobody interprets
DAY = 86_400


def spiffe(
    service_account: str = "default", namespace: str = "default", domain: str = "cluster.local"
) -> str:
    """The SPIFFE URI Istio gives a service account."""
    return f"spiffe://{domain}/ns/{namespace}/sa/{service_account}"


def make_key(kind: KeyKind = "ec-p256") -> PrivateKey:
    """A fresh private key."""
    if kind == "ec-p256":
        return ec.generate_private_key(ec.SECP256R1())
    if kind == "ec-p384":
        return ec.generate_private_key(ec.SECP384R1())
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, int(kind.removeprefix("rsa-")))


def key_to_pem(key: PrivateKey) -> bytes:
    """PKCS #8 without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def cert_to_pem(cert: x509.Certificate) -> bytes:
    """One PEM block."""
    return cert.public_bytes(serialization.Encoding.PEM)


def _moment(offset: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=offset)


def _signing_hash(key: PrivateKey) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


@dataclass(frozen=True, slots=True)
class Credential:
    """What one end of a TLS connection holds: leaf first, then intermediates; no root in `chain_pem`."""

    chain_pem: bytes
    key_pem: bytes
    roots_pem: bytes
    uris: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        """The only URI SAN of a sound certificate."""
        (only,) = self.uris
        return only

    @property
    def leaf(self) -> x509.Certificate:
        """The leaf, parsed."""
        return x509.load_pem_x509_certificate(self.chain_pem)

    def write(self, folder: Path, name: str) -> tuple[Path, Path, Path]:
        """Write NAME.crt, NAME.key and NAME.roots; give their paths in that order."""
        paths = (folder / f"{name}.crt", folder / f"{name}.key", folder / f"{name}.roots")
        for path, pem in zip(paths, (self.chain_pem, self.key_pem, self.roots_pem), strict=True):
            path.write_bytes(pem)
        return paths

    def trusting(self, *others: Authority) -> Credential:
        """The same credential, believing in other roots."""
        return Credential(self.chain_pem, self.key_pem, b"".join(o.pem for o in others), self.uris)

    def ssl_context(self, *, server: bool, alpn: Sequence[str] = ("h2",)) -> ssl.SSLContext:
        """A context that presents this credential and verifies the peer's chain but no name."""
        context = unverified_context(server=server, alpn=alpn)
        context.load_verify_locations(cadata=self.roots_pem.decode())
        context.verify_mode = ssl.CERT_REQUIRED
        load_chain(context, self)
        return context


def unverified_context(*, server: bool, alpn: Sequence[str] = ("h2",)) -> ssl.SSLContext:
    """A context that presents nothing, checks nothing, and allows weak keys: the peer may be defective."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if server:
        context.num_tickets = 0
    return context


def load_chain(context: ssl.SSLContext, credential: Credential) -> None:
    """Give a context a certificate held in memory (the ssl module takes only files)."""
    with tempfile.TemporaryDirectory() as folder:
        chain, key, _ = credential.write(Path(folder), "it")
        context.load_cert_chain(chain, key)


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that signs others: a root, an intermediate, or a leaf that has no right to."""

    cert: x509.Certificate
    key: PrivateKey
    above: tuple[x509.Certificate, ...] = ()  # intermediates between this one and its root, nearest first
    roots: tuple[x509.Certificate, ...] = field(default=())

    @classmethod
    def root(
        cls,
        name: str = "test root",
        *,
        key: KeyKind = "ec-p256",
        not_before: float = -DAY,
        not_after: float = 3650 * DAY,
    ) -> Authority:
        """A self-signed root."""
        own = make_key(key)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, subject, own, not_before, not_after)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(_usage(ca=True), critical=True)
        cert = _identified(builder, own, own).sign(own, _signing_hash(own))
        return cls(cert, own, (), (cert,))

    @property
    def pem(self) -> bytes:
        """This certificate alone."""
        return cert_to_pem(self.cert)

    @property
    def roots_pem(self) -> bytes:
        """The root (or roots) this authority's chain ends in."""
        return b"".join(map(cert_to_pem, self.roots))

    @property
    def path(self) -> tuple[x509.Certificate, ...]:
        """What a leaf signed here has to send along: this and all above, without the root."""
        return () if self.cert in self.roots else (self.cert, *self.above)

    def intermediate(
        self,
        name: str = "test intermediate",
        *,
        ca: bool = True,
        path_length: int | None = None,
        key: KeyKind = "ec-p256",
        not_before: float = -DAY,
        not_after: float = 365 * DAY,
    ) -> Authority:
        """An authority under this one. `ca=False` makes one that must not sign but will."""
        own = make_key(key)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self.cert.subject, own, not_before, not_after)
        limit = path_length if ca else None
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=limit), critical=True)
        builder = builder.add_extension(_usage(ca=ca), critical=True)
        cert = _identified(builder, own, self.key).sign(self.key, _signing_hash(self.key))
        return Authority(cert, own, self.path, self.roots)

    def chain_of(self, length: int) -> Authority:
        """An authority with `length` intermediates between itself (counted) and this one."""
        under = self
        for depth in range(length):
            under = under.intermediate(f"test intermediate {depth}")
        return under

    def leaf(
        self,
        *uris: str,
        dns: Sequence[str] = (),
        ips: Sequence[str] = (),
        ca: bool = False,
        usages: Sequence[ObjectIdentifier] | None = (SERVER_AUTH, CLIENT_AUTH),
        key: KeyKind = "ec-p256",
        not_before: float = -3600,
        not_after: float = DAY,
        padding: int = 0,
        subject: str = "",
        serial: int | None = None,
        extra_chain: Sequence[x509.Certificate] = (),
    ) -> Credential:
        """A leaf for these URI SANs (none at all when `uris` is empty).

        `usages=None` leaves the extended key usage out, `ca=True` claims CA rights, `padding` adds an
        unknown extension of that many bytes, `extra_chain` is sent after the true chain.
        """
        own = make_key(key)
        builder = _builder(_name(subject), self.cert.subject, own, not_before, not_after, serial)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(u) for u in uris]
        names += [x509.DNSName(d) for d in dns]
        names += [x509.IPAddress(ipaddress.ip_address(i)) for i in ips]
        if names:
            # an empty subject makes the alternative name critical (RFC 5280 4.2.1.6)
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        builder = builder.add_extension(_usage(ca=ca), critical=True)
        if usages is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
        if padding:
            blob = x509.UnrecognizedExtension(PADDING_OID, b"\x04" * padding)
            builder = builder.add_extension(blob, critical=False)
        cert = _identified(builder, own, self.key).sign(self.key, _signing_hash(self.key))
        chain = (cert, *self.path, *extra_chain)
        return Credential(b"".join(map(cert_to_pem, chain)), key_to_pem(own), self.roots_pem, uris)

    def weak_leaf(self, uri: str, *, digest: str = "sha256", rsa_bits: int = 0) -> Credential:
        """A leaf with a weak signature hash ("sha1", "md5") or a small RSA key, made by the openssl program.

        `cryptography` refuses to make these.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            kind = (
                ["-algorithm", "RSA", "-pkeyopt", f"rsa_keygen_bits:{rsa_bits}"]
                if rsa_bits
                else ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
            )
            (folder / "ca.crt").write_bytes(self.pem)
            (folder / "ca.key").write_bytes(key_to_pem(self.key))
            (folder / "ext").write_text(
                f"subjectAltName=critical,URI:{uri}\nbasicConstraints=critical,CA:FALSE\n"
                "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
            )
            _openssl(folder, "genpkey", *kind, "-out", "leaf.key")
            _openssl(
                folder, "req", "-new", "-sha256", "-key", "leaf.key", "-subj", "/CN=weak", "-out", "leaf.csr"
            )
            _openssl(
                folder,
                *("x509", "-req", "-in", "leaf.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
                *(f"-{digest}", "-days", "2", "-extfile", "ext", "-out", "leaf.crt"),
            )
            chain = (folder / "leaf.crt").read_bytes() + b"".join(map(cert_to_pem, self.path))
            return Credential(chain, (folder / "leaf.key").read_bytes(), self.roots_pem, (uri,))

    def crl(self, *serials: int, not_after: float = DAY) -> bytes:
        """A PEM revocation list of these serial numbers."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.cert.subject)
        builder = builder.last_update(_moment(-60)).next_update(_moment(not_after))
        for serial in serials:
            entry = (
                x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_moment(-30)).build()
            )
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, _signing_hash(self.key)).public_bytes(serialization.Encoding.PEM)


def as_authority(credential: Credential) -> Authority:
    """A leaf that starts signing certificates of its own (nobody must believe them)."""
    certs = x509.load_pem_x509_certificates(credential.chain_pem)
    key = serialization.load_pem_private_key(credential.key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey)
    roots = tuple(x509.load_pem_x509_certificates(credential.roots_pem))
    return Authority(certs[0], key, tuple(certs[1:]), roots)


def join_roots(*authorities: Authority) -> bytes:
    """A bundle of several roots."""
    return b"".join(a.roots_pem for a in authorities)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)] if common else [])


def _identified(
    builder: x509.CertificateBuilder, own: PrivateKey, signer: PrivateKey
) -> x509.CertificateBuilder:
    """With both key identifiers (RFC 5280 4.2.1.1): Python 3.13 asks for them by default."""
    subject = x509.SubjectKeyIdentifier.from_public_key(own.public_key())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return builder.add_extension(subject, critical=False).add_extension(issuer, critical=False)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PrivateKey,
    not_before: float,
    not_after: float,
    serial: int | None = None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(_moment(not_before))
        .not_valid_after(_moment(not_after))
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _openssl(folder: Path, *arguments: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        (folder / "openssl.log").unlink()
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
