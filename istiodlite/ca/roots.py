"""The roots of a data directory while one replaces the other, and the authority that follows them.

ca-key.pem and root-cert.pem are what signs; next-*.pem is handed out already; old-root-certs.pem is trusted still, and
cross-cert.pem is the current root signed by the one before. Every step may be broken off anywhere: read again, the
directory says what is left to do.
"""

import datetime
import logging
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from istiodlite.ca import rotation
from istiodlite.ca.authority import (
    CA_KEY,
    CROSS_CERT,
    NEXT_KEY,
    NEXT_ROOT,
    OLD_ROOTS,
    ROOT_CERT,
    Authority,
    SigningKey,
    authority_key,
    ca_builder,
    load_or_create_key,
    read_certificates,
    self_signed,
    write_file,
)
from istiodlite.ca.files import DataError, locked_directory
from istiodlite.ca.rotation import Roots, Span, Step, Times

_log = logging.getLogger("istiodlite.ca")


class RotatingAuthority:
    """An issuer that changes roots in time. `refresh` may be called from any thread, one at a time."""

    def __init__(self, directory: Path | str, trust_domain: str, times: Times = Times()) -> None:  # noqa: B008
        self._directory, self._trust_domain, self._times = Path(directory), trust_domain, times
        # Replaced as a whole: other threads read it.
        self._current = Authority.load_or_create(self._directory, trust_domain)

    def snapshot(self) -> Authority:
        """As it stands now."""
        return self._current

    def refresh(self, now: datetime.datetime) -> Step | None:
        """Takes the step that is due, if one is, and what others did to the directory. Raises DataError."""
        step = advance_if_due(self._directory, self._trust_domain, now, self._times)
        if step is not None:
            _log.warning("roots: %s", _SAID[step])
        self._current = Authority.load_or_create(self._directory, self._trust_domain, now)
        return step


_SAID = {
    Step.INTRODUCE: "a new root is handed out beside the one in use; it does not sign yet",
    Step.ACTIVATE: "the new root signs; the old one stays trusted",
    Step.RETIRE: "the old root is no longer trusted",
}


def state_of(directory: Path | str) -> Roots:
    """What a directory that has a root holds. Raises DataError."""
    directory = Path(directory)
    found = read_certificates(directory / ROOT_CERT)
    if not found:
        raise DataError(f"{directory}: there is no root yet; start the control plane, or print root-cert")
    current = found[0]
    upcoming = read_certificates(directory / NEXT_ROOT)
    old = any(one != current for one in read_certificates(directory / OLD_ROOTS))
    return Roots(_span(current), _span(upcoming[0]) if upcoming else None, old)


def _span(certificate: x509.Certificate) -> Span:
    return Span(certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def advance_if_due(
    directory: Path,
    trust_domain: str,
    now: datetime.datetime,
    times: Times = Times(),  # noqa: B008
) -> Step | None:
    """The step taken, if one was due. Raises DataError."""
    with locked_directory(directory):
        roots = state_of(directory)
        if now < rotation.due_at(roots, times):
            return None
        return _take(directory, trust_domain, now, rotation.next_step(roots))


def advance(directory: Path | str, trust_domain: str, now: datetime.datetime) -> Step:
    """Takes the next step at once, due or not. Raises DataError."""
    directory = Path(directory)
    with locked_directory(directory):
        return _take(directory, trust_domain, now, rotation.next_step(state_of(directory)))


def _take(directory: Path, trust_domain: str, now: datetime.datetime, step: Step) -> Step:
    if step is Step.INTRODUCE:
        _introduce(directory, trust_domain, now)
    elif step is Step.ACTIVATE:
        _activate(directory)
    else:
        for name in (OLD_ROOTS, CROSS_CERT):
            (directory / name).unlink(missing_ok=True)
    return step


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def new_root_name(trust_domain: str, now: datetime.datetime) -> x509.Name:
    """Of its own: two roots of one name are told apart by key identifiers only, and not by everybody."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain),
            x509.NameAttribute(NameOID.COMMON_NAME, f"root of {now:%Y-%m-%d %H:%M:%S}"),
        ]
    )


def _introduce(directory: Path, trust_domain: str, now: datetime.datetime) -> None:
    name = new_root_name(trust_domain, now)
    key = load_or_create_key(directory / NEXT_KEY)
    write_file(directory / NEXT_ROOT, _pem(self_signed(key, trust_domain, now, name)), 0o644)


def _activate(directory: Path) -> None:
    key = load_or_create_key(directory / CA_KEY)
    (current,) = read_certificates(directory / ROOT_CERT)
    (following,) = read_certificates(directory / NEXT_ROOT)
    if load_or_create_key(directory / NEXT_KEY).public_key() != following.public_key():
        raise DataError(f"{directory}: {NEXT_KEY} does not belong to {NEXT_ROOT}; delete both to begin again")
    write_file(directory / CROSS_CERT, _pem(cross_certificate(following, current, key)), 0o644)
    old = [current, *(one for one in read_certificates(directory / OLD_ROOTS) if one != current)]
    write_file(directory / OLD_ROOTS, b"".join(map(_pem, old)), 0o644)
    # From here on `Authority.load_or_create` would complete it after a crash.
    write_file(directory / CA_KEY, (directory / NEXT_KEY).read_bytes(), 0o600)
    write_file(directory / ROOT_CERT, _pem(following), 0o644)
    for name in (NEXT_KEY, NEXT_ROOT):
        (directory / name).unlink()


def cross_certificate(
    subject: x509.Certificate, issuer: x509.Certificate, key: SigningKey
) -> x509.Certificate:
    """The subject's key under the issuer's signature, which `key` makes."""
    public = subject.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    end = min(subject.not_valid_after_utc, issuer.not_valid_after_utc)
    builder = ca_builder(subject.subject, issuer.subject, public, subject.not_valid_before_utc, end)
    builder = builder.add_extension(authority_key(issuer), critical=False)
    return builder.sign(key, hashes.SHA256())
