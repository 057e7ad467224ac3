"""The cache in front of the system's resolver: how long answers and their absence are believed."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
import trio
from trio.testing import MockClock

from ztunnel.resolver import Resolver, ask_system

HERE = (ip_address("192.0.2.1"),)


class Names:
    """A name server that counts questions; `known` is what it knows at the moment."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[IPv4Address | IPv6Address, ...]] = {}
        self.asked: list[str] = []

    async def __call__(self, name: str) -> tuple[IPv4Address | IPv6Address, ...]:
        self.asked.append(name)
        return self.known.get(name, ())


def test_an_answer_is_kept_for_thirty_seconds(mock_clock: MockClock) -> None:
    async def main() -> None:
        names = Names()
        names.known["db"] = HERE
        resolver = Resolver(ask=names)
        assert await resolver("db") == HERE
        names.known["db"] = ()
        await trio.sleep(29)
        assert await resolver("db") == HERE
        assert names.asked == ["db"]
        await trio.sleep(2)
        assert await resolver("db") == ()
        assert names.asked == ["db", "db"]

    trio.run(main, clock=mock_clock)


def test_no_answer_is_believed_for_a_second_only(mock_clock: MockClock) -> None:
    async def main() -> None:
        names = Names()
        resolver = Resolver(ask=names)
        assert await resolver("db") == () == await resolver("db")
        assert names.asked == ["db"]
        names.known["db"] = HERE
        await trio.sleep(1.1)
        assert await resolver("db") == HERE

    trio.run(main, clock=mock_clock)


def test_a_name_server_that_never_answers_costs_five_seconds(mock_clock: MockClock) -> None:
    async def never(name: str) -> tuple[IPv4Address | IPv6Address, ...]:
        await trio.sleep_forever()
        raise AssertionError

    async def main() -> None:
        started = trio.current_time()
        assert await Resolver(ask=never)("db") == ()
        assert trio.current_time() - started == pytest.approx(5)

    trio.run(main, clock=mock_clock)


def test_the_cache_does_not_grow_without_end(mock_clock: MockClock) -> None:
    async def main() -> None:
        names = Names()
        resolver = Resolver(ask=names)
        for number in range(10_000):
            await resolver(f"n{number}")
        assert len(resolver._cache) <= 4096

    trio.run(main, clock=mock_clock)


def test_the_systems_own_names_are_found() -> None:
    found = trio.run(ask_system, "localhost")
    assert found
    assert all(address.is_loopback for address in found)
    assert trio.run(ask_system, "no-such-name.invalid") == ()


@pytest.fixture
def mock_clock() -> MockClock:
    return MockClock(autojump_threshold=0)
