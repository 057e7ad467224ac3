"""Takes the engine's events in batches and gives each to whom it concerns. The agent's busiest few lines.

Nothing here awaits between taking a batch and flushing its verdicts.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import trio

from hbone.engine import (
    REASONS,
    Accepted,
    Admitted,
    Closed,
    ConnectRequested,
    Defect,
    Engine,
    Established,
    Event,
    Finished,
    Forgotten,
    ListenerKind,
    TunnelFailed,
    reason_code,
)
from hbone.reasons import Reason
from ztunnel.accesslog import AccessLog
from ztunnel.admit import Verdicts
from ztunnel.enrol.pods import Pods
from ztunnel.flows.registry import Registry
from ztunnel.inbound import Inbound
from ztunnel.logs import fields
from ztunnel.outbound import Outbound

__all__ = ["Pump"]

_log = logging.getLogger("ztunnel.proxy")
_BATCH = 256
_TURNS = 4


class Pump:
    """The one reader of the engine's events."""

    def __init__(
        self,
        *,
        engine: Engine,
        pods: Pods,
        outbound: Outbound,
        inbound: Inbound,
        verdicts: Verdicts,
        flows: Registry,
        access_log: AccessLog,
    ) -> None:
        self._engine, self._pods, self._flows, self._access_log = engine, pods, flows, access_log
        self._outbound, self._inbound = outbound, inbound
        self._handlers: dict[type, Callable[[Any], object]] = {
            Accepted: self._arrived,
            ConnectRequested: self._arrived,
            Established: flows.established,
            Closed: flows.closed,
            Admitted: verdicts.admitted,
            Finished: verdicts.finished,
            Forgotten: verdicts.forgotten,
            TunnelFailed: self._tunnel_failed,
            Defect: self._defect,
        }
        self.tunnel_failures: Counter[tuple[str, str]] = Counter()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._engine.event_fd)
            # What came in meanwhile is taken at once: going round the event loop costs more than looking.
            for _ in range(_TURNS):
                if not self.turn():
                    break

    def turn(self) -> int:
        """Take one batch, dispatch it, flush; returns its size."""
        events = self._engine.take(_BATCH)
        if not events:
            return 0
        for event in events:
            try:
                self._dispatch(event)
            except Exception:
                _log.exception("an event was not handled")
                self._give_up(event)
        self._engine.flush()
        self._access_log.flush()
        return len(events)

    def _dispatch(self, event: Event) -> None:
        handle = self._handlers.get(type(event))
        if handle is not None:
            handle(event)

    def _arrived(self, event: Accepted | ConnectRequested) -> None:
        pod = self._pods.by_tag(event.tag)
        if pod is None:
            # The pod was withdrawn while the connection waited in the queue.
            self._engine.refuse(event.token, reason_code(Reason.DRAINING.value))
        elif isinstance(event, Accepted) and event.kind is ListenerKind.OUTBOUND:
            self._outbound.accepted(event, pod)
        else:
            self._inbound.arrived(event, pod)

    def _give_up(self, event: Event) -> None:
        """A defect must not leave a connection open and undecided."""
        if isinstance(event, (Accepted, ConnectRequested)):
            self._engine.refuse(event.token, reason_code(Reason.INTERNAL.value))

    def _tunnel_failed(self, event: TunnelFailed) -> None:
        reason, side = REASONS[event.reason_code], "inbound" if event.inbound else "outbound"
        self.tunnel_failures[reason, side] += 1
        pod = self._pods.by_tag(event.tag)
        peer = f"{event.peer[0]}:{event.peer[1]}" if event.peer is not None else None
        _log.warning(
            "tunnel failed",
            extra=fields(
                direction=side,
                peer=peer,
                pod=f"{pod.namespace}/{pod.name}" if pod is not None else None,
                reason=reason,
                error=event.detail,
            ),
        )

    def _defect(self, event: Defect) -> None:
        _log.error("defect of the engine; what it concerned was ended", extra=fields(error=event.detail))
