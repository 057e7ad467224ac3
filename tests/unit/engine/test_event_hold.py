"""Events that nobody waits for: signalled late, joined by what is urgent, never lost or out of order."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator

import pytest

from hbone.engine import Accepted, Closed, Engine, EngineConfig, Event, ListenerKind

HOLD = 0.3


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(EngineConfig(workers=1, event_hold=HOLD))
    yield engine
    engine.stop()


def entry(engine: Engine) -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        engine.listen(listener.fileno(), ListenerKind.OUTBOUND, 0, 1)
        address: tuple[str, int] = listener.getsockname()
        return address


def signalled(engine: Engine, timeout: float) -> list[Event]:
    """What there is when the descriptor gets readable."""
    ready, _, _ = select.select([engine.event_fd], [], [], timeout)
    return engine.take() if ready else []


def refuse(engine: Engine, event: Event) -> None:
    assert isinstance(event, Accepted)
    engine.refuse(event.token, 1)
    engine.flush()


def test_an_end_is_signalled_when_its_time_is_over(engine: Engine) -> None:
    with socket.create_connection(entry(engine)):
        (accepted,) = signalled(engine, HOLD / 2)
        before = time.monotonic()
        refuse(engine, accepted)
        (closed,) = signalled(engine, 5)
        assert isinstance(closed, Closed)
        assert time.monotonic() - before >= HOLD / 2


def test_an_arrival_brings_the_held_events_along(engine: Engine) -> None:
    address = entry(engine)
    with socket.create_connection(address) as first:
        (accepted,) = signalled(engine, 5)
        refuse(engine, accepted)
        with pytest.raises(ConnectionResetError):
            first.recv(1)
        before = time.monotonic()
        with socket.create_connection(address):
            closed, arrived = signalled(engine, 5)
            assert time.monotonic() - before < HOLD / 2
            assert isinstance(closed, Closed)
            assert isinstance(arrived, Accepted)


def test_stopping_leaves_every_end_to_be_taken(engine: Engine) -> None:
    with socket.create_connection(entry(engine)):
        (accepted,) = signalled(engine, 5)
        engine.stop()
        (closed,) = engine.take()
        assert isinstance(closed, Closed)
        assert isinstance(accepted, Accepted)
        assert closed.token == accepted.token
