"""Registers machines in a cluster, and says when they are gone. Runs in the main thread; streams are in another one."""

import datetime
import logging
import math
import random
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import trio

from istiodlite.ca.caller import Caller
from istiodlite.kube import ApiError, KubeClient
from istiodlite.kube.reflector import wait_of
from istiodlite.machines import machine as machines
from istiodlite.machines.machine import Machine
from istiodlite.objects import KubeObject, ObjectKey, WorkloadEntry, WorkloadGroup
from istiodlite.registry import Condition
from istiodlite.status.plan import HEALTHY

_log = logging.getLogger("istiodlite.machines")
_MERGE_PATCH = "application/merge-patch+json"
_TRIES = 5


@dataclass(frozen=True, slots=True)
class _Stream:
    machine: Machine
    caller: Caller
    key: ObjectKey


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _place(key: ObjectKey) -> str:
    return f"/apis/networking.istio.io/v1/namespaces/{key.namespace}/workloadentries"


class Registrar:
    """`connect`, `health` and `disconnect` may be called by any thread, with the number of a stream.

    `report` takes the condition of an entry (None: it has none any more); `version` tells an entry's
    resourceVersion as it was last seen; `controller` is this replica's name; `grace` are seconds.
    """

    def __init__(
        self,
        client: KubeClient,
        report: Callable[[ObjectKey, Condition | None], None],
        version: Callable[[ObjectKey], str],
        controller: str,
        grace: float = machines.GRACE,
    ) -> None:
        self._client, self._report, self._version = client, report, version
        self._controller, self._grace = controller, grace
        self._token = trio.lowlevel.current_trio_token()
        self._send, self._events = trio.open_memory_channel[Callable[[], Any]](math.inf)
        self._streams: dict[int, _Stream] = {}
        self._known: dict[ObjectKey, WorkloadEntry | WorkloadGroup] = {}

    def connect(self, number: int, machine: Machine, caller: Caller) -> "Future[str]":
        """Empty when the machine has its entry, else why its stream has to end."""
        answer: Future[str] = Future()

        async def do() -> None:
            if answer.set_running_or_notify_cancel():
                answer.set_result(await self._connect(number, machine, caller))

        self._later(do)
        return answer

    def health(self, number: int, message: str | None) -> None:
        """What the machine's agent found: None for healthy, else what is wrong."""

        async def do() -> None:
            self._health(number, message)

        self._later(do)

    def disconnect(self, number: int) -> None:
        """The stream is over."""

        async def do() -> None:
            await self._disconnect(number)

        self._later(do)

    def _later(self, event: Callable[[], Any]) -> None:
        self._token.run_sync_soon(self._send.send_nowait, event)

    def note(self, changes: Mapping[ObjectKey, KubeObject | None]) -> None:
        """A batch of the source."""
        for key, obj in changes.items():
            if isinstance(obj, WorkloadEntry | WorkloadGroup):
                self._known[key] = obj
            elif obj is None:
                self._known.pop(key, None)

    def describe(self) -> list[str]:
        """The entries whose machines have a stream here, for people."""
        return sorted({str(stream.key) for stream in self._streams.values()})

    async def run(self) -> None:
        """Endless; cancel to stop."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep_now_and_then)
            async for event in self._events:
                await event()

    async def _connect(self, number: int, machine: Machine, caller: Caller) -> str:
        try:
            why = await self._register(machine, caller)
        except ApiError as error:
            advice = "; apply daemonset/kubernetes/base/machines.yaml" if error.code == 403 else ""
            why = f"WorkloadEntry {machine.key.name} cannot be written: {error}{advice}"
        if why:
            _log.warning("machine %s refused: %s", machine.address, why)
        else:
            self._streams[number] = _Stream(machine, caller, machine.key)
        return why

    async def _register(self, machine: Machine, caller: Caller) -> str:
        key, now = machine.key, _now().isoformat()
        entry = self._known.get(key)
        if isinstance(entry, WorkloadEntry):
            if not machine.group and not machines.is_checked(entry):
                return ""
            why = machines.refusal(entry.endpoint, key.namespace, caller)
            if not why:
                await self._annotate(key, machines.connected(self._controller, now))
            return why
        if not machine.group:
            return f"there is no WorkloadEntry {key.namespace}/{key.name}; create it, or name another one"
        group = self._known.get(ObjectKey("WorkloadGroup", machine.namespace, machine.group))
        if not isinstance(group, WorkloadGroup):
            return f"there is no WorkloadGroup {machine.namespace}/{machine.group}; create it first"
        why = machines.refusal(group.template, key.namespace, caller)
        if why:
            return why
        await self._client.send("POST", _place(key), machines.entry_of(machine, group, self._controller, now))
        _log.info("registered %s for %s", key, caller)
        return ""

    def _health(self, number: int, message: str | None) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            self._report(stream.key, Condition(stream.key, HEALTHY, message is None, "", message or ""))

    async def _disconnect(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is None or any(other.key == stream.key for other in self._streams.values()):
            return
        for tries in range(1, _TRIES + 1):
            try:
                await self._annotate(stream.key, machines.gone(_now().isoformat()))
                return
            except ApiError as error:
                if error.code == 404:
                    return
                _log.warning("%s is not marked as disconnected: %s", stream.key, error)
            await trio.sleep(wait_of(tries, random.random()))  # noqa: S311  (spreads load)

    async def _annotate(self, key: ObjectKey, annotations: Mapping[str, str | None]) -> None:
        patch = {"metadata": {"annotations": dict(annotations)}}
        await self._client.send("PATCH", f"{_place(key)}/{key.name}", patch, content_type=_MERGE_PATCH)

    async def _sweep_now_and_then(self) -> None:
        """Also what was left by a replica that is no more."""
        while True:
            await trio.sleep(self._grace / 4)
            for entry in [one for one in self._known.values() if isinstance(one, WorkloadEntry)]:
                key = ObjectKey("WorkloadEntry", entry.meta.namespace, entry.meta.name)
                if machines.is_over(entry, _now(), self._grace) and not any(
                    s.key == key for s in self._streams.values()
                ):
                    await self._remove(key, entry)

    async def _remove(self, key: ObjectKey, entry: WorkloadEntry) -> None:
        if not machines.is_registered(entry):
            if machines.is_checked(entry):
                self._report(key, None)
            return
        seen = {"preconditions": {"resourceVersion": self._version(key)}}
        try:
            await self._client.send("DELETE", f"{_place(key)}/{key.name}", seen)
            _log.info("removed %s: its machine did not come back", key)
        except ApiError as error:
            # Gone, or changed since: the watch tells.
            if error.code not in (404, 409):
                _log.warning("%s is not removed: %s", key, error)
