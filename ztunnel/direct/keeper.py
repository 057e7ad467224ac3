"""Keeps the kernel's pairs in step with the snapshot and the enrolled pods, and the agent with the connections.

A change takes effect in this order: pairs that are in doubt leave the kernel, connections that are open then
are looked for and registered, the registered ones are decided again (`ztunnel.flows.redecide`, as for relayed ones), pairs
that stand come back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Protocol

import trio

from ebpf import direct as kernel
from ebpf.direct import Direct
from ebpf.errors import CaptureError
from ebpf.pairs import DirectConnection, Endpoint, PairKey
from hbone.connect import SocketAddress
from ztunnel.direct.between import LocalPod
from ztunnel.direct.live import LiveConnections
from ztunnel.direct.local import Local
from ztunnel.direct.plan import Plan
from ztunnel.direct.shortcut import Shortcut
from ztunnel.enrol.pods import Pod
from ztunnel.flows.registry import Registry
from ztunnel.logs import fields
from ztunnel.state.snapshot import Changes, Snapshot

__all__ = ["Keeper", "Scissors"]

_log = logging.getLogger("ztunnel.direct")

TURN = 0.05
RENEW = 1.0
AUDIT = 5.0
# Blocks (pairs of pods) that are decided before anything else gets its turn.
_AT_ONCE = 200
_SLICE = 50
_SELDOM = 20
# One that is older when it is first seen may have ended while nothing was attached that would have told of it.
_YOUNG = 2.0


class _Pods(Protocol):
    snapshot_done: bool

    def __iter__(self) -> Iterator[Pod]: ...


class _Log(Protocol):
    def flush(self) -> None: ...


class _Engine(Protocol):
    def cut(self, token: int, reason_code: int) -> None: ...
    def flush(self) -> None: ...


class Keeper:
    """The direct path of this node. With `enabled` False it only ends what a former agent left."""

    def __init__(
        self,
        direct: Direct,
        pods: _Pods,
        flows: Registry,
        access_log: _Log,
        *,
        enabled: bool,
        network: str,
        current: Callable[[], Snapshot],
        monotonic: Callable[[], float],
        redirect_peer: bool = False,
    ) -> None:
        self._direct, self._pods, self._current, self._now = direct, pods, current, monotonic
        self.shortcut = Shortcut(direct.redirect, wanted=redirect_peer)
        self._access_log = access_log
        self._network, self._plan = network, Plan(network)
        self._locals: dict[int, Local] = {}
        self.live = LiveConnections(
            flows, network=network, current=current, local=self._locals.get, monotonic=monotonic
        )
        self.enabled = enabled
        self._running = self._retiring = self._turbo_tried = False
        self._renewed = self._audited = float("-inf")
        self._seen = -1
        self._look_again = float("-inf")

    def retire(self) -> None:
        """The agent is leaving and follows no more changes: new connections are for a successor to decide."""
        self._retiring = True
        if self._running:
            self._direct.suspend()

    def goes_direct(self, pod: str, asked: SocketAddress) -> bool:
        """Whether a new connection of this pod's (NAMESPACE/NAME) to `asked` would go direct as the kernel's maps are now."""
        slots = (slot for slot, local in self._locals.items() if local.name == pod and not local.gone)
        pairs = self._direct.pairs if self._running and self._direct.is_lent else {}
        return any(PairKey(slot, Endpoint(asked.ip, asked.port)) in pairs for slot in slots)

    # Following

    def changed(self, changes: Changes, snapshot: Snapshot) -> None:
        """A subscriber of the store; to be told before those who decide flows again."""
        if self._running:
            try:
                self._follow(changes, snapshot)
                self._look()
            except BaseException:
                self._give_up()
                raise

    def _follow(self, changes: Changes | None, snapshot: Snapshot) -> None:
        if self._retiring:
            return
        pods = self._refresh(snapshot)
        doubtful = self._plan.mark(pods, changes)
        if self._plan.doubtful > _AT_ONCE:
            self._direct.set_pairs({}, doubtful)
            return
        added = self._plan.settle(snapshot, _AT_ONCE)
        gone = [key for key, backend in doubtful.items() if added.get(key) != backend]
        new = {key: backend for key, backend in added.items() if doubtful.get(key) != backend}
        if gone or new:
            self._direct.set_pairs(new, gone)

    def _refresh(self, snapshot: Snapshot) -> list[LocalPod]:
        """The enrolled pods that the control plane describes."""
        found: list[LocalPod] = []
        for pod in self._pods:
            workload = snapshot.local_workload(pod.namespace, pod.service_account, pod.name)
            if workload is None:
                continue
            slot, name = pod.enrolled.slot, f"{pod.namespace}/{pod.name}"
            known = self._locals.get(slot)
            if known is None or known.gone or known.name != name:
                self._let_go(known)
                known = Local(name, slot, os.dup(pod.enrolled.network.netns_fd), workload)
                self._locals[slot] = known
                self.live.pods_changed()
            known.workload = workload
            turbo = self._direct.turbo.enabled and pod.settings.accelerate
            found.append(LocalPod(slot, pod.addresses, workload, turbo))
        return found

    @staticmethod
    def _let_go(local: Local | None) -> None:
        if local is not None:
            local.gone = True
            local.release()

    def _forget_gone(self) -> None:
        """After the events of a pod that left have been taken."""
        enrolled = {(pod.enrolled.slot, f"{pod.namespace}/{pod.name}") for pod in self._pods}
        for slot, local in list(self._locals.items()):
            if (slot, local.name) not in enrolled:
                del self._locals[slot]
                self._let_go(local)
                self.live.pods_changed()

    # Working

    async def run(self) -> None:
        """Until cancelled."""
        while not self._pods.snapshot_done:
            await trio.sleep(TURN)
        if self.enabled:
            try:
                self._direct.enable()
            except (CaptureError, OSError) as error:
                _log.error(
                    "no direct path: all connections go through the proxy", extra=fields(error=str(error))
                )
                self.enabled = False
        if self.enabled:
            await self.shortcut.start()
            await self._work()
            return
        try:
            self._end_former()
        except OSError as error:
            _log.error("direct connections of a former agent not ended", extra=fields(error=str(error)))

    def _end_former(self) -> None:
        """A former agent may have allowed direct connections; they are not to be any more."""
        self._refresh(self._current())
        for connection in self._direct.live():
            source = self._locals.get(connection.from_slot)
            if source is not None:
                source.end(connection)
        self._direct.disable()
        for local in self._locals.values():
            self._let_go(local)
        self._locals.clear()

    async def _work(self) -> None:
        self._running = True
        while True:
            try:
                self._follow(None, self._current())
                self._look()
                while True:
                    await self._round()
                    await trio.sleep(0 if self._plan.doubtful and not self._retiring else TURN)
            except Exception:
                _log.exception("all connections go through the proxy for a while")
                self._give_up()
                await trio.sleep(AUDIT)

    async def _round(self) -> None:
        now = self._now()
        if now - self._renewed >= RENEW:
            self._renewed = now
            if not self._retiring:
                self._direct.renew()
                await self.shortcut.follow(self._pods)
            await self._accelerate()
            await self._count()
        if now - self._audited >= AUDIT and not self._retiring:
            self._audited = now
            if wrong := await trio.to_thread.run_sync(self._direct.audit):
                _log.warning("pairs put right", extra=fields(pairs=wrong))
            await self.shortcut.sweep()
            self._look()
        self._turn()

    def _give_up(self) -> None:
        """After a defect: no pair counts, and the plan is made anew."""
        self._plan = Plan(self._network)
        self._renewed = float("-inf")
        self._direct.suspend()

    def _turn(self) -> None:
        self._take()
        begun = self._direct.begun
        if begun != self._seen and self._now() >= self._look_again:
            self._seen = begun
            self._look()
        self._follow(None, self._current())
        if self._plan.doubtful and not self._retiring:
            self._direct.set_pairs(self._plan.settle(self._current(), _SLICE))
        self._forget_gone()

    def _look(self) -> None:
        """Register the connections that are open, also those that live since a former agent or whose pods were not
        described when they began. One that ends meanwhile is told of afterwards, never before."""
        start = self._now()
        found = self._direct.look(self.live.known)
        for connection in found.begun:
            self._register(connection)
        self._handle(b"".join(found.records))
        self._take()
        # Of all the time, looking takes a small part, however many there are.
        self._look_again = start + _SELDOM * (self._now() - start)

    def _register(self, connection: DirectConnection) -> None:
        source = self._locals.get(connection.from_slot)
        if source is None:
            self._seen = -1  # it may be described later
        elif self._now() - connection.began / 1e9 < _YOUNG or _is_alive(source, connection.cookie):
            self.live.begun(connection)
        else:
            self._direct.forget(connection)

    def _take(self) -> None:
        for records in self._direct.take_waiting():  # not what comes meanwhile: the lease has its turn
            self._handle(records)
        self.live.end_denied()

    def _handle(self, records: bytes) -> None:
        if self.live.handle(records):
            self._access_log.flush()

    async def _accelerate(self) -> None:
        """Once a pod asks for it. What does not work here leaves connections direct."""
        tried = self._turbo_tried or self._direct.turbo.enabled
        if tried or not any(pod.settings.accelerate for pod in self._pods):
            return
        self._turbo_tried = True
        try:
            await trio.to_thread.run_sync(self._direct.turbo.enable)
        except (CaptureError, OSError) as error:
            _log.error("direct connections are not accelerated", extra=fields(error=str(error)))

    async def _count(self) -> None:
        if any(local.live for local in self._locals.values()):
            self.live.turbo(await trio.to_thread.run_sync(self._direct.turbo.handed_over))
        for local in [local for local in self._locals.values() if local.live]:
            try:
                self.live.count(await trio.to_thread.run_sync(_counted, local))
            except OSError as error:
                _log.warning("bytes not counted", extra=fields(pod=local.name, error=str(error)))


def _counted(local: Local) -> dict[int, tuple[int, int]]:
    return kernel.byte_counts(local.netns_fd)


def _is_alive(local: Local, cookie: int) -> bool:
    """Whether the client's socket is still there; also if that cannot be told."""
    try:
        return cookie in _counted(local)
    except OSError:
        return True


class Scissors:
    """Cuts flows, relayed or direct; stands where the engine stands for the redecider."""

    def __init__(self, engine: _Engine, keeper: Callable[[], Keeper]) -> None:
        self._engine, self._keeper = engine, keeper

    def cut(self, token: int, reason_code: int) -> None:
        """As `Engine.cut`; tokens below zero are direct connections."""
        if token < 0:
            self._keeper().live.cut(token, reason_code)
        else:
            self._engine.cut(token, reason_code)

    def flush(self) -> None:
        """As `Engine.flush`."""
        self._engine.flush()
