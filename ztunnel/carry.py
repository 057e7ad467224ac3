"""What outbound and inbound have in common: a connection that waits, and its verdict handed to the engine."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from hbone.connect import SocketAddress
from hbone.engine import Address, Engine, reason_code
from hbone.reasons import Reason
from ztunnel.addresses import socket_address
from ztunnel.decide.model import Direction, Refuse, Route, TrafficEnds, Verdict
from ztunnel.enrol.pods import Pod
from ztunnel.flows.registry import Connection, Registry, Shared

__all__ = ["Arrival", "Carrier", "refusal"]

_log = logging.getLogger("ztunnel.proxy")

# Connections that wait for state, certificates or names at once. Each is one small task; a control plane that
# is away must not turn every connection attempt into memory.
MAX_WAITING = 2_000


class Arrival(NamedTuple):
    """A connection that waits for its verdict. `client` is the peer's address as the engine says it, `started`
    in seconds of `time.monotonic()`."""

    token: int
    pod: Pod
    client: Address
    destination: SocketAddress
    started: float

    @property
    def peer(self) -> SocketAddress:
        """Who connects."""
        return socket_address(self.client)


def refusal(
    direction: Direction, reason: Reason, detail: str = "", ends: TrafficEnds | None = None
) -> Verdict:
    """A refusal for what the decision functions cannot know (certificates, waiting, overload)."""
    return Verdict(direction, reason, Refuse(reason.http_status), Route.NONE, ends or TrafficEnds(), detail)


class Carrier:
    """Hands verdicts to the engine and registers their flows; runs what has to wait in tasks."""

    def __init__(self, engine: Engine, flows: Registry) -> None:
        self.engine, self.flows = engine, flows
        self._nursery: trio.Nursery | None = None
        self.waiting = 0

    async def run(self) -> None:
        """Hold the tasks of connections that wait, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            await trio.sleep_forever()

    def later(self, arrival: Arrival, direction: Direction, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work`, which ends with a verdict, without holding up others."""
        if self._nursery is None or self.waiting >= MAX_WAITING:
            self.refuse(arrival, None, refusal(direction, Reason.OVERLOAD, "too many connections wait"))
            return
        self.waiting += 1
        self._nursery.start_soon(self._later, arrival, direction, work)

    async def _later(
        self, arrival: Arrival, direction: Direction, work: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            await work()
        except Exception:
            # One connection's defect ends that connection, not the agent.
            _log.exception("a waiting connection was not decided")
            if self.flows.get(arrival.token) is None:
                self.open(arrival, None, refusal(direction, Reason.INTERNAL))
            self.engine.refuse(arrival.token, reason_code(Reason.INTERNAL.value))
        finally:
            self.waiting -= 1
            self.engine.flush()

    def open(self, arrival: Arrival, connection: Connection | None, verdict: Verdict) -> None:
        """Register the flow of a verdict. Call it before the engine hears of the verdict."""
        shared = self.share(arrival, connection, verdict)
        self.flows.admit(arrival.token, arrival.client, arrival.started, shared)

    def share(self, arrival: Arrival, connection: Connection | None, verdict: Verdict) -> Shared:
        """What this connection has in common with others that get the same verdict."""
        pod = arrival.pod
        return self.flows.share(f"{pod.namespace}/{pod.name}", arrival.destination, connection, verdict)

    def refuse(self, arrival: Arrival, connection: Connection | None, verdict: Verdict) -> None:
        """Refuse a connection with its verdict's reason."""
        self.open(arrival, connection, verdict)
        status = verdict.action.status if isinstance(verdict.action, Refuse) else verdict.reason.http_status
        self.engine.refuse(arrival.token, reason_code(verdict.reason.value), status)
