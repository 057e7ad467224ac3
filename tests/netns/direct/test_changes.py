"""What a change of the mesh does to direct connections: to those that are open, and to the next ones."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from ebpf.capture import Capture
from tests.netns.capture import apps
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import App, Lab
from tests.netns.direct.harness import NAMES, PORT, VIP, Agent, LocalPod, LocalPods, allow, resources
from tests.unit.state.builders import by_name, policy, update, workload
from ztunnel.direct.keeper import Keeper
from ztunnel.logs import LineWriter
from ztunnel.state.snapshot import Update

pytestmark = pytest.mark.root

Change = Callable[["World"], Update]


@dataclass
class World:
    """The lab as the control plane describes it, and applications in its pods."""

    lab: Lab
    capture: Capture
    pods: LocalPods
    client: App
    log: int

    def __post_init__(self) -> None:
        self.update = resources(self.lab)
        self.of = {each.name: each for each in self.update.workloads}
        (self.service,) = self.update.services

    @property
    def to_service(self) -> Dial:
        return Dial((VIP, 80))

    @property
    def to_pod(self) -> Dial:
        return Dial((self.lab.pods[1].v4, PORT))

    def ask(self, dial: Dial) -> str:
        return str(self.client.call(apps.exchange, dial).tag)

    def run(self, test: Callable[[Agent], Awaitable[None]]) -> str:
        """Run a test beside the agent; returns the access log."""
        with tempfile.NamedTemporaryFile("w+") as lines:
            writer = LineWriter(lines.fileno())

            async def main() -> None:
                agent = Agent(self.capture, self.pods, writer)
                async with agent.running(self.lab):
                    await until(lambda: self.ask(self.to_service) == "app")
                    await test(agent)
                    await until(lambda: not agent.keeper.live.flows)

            trio.run(main)
            writer.close(60)
            return Path(lines.name).read_text()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not condition():
            await trio.sleep(0.02)


def cuts(agent: Agent) -> int:
    """How many decisions were taken back, by whoever saw the connection first."""
    return agent.redecider.cuts + agent.keeper.live.cuts


@pytest.fixture
def world(lab: Lab, capture: Capture) -> Iterator[World]:
    logging.getLogger("ztunnel.access").setLevel(logging.INFO)
    enrolled = [capture.enrol(pod.network()) for pod in lab.pods]
    lab.servers.serve(enrolled[0].outbound, "outbound")
    server = lab.app(lab.pods[1])
    server.call(apps.serve, PORT, "app")
    made = World(lab, capture, LocalPods(map(LocalPod, enrolled, NAMES)), lab.app(lab.pods[0]), 0)
    yield made
    lab.stop_agent()
    for app in (server, made.client):
        app.close()
        lab.forget_app(app)


def far(world: World) -> Update:
    """Another endpoint, on another node."""
    return update(workload("far", "10.9.9.9", node="n2", services={"ns/web.ns.svc": {80: PORT}}))


CHANGES: dict[str, tuple[Change, str, str, str, str]] = {
    # change: the open connection to the service, to the pod; the next ones to the service, to the pod
    "policy": (lambda w: update(allow("guest")), "ECONNABORTED", "ECONNABORTED", "outbound", "outbound"),
    "policy with another name": (
        lambda w: update(policy("deny", [[]], action="DENY")), "ECONNABORTED", "ECONNABORTED", "outbound", "outbound",
    ),
    "waypoint of the service": (
        lambda w: update(replace(w.service, waypoint=by_name("wp.ns.svc"))), "ECONNABORTED", "ok", "outbound", "app",
    ),
    "waypoint of the pod": (
        lambda w: update(replace(w.of["server"], waypoint=by_name("wp.ns.svc"))), "ok", "ECONNABORTED", "app", "outbound",
    ),
    "another endpoint": (far, "ok", "ok", "outbound", "app"),
    "endpoint not healthy": (
        lambda w: update(replace(w.of["server"], healthy=False)), "ok", "ok", "outbound", "app",
    ),
    "endpoint leaves the service": (
        lambda w: update(replace(w.of["server"], services=())), "ok", "ok", "outbound", "outbound",
    ),
    "service is gone": (
        lambda w: Update(removed_addresses=("ns/web.ns.svc",)), "ok", "ok", "outbound", "outbound",
    ),
    "a policy it lists is not there": (
        lambda w: update(replace(w.of["server"], authorization_policies=("ns/missing",))),
        "ECONNABORTED", "ECONNABORTED", "outbound", "outbound",
    ),
    "policy that still allows": (lambda w: update(allow("client")), "ok", "ok", "app", "app"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_change_takes_effect_on_open_and_new_connections(world: World, name: str) -> None:
    change, service_end, pod_end, next_service, next_pod = CHANGES[name]
    opened = {"service": (world.to_service, service_end), "pod": (world.to_pod, pod_end)}

    async def test(agent: Agent) -> None:
        for held, (dial, _) in opened.items():
            world.client.call(apps.hold, held, dial)
        await agent.apply(change(world))
        assert world.ask(world.to_service) == next_service
        assert world.ask(world.to_pod) == next_pod
        cut = sum(end != "ok" for _, end in opened.values())
        await until(lambda: cuts(agent) >= cut)
        for held, (_, end) in opened.items():
            if end == "ok":
                assert world.client.call(apps.ask_held, held).tag == "app"
                world.client.call(apps.drop_held, held)
            else:
                assert world.client.call(apps.end_held, held) == end
        assert cuts(agent) == cut
        # Back again, everything goes direct as before.
        back = replace(
            world.update,
            removed_addresses=("Kubernetes//Pod/ns/far",),
            removed_policies=("ns/deny",),
        )
        await agent.apply(back)
        await until(lambda: world.ask(world.to_service) == "app" == world.ask(world.to_pod))

    log = world.run(test)
    ended = [line for line in log.splitlines() if "policy_changed" in line or "route_changed" in line]
    assert len(ended) == sum(end != "ok" for _, end in opened.values())
    assert all('connection_path="direct"' in line for line in log.splitlines())


def test_account_of_the_client_counts_by_todays_name(world: World) -> None:
    async def test(agent: Agent) -> None:
        world.client.call(apps.hold, "open", world.to_pod)
        other = replace(world.of["client"].identity, service_account="stranger")
        await agent.apply(update(replace(world.of["client"], identity=other)))
        assert world.ask(world.to_pod) == "outbound"
        world.client.call(apps.drop_held, "open")

    world.run(test)


def test_agent_that_is_told_always_ends_what_a_former_one_allowed(world: World) -> None:
    held: list[Any] = []

    async def test(agent: Agent) -> None:
        world.client.call(apps.hold, "open", world.to_pod)
        agent.keeper.retire()
        assert world.ask(world.to_pod) == "outbound"
        always = Keeper(
            world.capture.direct, world.pods, agent.flows, agent.log, enabled=False, network="",
            current=lambda: agent.store.snapshot, monotonic=time.monotonic,
        )  # fmt: skip
        await always.run()
        held.append(world.client.call(apps.end_held, "open"))

    async def main() -> None:
        writer = LineWriter(os.open(os.devnull, os.O_WRONLY))
        agent = Agent(world.capture, world.pods, writer)
        async with agent.running(world.lab):
            await until(lambda: world.ask(world.to_service) == "app")
            await test(agent)
        writer.close()

    trio.run(main)
    assert held == ["ECONNABORTED"]
    assert world.ask(world.to_pod) == "outbound"


def test_pod_that_leaves_keeps_its_open_direct_connections_and_they_are_logged(world: World) -> None:
    async def test(agent: Agent) -> None:
        world.client.call(apps.hold, "open", world.to_pod)
        await until(lambda: agent.keeper.live.flows == 2)
        gone = world.pods.pop(1)
        world.capture.withdraw(gone.enrolled)
        assert world.ask(world.to_pod) == "outbound"
        await trio.sleep(0.2)
        assert world.client.call(apps.ask_held, "open").tag == "app"
        world.client.call(apps.drop_held, "open")

    log = world.run(test)
    assert "bytes_sent=2 " in log


def test_service_of_two_local_pods_goes_to_both_while_both_are_its_endpoints(world: World) -> None:
    joined = replace(world.of["guest"], services=world.of["server"].services)
    second = world.lab.app(world.lab.pods[2])
    second.call(apps.serve, PORT, "second")
    answered: Counter[str] = Counter()

    def ask(times: int = 40) -> set[str]:
        found = world.client.call(apps.who_answers, world.to_service, times)
        answered.update(found)
        return set(found)

    async def test(agent: Agent) -> None:
        for change, expected in (
            (update(joined), {"app", "second"}),
            (update(replace(joined, healthy=False)), {"app"}),
            (update(joined), {"app", "second"}),
            (update(replace(world.of["server"], healthy=False)), {"second"}),
            (update(world.of["server"]), {"app", "second"}),
            (far(world), {"outbound"}),
            (Update(removed_addresses=("Kubernetes//Pod/ns/far",)), {"app", "second"}),
            (update(world.of["guest"]), {"app"}),
        ):
            await agent.apply(change)
            assert ask() == expected

    try:
        lines = [line for line in world.run(test).splitlines() if 'direction="outbound"' in line]
    finally:
        second.close()
        world.lab.forget_app(second)
    assert answered["second"] == sum('dst.workload="guest"' in line for line in lines)
    assert all('dst.service="web.ns.svc"' in line for line in lines if 'dst.workload="guest"' in line)
