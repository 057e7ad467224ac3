"""Fixtures of the agent's unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hbone.engine import Engine
from tests.unit.ztunnel.agentbench import Bench
from tests.unit.ztunnel.doubles import FakeCapture, Recorder
from ztunnel.config import Config, load


@pytest.fixture
def capture() -> FakeCapture:
    return FakeCapture()


@pytest.fixture
def engine() -> Recorder:
    numbers: Iterator[int] = iter(range(1, 10_000))
    return Recorder(
        Engine,
        add_netns=lambda **_: next(numbers),
        listen=lambda **_: next(numbers),
        counters=[],
        stats={},
    )


@pytest.fixture
def config() -> Config:
    return load({"NODE_NAME": "n1", "NETWORK": "net1"})


@pytest.fixture
def bench(caplog: pytest.LogCaptureFixture) -> Iterator[Bench]:
    caplog.set_level("INFO", "ztunnel.access")
    bench = Bench()
    yield bench
    bench.dispose()
