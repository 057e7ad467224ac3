"""How an agent leaves: waits for a successor, lets what it carries end, under the mesh's rules until the last."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

import trio

from ebpf.capture import Capture
from hbone.engine import Engine
from ztunnel.carry import Carrier
from ztunnel.config import Config
from ztunnel.direct.keeper import Keeper
from ztunnel.enrol.pods import Pods
from ztunnel.flows.registry import Registry
from ztunnel.logs import fields
from ztunnel.pump import Pump

__all__ = ["Departure"]

_log = logging.getLogger("ztunnel.app")
_LAST_ACCEPTS: Final = 0.3
_IDLE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Departure:
    """The parts that take part in it."""

    config: Config
    capture: Capture
    engine: Engine
    pods: Pods
    flows: Registry
    direct: Keeper
    carrier: Carrier
    pump: Pump

    async def successor(self) -> None:
        """Where one has been started, serve on until it has all pods: whoever sent us away may not have
        known which of us two was ready."""
        if not await trio.to_thread.run_sync(self.capture.has_company):
            return
        with trio.move_on_after(self.config.drain_deadline / 2):
            while await trio.to_thread.run_sync(self.capture.handed_over) < len(self.pods):
                await trio.sleep(0.05)

    async def drain(self, *, handed_over: bool) -> None:
        """Let connections end by themselves until the deadline. Pods stay captured for the next agent.

        Until then discovery, certificates and revocation lists are followed as ever: what may no longer be is
        cut here, too. Direct connections need no process, and a successor has found them.
        """
        deadline = self.config.deadline(handed_over=handed_over)
        # Where a successor listens already, what still waits in our queues is all that will ever come.
        await trio.sleep(min(_LAST_ACCEPTS, deadline / 2))
        if not handed_over:
            self.direct.retire()
        self.engine.drain_all()
        self.engine.flush()
        self.pods.stop_accepting()
        with trio.move_on_after(deadline):
            await self._last_connections(handed_over=handed_over)
        left = len(self.flows) - self.direct.live.flows
        _log.info("drained", extra=fields(cut=left, deadline=f"{deadline:g}s"))
        await trio.to_thread.run_sync(self.engine.stop)
        while self.pump.turn():
            pass

    async def _last_connections(self, *, handed_over: bool) -> None:
        idle_since = trio.current_time() + _IDLE
        while len(self.flows) > self.direct.live.flows or self.engine.stats()["flows_live"]:
            await trio.sleep(0.05)
            if handed_over and not self.carrier.waiting and trio.current_time() > idle_since:
                idle_since += _IDLE
                self.pods.let_go({flow.pod for flow in self.flows})
