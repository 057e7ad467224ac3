"""SPIFFE identities of the form Istio uses: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.

Source: SPIFFE-ID specification, section 2 (allowed characters, 2048 bytes), and Istio's path shape.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

__all__ = ["SpiffeError", "SpiffeId", "check_segment", "check_trust_domain"]

MAX_LENGTH: Final = 2048
_SCHEME: Final = "spiffe://"
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}", re.ASCII)
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_PARTS: Final = 5


class SpiffeError(ValueError):
    """The text is not a SPIFFE id of the expected shape."""


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """The identity of a service account. The constructor does not check; `parse` does."""

    trust_domain: str
    namespace: str
    service_account: str

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Read a URI; anything but the exact shape raises SpiffeError."""
        if len(uri) > MAX_LENGTH:
            raise SpiffeError(f"identity of {len(uri)} characters is longer than {MAX_LENGTH}")
        if not uri.startswith(_SCHEME):
            raise SpiffeError(f"{uri[:80]!r} does not begin with {_SCHEME}")
        parts = uri[len(_SCHEME) :].split("/")
        if len(parts) != _PARTS or parts[1] != "ns" or parts[3] != "sa":
            raise SpiffeError(f"{uri[:80]!r} is not spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")
        return cls(check_trust_domain(parts[0]), check_segment(parts[2]), check_segment(parts[4]))

    @property
    def principal(self) -> str:
        """The form policies compare with: `TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`."""
        return f"{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    def __str__(self) -> str:
        return f"{_SCHEME}{self.principal}"


def check_trust_domain(text: str) -> str:
    """Return `text` if it can be a trust domain, else raise SpiffeError."""
    if not _TRUST_DOMAIN.fullmatch(text):
        raise SpiffeError(f"{text[:80]!r} is not a trust domain")
    return text


def check_segment(text: str) -> str:
    """Return `text` if it can be a path segment, else raise SpiffeError."""
    if not _SEGMENT.fullmatch(text) or text in (".", ".."):
        raise SpiffeError(f"{text[:80]!r} cannot be part of an identity")
    return text
