"""The roots of the secret `istio-ca-secret` while one replaces another: the steps of `rotation` on its files. Pure but
for the new key.

Istio's own entries stay what an istiod expects: ca-cert.pem and ca-key.pem sign, root-cert.pem is the bundle that peers
trust. What only the change needs stands beside them.
"""

import datetime
from collections.abc import Mapping

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from istiodlite.ca.authority import Authority, SigningKey, self_signed
from istiodlite.ca.files import DataError
from istiodlite.ca.roots import cross_certificate, new_root_name
from istiodlite.ca.rotation import Roots, Span, Step
from istiodlite.ca.secrets import (
    CERT,
    CROSS,
    KEY,
    NEXT_CERT,
    NEXT_KEY,
    OLD_ROOTS,
    ROOT,
    authority_of,
    certificates_of,
    key_of,
)

Files = Mapping[str, bytes]


def authority(files: Files, trust_domain: str, where: str, now: datetime.datetime) -> Authority:
    """The issuer, with the certificate that leads from its root to the one before while there is one. DataError."""
    found = authority_of(files, trust_domain, where, now)
    cross = [
        one
        for one in _certificates(files, CROSS, where)
        if one.public_key() == found.certificate.public_key() and now < one.not_valid_after_utc
    ]
    if not cross:
        return found
    return Authority(trust_domain, found.key, found.certificate, found.roots_pem, tuple(map(_pem, cross)))


def state_of(files: Files, where: str) -> Roots:
    """How far a change is. Raises DataError."""
    current = _certificates(files, CERT, where)[0]
    upcoming = _certificates(files, NEXT_CERT, where)
    return Roots(_span(current), _span(upcoming[0]) if upcoming else None, OLD_ROOTS in files)


def take(step: Step, files: Files, trust_domain: str, where: str, now: datetime.datetime) -> dict[str, bytes]:
    """The files after a step. Raises DataError."""
    if _certificates(files, CERT, where)[0] not in _certificates(files, ROOT, where):
        raise DataError(f"{where}: {CERT} is not a root; who issued it has to replace it")
    if step is Step.INTRODUCE:
        return _introduce(files, trust_domain, where, now)
    if step is Step.ACTIVATE:
        return _activate(files, where)
    left = {name: data for name, data in files.items() if name not in (OLD_ROOTS, CROSS)}
    return {**left, ROOT: files[CERT]}


def _introduce(files: Files, trust_domain: str, where: str, now: datetime.datetime) -> dict[str, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    root = _pem(self_signed(key, trust_domain, now, new_root_name(trust_domain, now)))
    return {**files, NEXT_KEY: _key_pem(key), NEXT_CERT: root, ROOT: _bundle(files[ROOT], root, where)}


def _activate(files: Files, where: str) -> dict[str, bytes]:
    current, following = (_certificates(files, name, where)[0] for name in (CERT, NEXT_CERT))
    if key_of(files[NEXT_KEY], where).public_key() != following.public_key():
        raise DataError(f"{where}: {NEXT_KEY} does not belong to {NEXT_CERT}; remove both to begin again")
    cross = cross_certificate(following, current, key_of(files[KEY], where))
    left = {name: data for name, data in files.items() if name not in (NEXT_KEY, NEXT_CERT)}
    old = _bundle(files[CERT], files.get(OLD_ROOTS, b""), where)
    new = {KEY: files[NEXT_KEY], CERT: files[NEXT_CERT], CROSS: _pem(cross), OLD_ROOTS: old}
    return {**left, **new, ROOT: _bundle(files[NEXT_CERT], files[ROOT], where)}


def _bundle(first: bytes, second: bytes, where: str) -> bytes:
    """Each certificate of both once."""
    found = [one for data in (first, second) if data for one in certificates_of(data, where)]
    return b"".join(dict.fromkeys(map(_pem, found)))


def _certificates(files: Files, name: str, where: str) -> list[x509.Certificate]:
    data = files.get(name, b"")
    return certificates_of(data, f"{where}: {name}") if data.strip() else []


def _span(certificate: x509.Certificate) -> Span:
    return Span(certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: SigningKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
