"""When a certificate is due for renewal. Pure: time and randomness are arguments.

Istio's agents renew at exactly half of the lifetime, so that ten thousand pods created together come back
together. Here half life is shifted by up to a tenth of the lifetime, by a hash of the identity: the same
identity always renews at the same point, different identities spread out.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from ztunnel.backoff import Backoff

__all__ = ["SPREAD", "next_attempt", "renew_at", "retry"]

SPREAD = 0.1
"""Width of the spread around half life, as a part of the lifetime."""


def _fraction(identity: str) -> float:
    """A number in [0, 1) that depends on nothing but the identity."""
    digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def renew_at(identity: str, not_before: datetime, not_after: datetime) -> datetime:
    """Half life, earlier or later by at most SPREAD / 2 of the lifetime."""
    life = not_after - not_before
    return not_before + life * (0.5 + SPREAD * (_fraction(identity) - 0.5))


def retry() -> Backoff:
    """Delays after failures: from half a second (a pod the CA does not know yet) to 150 s (a CA that is away)."""
    return Backoff(first=0.5, cap=150.0, jitter=0.2)


def next_attempt(now: datetime, delay: float, not_after: datetime | None) -> datetime:
    """When to try again after a failure: after `delay` seconds, but never later than the expiry of what we hold."""
    again = now + timedelta(seconds=delay)
    if not_after is not None and now < not_after < again:
        return not_after
    return again
