"""When certificates are renewed, and how failures are spaced."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.backoff import Backoff
from ztunnel.identity import renewal

START = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.text(min_size=1), st.integers(min_value=60, max_value=10**7))
def test_renewal_falls_around_half_life(identity: str, life: int) -> None:
    at = renewal.renew_at(identity, START, START + timedelta(seconds=life))
    part = (at - START).total_seconds() / life
    assert 0.5 - renewal.SPREAD / 2 - 1e-6 <= part <= 0.5 + renewal.SPREAD / 2 + 1e-6


def test_one_identity_always_renews_at_the_same_point_and_many_spread_out() -> None:
    end = START + timedelta(days=1)
    first = [renewal.renew_at(f"spiffe://td/ns/n/sa/{i}", START, end) for i in range(200)]
    again = [renewal.renew_at(f"spiffe://td/ns/n/sa/{i}", START, end) for i in range(200)]
    assert first == again
    assert max(first) - min(first) > timedelta(hours=2)
    minutes = {at.replace(second=0, microsecond=0) for at in first}
    assert len(minutes) > 80


def test_a_failed_renewal_is_not_put_off_beyond_the_expiry() -> None:
    soon = START + timedelta(seconds=30)
    assert renewal.next_attempt(START, 100, soon) == soon
    assert renewal.next_attempt(START, 10, soon) == START + timedelta(seconds=10)
    assert renewal.next_attempt(START, 100, START - timedelta(seconds=1)) == START + timedelta(seconds=100)


def test_delays_double_to_their_cap_and_start_over_after_success() -> None:
    backoff = Backoff(first=0.01, cap=15)
    delays = [backoff.next(0.0) for _ in range(12)]
    assert delays[:4] == [0.01, 0.02, 0.04, 0.08]
    assert delays[-1] == 15
    backoff.reset()
    assert backoff.next(0.0) == 0.01


@given(st.integers(min_value=0, max_value=100_000), st.floats(min_value=0, max_value=1, exclude_max=True))
def test_no_delay_is_ever_longer_than_the_cap(failures: int, draw: float) -> None:
    backoff = Backoff(first=0.5, cap=150, failures=failures)
    assert 0 < backoff.next(draw) <= 150
