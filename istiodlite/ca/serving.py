"""The control plane's own certificate for port 15012, renewed before it expires."""

import datetime
import ipaddress
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from istiodlite.ca.authority import Authority, Issuer

LIFETIME = datetime.timedelta(days=7)
NAMES_AGE = datetime.timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class ServingPair:
    key_pem: bytes
    chain_pem: bytes
    not_after: datetime.datetime
    renew_at: datetime.datetime


class ServingCertificate:
    """Makes a pair when asked for one and the last is past half of its life or lacks a name. Thread-safe.

    `names` gives the DNS names and IP addresses under which clients come; it is asked again every 10 s at
    most, because addresses of this machine may come after the start.
    """

    def __init__(self, authority: Issuer, names: Callable[[], Sequence[str]]) -> None:
        self._authority = authority
        self._names = names
        self._lock = threading.Lock()
        self._pair: ServingPair | None = None
        self._signer: Authority | None = None
        self._named: tuple[str, ...] = ()
        self._asked = datetime.datetime.min.replace(tzinfo=datetime.UTC)

    def current(self, now: datetime.datetime) -> ServingPair:
        with self._lock:
            names = self._named
            if now - self._asked >= NAMES_AGE:
                names, self._asked = tuple(self._names()), now
            signer = self._authority.snapshot()
            changed = self._signer is None or signer.certificate != self._signer.certificate
            missing = not set(names) <= set(self._named)
            if self._pair is None or now >= self._pair.renew_at or missing or changed:
                self._named, self._signer = names, signer
                self._pair = self._make(signer, names, now)
            return self._pair

    @staticmethod
    def _make(signer: Authority, names: Sequence[str], now: datetime.datetime) -> ServingPair:
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = signer.sign(
            key.public_key(),
            [_general_name(name) for name in names],
            [ExtendedKeyUsageOID.SERVER_AUTH],
            now,
            LIFETIME,
        )
        return ServingPair(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            b"".join([leaf.public_bytes(serialization.Encoding.PEM), *signer.intermediates_pem]),
            leaf.not_valid_after_utc,
            now + (leaf.not_valid_after_utc - now) / 2,
        )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
