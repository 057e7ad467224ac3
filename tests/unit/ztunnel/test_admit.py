"""Connections that the engine admits by itself, with a real engine: each is logged, counted and decided again, and
none gets through by a verdict that the state has taken back."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from hbone.engine import Accepted, Engine, EngineConfig, ListenerKind
from tests.support.pki import Authority, spiffe
from tests.support.ports import address, listening_socket
from tests.unit.engine.conftest import App, Host, dial, echo
from tests.unit.ztunnel.agentbench import Identities
from tests.unit.ztunnel.doubles import workload
from ztunnel.accesslog import AccessLog
from ztunnel.admit import Verdicts
from ztunnel.carry import Carrier
from ztunnel.config import load
from ztunnel.flows.redecide import Redecider
from ztunnel.flows.registry import Registry
from ztunnel.inbound import Inbound
from ztunnel.logs import LineWriter
from ztunnel.metrics import Metrics
from ztunnel.outbound import Outbound
from ztunnel.pump import Pump
from ztunnel.state.policy import Action, Policy, PolicyScope, Rule
from ztunnel.state.snapshot import Update
from ztunnel.store import Store

HERE = workload("here", "127.0.0.1")
URI = str(HERE.identity)
DENY = Policy("shop", "nobody", PolicyScope.NAMESPACE, Action.DENY, (Rule(),))
DEADLINE = 60
WORKERS = 2


class Agent:
    """The inbound half of an agent around a real engine; its one pod is HERE."""

    def __init__(self, credential: Any) -> None:
        config = load({"NODE_NAME": "n1", "NETWORK": "net1", "ENABLE_ORIG_SRC": "false"})
        self.read, self._write = os.pipe()
        self._writer = LineWriter(self._write)
        log = AccessLog(self._writer, as_json=False)
        self.engine = Engine(EngineConfig(workers=WORKERS, event_hold=0.005))
        self.engine.set_identity(
            1, credential.chain_pem, credential.key_pem, credential.roots_pem, ["cluster.local"]
        )
        self.store = Store("n1", before_change=self.engine.forget)
        self.metrics = Metrics("test")
        self.flows = Registry(self.metrics.traffic, log)
        carrier = Carrier(self.engine, self.flows)
        self.redecider = Redecider(self.flows, self.engine, lambda: self.store.snapshot)
        self.store.subscribe(self.redecider.changed)
        self.verdicts = Verdicts(
            self.engine, self.flows, lambda: self.store.snapshot, self.redecider.again, WORKERS
        )
        pod: Any = SimpleNamespace(
            tag=1, netns=0, name=HERE.name, namespace=HERE.namespace, service_account=HERE.name
        )
        pods: Any = SimpleNamespace(by_tag=lambda tag: pod)
        common: dict[str, Any] = {
            "carrier": carrier,
            "verdicts": self.verdicts,
            "store": self.store,
            "config": config,
        }
        self.pump = Pump(
            engine=self.engine,
            pods=pods,
            outbound=Outbound(identities=Identities(), **common),
            inbound=Inbound(**common),
            verdicts=self.verdicts,
            flows=self.flows,
            access_log=log,
        )
        self._parts = (self.store.run, carrier.run, self.redecider.run, self.pump.run)
        self.lines: list[str] = []

    def listen(self) -> tuple[str, int]:
        with listening_socket() as sock:
            self.engine.listen(sock.fileno(), ListenerKind.HBONE, 0, 1, 1)
            return address(sock)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        reader = threading.Thread(target=self._collect)
        reader.start()
        async with trio.open_nursery() as nursery:
            for part in self._parts:
                nursery.start_soon(part)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
        self.engine.stop()
        while self.pump.turn():
            pass
        self._writer.close()
        os.close(self._write)
        reader.join()
        os.close(self.read)

    def _collect(self) -> None:
        with os.fdopen(os.dup(self.read)) as file:
            self.lines += [line for line in file if "connection complete" in line]


class World:
    """A client's engine that sends everything to the agent, which delivers to an application that echoes."""

    def __init__(self) -> None:
        ca = Authority.root()
        self.app = App(echo)
        self.agent = Agent(ca.leaf(URI))
        self.hbone = self.agent.listen()
        self.client = Host(self._tunnel)
        mine = ca.leaf(spiffe("client"))
        self.client.engine.set_identity(1, mine.chain_pem, mine.key_pem, mine.roots_pem, ["cluster.local"])
        self.entry = self.client.listen(ListenerKind.OUTBOUND)

    def _tunnel(self, host: Host, event: Accepted) -> None:
        host.engine.connect_tunnel(
            event.token,
            self.hbone,
            netns=0,
            identity=1,
            sans=[URI],
            authority=f"{self.app.address[0]}:{self.app.address[1]}",
            headers=[("forwarded", f'for="{event.peer[0]}:{event.peer[1]}"')],
        )

    def served(self) -> bool:
        """Whether a new connection gets an echo."""
        try:
            with dial(self.entry) as sock:
                sock.sendall(b"x")
                return sock.recv(1) == b"x"
        except ConnectionError:
            return False

    def stop(self) -> None:
        self.client.stop()
        self.app.stop()


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    caplog.set_level("INFO", "ztunnel.access")
    world = World()
    yield world
    world.stop()


async def deny(agent: Agent, *, denied: bool) -> None:
    update = Update(policies=(DENY,)) if denied else Update(removed_policies=(DENY.key,))
    await agent.store.apply(update)


async def until(condition: Any, what: str) -> None:
    with trio.move_on_after(DEADLINE):
        while not condition():
            await trio.sleep(0.005)
        return
    raise AssertionError(f"not within {DEADLINE} s: {what}")


def total(agent: Agent, name: str) -> int:
    return sum(
        int(sample.value)
        for metric in agent.metrics.traffic.collect()
        for sample in metric.samples
        if sample.name == f"{name}_total"
    )


@pytest.mark.trio
async def test_every_admitted_connection_is_logged_and_counted(world: World) -> None:
    agent = world.agent
    async with agent.running():
        await agent.store.apply(Update(workloads=(HERE,)))
        for _ in range(50):
            assert await trio.to_thread.run_sync(world.served)
        await until(lambda: total(agent, "istio_tcp_connections_closed") == 50, "all have ended")
        stats = agent.engine.stats()
        assert stats["verdict_hits"] >= 40
        assert total(agent, "istio_tcp_connections_opened") == 50
        assert total(agent, "istio_tcp_received_bytes") == total(agent, "istio_tcp_sent_bytes") == 50
    assert len(agent.lines) == 50
    assert all("bytes_sent=1 bytes_recv=1" in line for line in agent.lines)
    assert len(agent.flows) == 0


@pytest.mark.trio
async def test_a_connection_that_was_admitted_is_cut_when_policy_forbids_it(world: World) -> None:
    agent = world.agent
    async with agent.running():
        await agent.store.apply(Update(workloads=(HERE,)))
        while agent.engine.stats()["verdict_hits"] == 0:
            assert await trio.to_thread.run_sync(world.served)
        hits = agent.engine.stats()["verdict_hits"]
        with contextlib.ExitStack() as stack:
            open_now = [stack.enter_context(dial(world.entry)) for _ in range(8)]
            # At once: of some of them the agent may not have heard yet.
            await until(lambda: agent.engine.stats()["verdict_hits"] == hits + 8, "all are admitted")
            await deny(agent, denied=True)
            for sock in open_now:
                with pytest.raises(ConnectionResetError):
                    await trio.to_thread.run_sync(sock.recv, 1)
        await until(lambda: len(agent.flows) == 0, "all have ended")
    cut = [line for line in agent.lines if 'reason="policy_changed"' in line]
    assert len(cut) == 8


class Clients:
    """Threads that connect all the time, and what they saw: (answer in force, served) -> how often. Counted is who
    began and ended under one answer; `answer` is None while it changes."""

    def __init__(self, world: World, number: int) -> None:
        self._world, self.seen = world, Counter[tuple[int, bool]]()
        self.answer: int | None = None
        self._done, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._done.is_set():
            before = self.answer
            served = self._world.served()
            if before is not None and self.answer == before:
                with self._lock:
                    self.seen[before, served] += 1

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.trio
async def test_no_denied_connection_gets_through_while_policy_flips(world: World) -> None:
    agent, flips, each = world.agent, 16, 10
    async with agent.running():
        await agent.store.apply(Update(workloads=(HERE,)))
        clients = Clients(world, 3)
        try:
            for answer in range(flips):
                clients.answer = None
                await deny(agent, denied=bool(answer % 2))
                clients.answer = answer

                def enough(answer: int = answer) -> bool:
                    return clients.seen[answer, True] + clients.seen[answer, False] >= each

                await until(enough, f"clients under answer {answer}")
        finally:
            await trio.to_thread.run_sync(clients.stop)
        stats = agent.engine.stats()
        await until(lambda: len(agent.flows) == 0, "all have ended")
        await until(lambda: len(agent.verdicts) <= 1, "what was forgotten is dropped")
    assert {key: count for key, count in clients.seen.items() if key[1] == bool(key[0] % 2)} == {}
    assert stats["verdict_hits"] > flips
    assert stats["verdicts_forgotten"] >= flips // 2 - 1
    opened = agent.engine.stats()["flows_opened"]
    assert len(agent.lines) == opened, "one line each"
