"""Decides live connections again when a fact they rest on changes, and cuts those that no longer may be.

Only affected flows are looked at, in slices, so that a change that concerns ten thousand of them does not
stop new connections for its whole length.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Protocol

import trio

from hbone.engine import reason_code
from hbone.reasons import Reason
from ztunnel.decide.inbound import decide_inbound
from ztunnel.decide.model import InboundConnection, OutboundConnection, Refuse, Verdict
from ztunnel.decide.outbound import still_routed
from ztunnel.flows.registry import Flow, Registry
from ztunnel.logs import fields
from ztunnel.state.snapshot import Changes, Snapshot

__all__ = ["Redecider"]

_log = logging.getLogger("ztunnel.flows")
_SLICE = 200


class _Engine(Protocol):
    def cut(self, token: int, reason_code: int) -> None: ...
    def flush(self) -> None: ...


class Redecider:
    """A subscriber of the store, and the task that works off what changed.

    A workload and the policies it lists come as resources of two kinds, one after the other. So a live
    connection is not cut for a policy that has not been delivered before it has been missing for `grace` seconds.
    """

    def __init__(
        self, registry: Registry, engine: _Engine, current: Callable[[], Snapshot], *, grace: float = 2.0
    ) -> None:
        self._registry, self._engine, self._current, self._grace = registry, engine, current, grace
        self._waiting: dict[int, Flow] = {}
        self._pending: dict[int, tuple[float, Flow]] = {}
        self._wake = trio.Event()
        self.cuts = 0

    def changed(self, changes: Changes, _snapshot: Snapshot) -> None:
        """Note the flows that rest on what changed."""
        for flow in self._registry.affected(changes.keys):
            self._waiting[flow.token] = flow
        if self._waiting:
            self._wake.set()

    def again(self, flow: Flow) -> None:
        """Note one flow: what it rests on may have changed before it was registered."""
        self._waiting[flow.token] = flow
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            earliest = min((deadline for deadline, _ in self._pending.values()), default=math.inf)
            with trio.move_on_at(earliest):
                await self._wake.wait()
                self._wake = trio.Event()
            self._overdue()
            while self._waiting:
                self._slice()
                await trio.lowlevel.checkpoint()

    def _overdue(self) -> None:
        now = trio.current_time()
        for token, (deadline, flow) in list(self._pending.items()):
            if deadline <= now:
                self._waiting[token] = flow

    def _slice(self) -> None:
        for _ in range(min(_SLICE, len(self._waiting))):
            token, flow = self._waiting.popitem()
            if self._registry.get(token) is flow and flow.cut is None:
                self._again(flow)
            else:
                self._pending.pop(token, None)
        self._engine.flush()

    def _again(self, flow: Flow) -> None:
        verdict = decide_again(flow, self._current())
        if verdict is None:
            return
        self._registry.watch(flow, verdict.depends)
        if verdict.reason is Reason.POLICY_PENDING:
            deadline, _ = self._pending.setdefault(flow.token, (trio.current_time() + self._grace, flow))
            if trio.current_time() < deadline:
                return
        self._pending.pop(flow.token, None)
        if verdict.allowed:
            flow.verdict = verdict
        else:
            self._cut(flow, verdict)

    def _cut(self, flow: Flow, verdict: Verdict) -> None:
        flow.cut = verdict
        # Inbound it is always a policy that takes the permission away; outbound it is the route.
        reason = Reason.POLICY_CHANGED if isinstance(flow.connection, InboundConnection) else verdict.reason
        self._engine.cut(flow.token, reason_code(reason))
        self.cuts += 1
        _log.info(
            "connection cut", extra=fields(pod=flow.pod, reason=reason.value, because=verdict.reason.value)
        )


def decide_again(flow: Flow, snapshot: Snapshot) -> Verdict | None:
    """The verdict of today; None for a flow that was refused anyway."""
    connection = flow.connection
    if isinstance(connection, InboundConnection):
        local = snapshot.workload(connection.local.uid)
        if local is not None and local is not connection.local:
            # Policies are listed by the workload: the one of today counts, not the one of the beginning.
            connection = dataclasses.replace(connection, local=local)
            flow.connection = connection
        return decide_inbound(connection, snapshot)
    if isinstance(connection, OutboundConnection):
        reason = still_routed(flow.verdict, connection, snapshot)
        if reason is Reason.OK:
            return flow.verdict
        return dataclasses.replace(flow.verdict, reason=reason, action=Refuse(reason.http_status), detail="")
    return None
