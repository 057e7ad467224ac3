"""The keeper with a store, a registry and a redecider, joined as in the agent, on a lab's capture."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from ebpf.capture import Capture, EnrolledPod
from hbone.spiffe import SpiffeId
from tests.netns.capture.lab import Lab
from tests.unit.state.builders import match, policy, service, update, workload
from ztunnel.accesslog import AccessLog
from ztunnel.direct.keeper import Keeper, Scissors
from ztunnel.enrol.settings import CaptureSettings
from ztunnel.flows.redecide import Redecider
from ztunnel.flows.registry import Registry
from ztunnel.logs import LineWriter
from ztunnel.metrics import Traffic
from ztunnel.state.policy import Policy
from ztunnel.state.snapshot import Update
from ztunnel.store import Store

NODE, PORT, VIP = "n1", 7070, "10.96.0.9"
NAMES = ("client", "server", "guest")


@dataclass
class LocalPod:
    """What the keeper asks of an enrolled pod."""

    enrolled: EnrolledPod
    name: str
    namespace: str = "ns"
    settings: CaptureSettings = field(default_factory=CaptureSettings)

    @property
    def service_account(self) -> str:
        return self.name

    @property
    def addresses(self) -> tuple[Any, ...]:
        return self.enrolled.network.addresses


class LocalPods(list[LocalPod]):
    snapshot_done = True


class NoEngine:
    """Nothing is relayed here: the lab's servers stand for the proxy."""

    def cut(self, token: int, reason_code: int) -> None:
        raise AssertionError("a relayed flow was cut")

    def flush(self) -> None:
        pass


class Agent:
    """Store, keeper, redecider and flows as the agent joins them, on a lab's capture."""

    def __init__(self, capture: Capture, pods: LocalPods, writer: LineWriter) -> None:
        self.store = Store(NODE)
        traffic = Traffic()
        self.log = log = AccessLog(writer, as_json=False)
        self.flows = Registry(traffic, log)
        scissors = Scissors(NoEngine(), lambda: self.keeper)
        self.redecider = Redecider(self.flows, scissors, lambda: self.store.snapshot)
        self.keeper = Keeper(
            capture.direct, pods, self.flows, log, enabled=True, network="",
            current=lambda: self.store.snapshot, monotonic=time.monotonic,
        )  # fmt: skip
        self.told = trio.Event()
        self.store.subscribe(self.keeper.changed)
        self.store.subscribe(self.redecider.changed)
        self.store.subscribe(lambda *_: self.told.set())

    @asynccontextmanager
    async def running(self, lab: Lab) -> AsyncIterator[None]:
        """With its tasks, and the lab's pods known and allowed."""
        async with trio.open_nursery() as nursery:
            for part in (self.store.run, self.redecider.run):
                nursery.start_soon(part)
            await self.apply(resources(lab))
            nursery.start_soon(self.keeper.run)
            yield
            nursery.cancel_scope.cancel()

    async def apply(self, change: Update) -> None:
        """Until the change is in force."""
        self.told = trio.Event()
        await self.store.apply(change)
        await self.told.wait()


def allow(*names: str) -> Policy:
    return policy("callers", [[[match(principals=[f"cluster.local/ns/ns/sa/{name}" for name in names])]]])


def resources(lab: Lab) -> Update:
    """Two clients and a server with a service, all on this node."""
    pods = []
    for name, pod in zip(NAMES, lab.pods, strict=True):
        members = {"ns/web.ns.svc": {80: PORT}} if name == "server" else {}
        pods.append(workload(name, pod.v4, pod.v6, account=name, node=NODE, services=members))
        assert pods[-1].identity == SpiffeId("cluster.local", "ns", name)
    return update(*pods, service("web", VIP, ports={80: PORT}), allow("client", "guest"))
