"""The certificate manager with virtual time: priorities, one request an identity, renewal, expiry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hbone.spiffe import SpiffeId
from hbone.svid import Svid
from ztunnel.identity.manager import (
    CONCURRENCY,
    LINGER,
    CertificateRefused,
    IdentityManager,
    IdentityUnavailable,
)

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
LIFE = timedelta(hours=1)


def now() -> datetime:
    return EPOCH + timedelta(seconds=trio.current_time())


def identity(name: str) -> SpiffeId:
    return SpiffeId("cluster.local", "shop", name)


class Sink:
    """What the engine would hold."""

    def __init__(self) -> None:
        self.held: dict[int, Svid] = {}

    def set_identity(self, number: int, svid: Svid) -> None:
        self.held[number] = svid

    def drop_identity(self, number: int) -> None:
        self.held.pop(number, None)


class Authority:
    """Takes a second for each certificate; `broken` makes it refuse."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.together = self.most = 0
        self.broken = ""

    async def issue(self, identity: SpiffeId) -> Svid:
        self.asked.append(identity.service_account)
        self.together += 1
        self.most = max(self.most, self.together)
        try:
            await trio.sleep(1)
        finally:
            self.together -= 1
        if self.broken:
            raise CertificateRefused(self.broken)
        return Svid(identity, b"chain", b"key", b"roots", now(), now() + LIFE, len(self.asked))


class Bench:
    def __init__(self) -> None:
        self.sink, self.authority = Sink(), Authority()
        self.manager = IdentityManager(self.authority, self.sink, now=now, draw=lambda: 0.0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.manager.run)
            await wait_all_tasks_blocked()
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.trio
async def test_many_requests_for_few_identities_make_few_certificates(
    bench: Bench, autojump_clock: MockClock
) -> None:
    async with bench.running(), trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(bench.manager.fetch, identity(f"sa{number % 3}"), 10.0)
    assert sorted(bench.authority.asked) == ["sa0", "sa1", "sa2"]
    assert len(bench.sink.held) == 3


@pytest.mark.trio
async def test_a_waiting_connection_goes_before_warm_up(bench: Bench, autojump_clock: MockClock) -> None:
    for number in range(20):
        bench.manager.hold(f"pod{number}", identity(f"warm{number:02}"))
    async with bench.running():
        # The first CONCURRENCY requests are under way; the connection overtakes the others.
        await bench.manager.fetch(identity("urgent"), 10.0)
    assert "urgent" in bench.authority.asked[: CONCURRENCY + 1]


@pytest.mark.trio
async def test_a_queued_warm_up_is_moved_forward_when_a_connection_needs_it(
    bench: Bench, autojump_clock: MockClock
) -> None:
    for number in range(30):
        bench.manager.hold(f"pod{number}", identity(f"warm{number:02}"))
    async with bench.running():
        await bench.manager.fetch(identity("warm29"), 10.0)
        asked = list(bench.authority.asked)
        await trio.sleep(20)
    assert asked.index("warm29") == CONCURRENCY
    assert bench.authority.asked.count("warm29") == 1


@pytest.mark.trio
async def test_no_more_than_eight_requests_at_once(bench: Bench, autojump_clock: MockClock) -> None:
    async with bench.running():
        for number in range(50):
            bench.manager.hold(f"pod{number}", identity(f"sa{number}"))
        await trio.sleep(10)
    assert bench.authority.most == CONCURRENCY
    assert len(bench.sink.held) == 50


@pytest.mark.trio
async def test_a_certificate_is_replaced_around_half_life(bench: Bench, autojump_clock: MockClock) -> None:
    async with bench.running():
        number = bench.manager.hold("pod", identity("web"))
        await trio.sleep(2)
        first = bench.sink.held[number]
        await trio.sleep(LIFE.total_seconds() * 0.4)
        assert bench.sink.held[number] is first
        await trio.sleep(LIFE.total_seconds() * 0.2)
    assert bench.sink.held[number] is not first


@pytest.mark.trio
async def test_the_last_valid_certificate_stays_until_it_expires_and_no_longer(
    bench: Bench, autojump_clock: MockClock
) -> None:
    async with bench.running():
        number = bench.manager.hold("pod", identity("web"))
        await trio.sleep(2)
        bench.authority.broken = "out of order"
        await trio.sleep(LIFE.total_seconds() * 0.9)
        assert number in bench.sink.held
        await trio.sleep(LIFE.total_seconds() * 0.2)
        assert number not in bench.sink.held
        (held,) = bench.manager.held()
        assert held.state == "Unavailable: out of order"
        assert held.expired
        bench.authority.broken = ""
        await trio.sleep(200)
        assert number in bench.sink.held
        assert not held.expired


@pytest.mark.trio
async def test_fetch_says_why_there_is_no_certificate(bench: Bench, autojump_clock: MockClock) -> None:
    bench.authority.broken = "permission denied: not on this node"
    async with bench.running():
        with pytest.raises(IdentityUnavailable, match="not on this node"):
            await bench.manager.fetch(identity("web"), 5.0)


@pytest.mark.trio
async def test_a_pod_the_ca_does_not_know_yet_gets_its_certificate_within_the_wait(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.authority.broken = "unknown pod"

    async def informed() -> None:
        await trio.sleep(2)
        bench.authority.broken = ""

    async with bench.running(), trio.open_nursery() as nursery:
        nursery.start_soon(informed)
        assert await bench.manager.fetch(identity("web"), 10.0) == 1


@pytest.mark.trio
async def test_failures_back_off_to_150_seconds(bench: Bench, autojump_clock: MockClock) -> None:
    bench.authority.broken = "away"
    async with bench.running():
        bench.manager.hold("pod", identity("web"))
        await trio.sleep(1800)
        asked = len(bench.authority.asked)
        await trio.sleep(1510)
    assert asked < 25
    assert len(bench.authority.asked) - asked == 10


@pytest.mark.trio
async def test_an_identity_nobody_has_is_forgotten_after_a_while(
    bench: Bench, autojump_clock: MockClock
) -> None:
    async with bench.running():
        number = bench.manager.hold("pod", identity("web"))
        await trio.sleep(2)
        bench.manager.release("pod")
        await trio.sleep(LINGER / 2)
        assert number in bench.sink.held
        await trio.sleep(LINGER)
        assert bench.sink.held == {}
        assert list(bench.manager.held()) == []


@pytest.mark.trio
async def test_a_rolling_restart_keeps_the_certificate(bench: Bench, autojump_clock: MockClock) -> None:
    async with bench.running():
        number = bench.manager.hold("old", identity("web"))
        await trio.sleep(2)
        bench.manager.release("old")
        await trio.sleep(LINGER / 2)
        assert bench.manager.hold("new", identity("web")) == number
        await trio.sleep(LINGER * 2)
        assert number in bench.sink.held
    assert bench.authority.asked == ["web"]


@pytest.mark.trio
async def test_an_identity_shared_by_two_pods_outlives_the_first(
    bench: Bench, autojump_clock: MockClock
) -> None:
    async with bench.running():
        number = bench.manager.hold("a", identity("web"))
        bench.manager.hold("b", identity("web"))
        await trio.sleep(2)
        bench.manager.release("a")
        await trio.sleep(LINGER * 2)
        assert number in bench.sink.held


@pytest.mark.trio
async def test_forgotten_while_its_request_is_under_way(bench: Bench, autojump_clock: MockClock) -> None:
    async with bench.running():
        bench.manager.hold("pod", identity("web"))
        await trio.sleep(0.5)
        bench.manager.release("pod")
        await trio.sleep(LINGER * 3)
        assert bench.sink.held == {}


@pytest.mark.trio
async def test_whatever_the_ca_does_the_manager_goes_on(bench: Bench, autojump_clock: MockClock) -> None:
    async def lie(identity: SpiffeId) -> Svid:
        raise RuntimeError("HTML instead of a certificate")

    honest, bench.authority.issue = bench.authority.issue, lie  # type: ignore[method-assign]
    async with bench.running():
        number = bench.manager.hold("pod", identity("web"))
        await trio.sleep(5)
        bench.authority.issue = honest  # type: ignore[method-assign]
        await trio.sleep(200)
        assert number in bench.sink.held
