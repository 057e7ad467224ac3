"""Machines register at an API server: source, registrar and status joined as in the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from istiodlite.ca.caller import Caller
from istiodlite.kube import KubeClient
from istiodlite.machines import Machine, Registrar
from istiodlite.registry import MeshConfig, Registry
from istiodlite.sources.folder import Batch
from istiodlite.sources.kube import KubeSource
from istiodlite.status import StatusWriter
from istiodlite.status.writer import removed
from tests.unit.istiodlite.kube.apiserver import PATHS, ApiServer, Fault, status, until
from tests.unit.istiodlite.kube.objects import namespace

pytestmark = pytest.mark.trio
VM = Machine("shop", "192.0.2.7", "vms", probed=True)
CALLER = Caller("shop", "vm")
NAME = "vms-192.0.2.7"
# Long enough that a machine that comes back at once is not given up, however slow this machine is.
LONG, SHORT = 600.0, 0.2


def group(**template: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadGroup",
        "metadata": {"name": "vms", "namespace": "shop", "uid": "u-1"},
        "spec": {"template": {"serviceAccount": "vm", **template}},
    }


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ApiServer]:
    api = ApiServer(tmp_path)
    async with api.serve():
        api.put(namespace("shop"))
        api.put(group())
        yield api


@dataclass
class Plane:
    server: ApiServer
    registrar: Registrar

    async def connect(self, number: int, machine: Machine = VM, caller: Caller = CALLER) -> str:
        answer = self.registrar.connect(number, machine, caller)
        await until(answer.done)
        return answer.result()

    def entry(self, name: str = NAME) -> dict[str, Any] | None:
        return self.server.objects[PATHS["WorkloadEntry"]].get(("shop", name))

    def annotations(self) -> dict[str, str]:
        found = self.entry()
        return {} if found is None else found["metadata"]["annotations"]

    def healthy(self, name: str = NAME) -> tuple[str, str] | None:
        found = (self.entry(name) or {}).get("status", {}).get("conditions", [])
        return next(((one["status"], one["message"]) for one in found if one["type"] == "Healthy"), None)


async def soon(_: float) -> None:
    await trio.sleep(0.01)


@asynccontextmanager
async def plane(server: ApiServer, grace: float = LONG) -> AsyncIterator[Plane]:
    registry, complete = Registry(MeshConfig()), trio.Event()
    async with KubeClient(server.access) as client, trio.open_nursery() as nursery:
        writer = StatusWriter(client, sleep=soon)
        registrar = Registrar(client, writer.report, writer.version, "here", grace)

        def deliver(batch: Batch) -> None:
            writer.gone(removed(batch.changes))
            registrar.note(batch.changes)
            registry.apply(batch.changes)
            writer.pushed(registry, registry.rebuilt)
            complete.set()

        nursery.start_soon(KubeSource(client, saw=writer.saw).run, deliver)
        nursery.start_soon(writer.run)
        nursery.start_soon(registrar.run)
        await complete.wait()
        yield Plane(server, registrar)
        nursery.cancel_scope.cancel()


async def test_it_is_entered_and_goes_when_it_does_not_come_back(server: ApiServer) -> None:
    async with plane(server, SHORT) as one:
        assert await one.connect(1) == ""
        assert one.annotations()["istio.io/workloadController"] == "here"
        assert one.registrar.describe() == [f"WorkloadEntry shop/{NAME}"]
        one.registrar.disconnect(1)
        await until(lambda: one.entry() is None)


async def test_while_any_of_its_streams_is_open_it_stays(server: ApiServer) -> None:
    async with plane(server) as one:
        assert await one.connect(1) == ""
        with trio.fail_after(60):
            # Refused as long as the new entry has not come back by the watch.
            while await one.connect(2):
                await trio.sleep(0.01)
        one.registrar.disconnect(1)
        assert await one.connect(3) == "", "events are taken in turn: the end of the first was"
        assert "istio.io/connectedAt" in one.annotations()
        one.registrar.disconnect(2)
        one.registrar.disconnect(3)
        await until(lambda: "istio.io/disconnectedAt" in one.annotations())
        assert "istio.io/connectedAt" not in one.annotations()


async def test_its_health_is_a_condition(server: ApiServer) -> None:
    async with plane(server) as one:
        assert await one.connect(1) == ""
        one.registrar.health(1, None)
        await until(lambda: one.healthy() == ("True", ""))
        one.registrar.health(1, "no answer")
        await until(lambda: one.healthy() == ("False", "no answer"))
        one.registrar.health(99, None)
        assert await one.connect(2, Machine("shop", "192.0.2.8", "vms")) == ""
        assert one.healthy() == ("False", "no answer"), "a stream of nobody says nothing"


async def test_an_entry_written_by_hand_keeps_all_but_what_was_reported(server: ApiServer) -> None:
    body = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {
            "name": "by-hand",
            "namespace": "shop",
            "annotations": {"proxy.istio.io/health-checks-enabled": "true"},
        },
        "spec": {"address": "192.0.2.7"},
    }
    server.put(body)
    machine = Machine("shop", "192.0.2.7", entry="by-hand")
    async with plane(server, SHORT) as one:
        assert await one.connect(1, machine) == ""
        one.registrar.health(1, None)
        await until(lambda: one.healthy("by-hand"))
        one.registrar.disconnect(1)
        await until(lambda: one.healthy("by-hand") is None)
        assert one.entry("by-hand") is not None


@pytest.mark.parametrize(
    ("machine", "caller", "why"),
    [
        (VM, Caller("shop", "other"), "the entry's service account is vm, the token's other"),
        (Machine("shop", "192.0.2.7", "none"), CALLER, "there is no WorkloadGroup shop/none"),
        (Machine("shop", "192.0.2.7", entry="none"), CALLER, "there is no WorkloadEntry shop/none"),
    ],
)
async def test_refusals(server: ApiServer, machine: Machine, caller: Caller, why: str) -> None:
    async with plane(server) as one:
        assert why in await one.connect(1, machine, caller)
        assert one.entry() is None
        assert one.registrar.describe() == []


async def test_a_missing_right_says_what_to_apply(server: ApiServer) -> None:
    server.faults.append(Fault("post", "WorkloadEntry", answer=status(403, "Forbidden", "no")))
    async with plane(server) as one:
        said = await one.connect(1)
        assert "cannot be written" in said
        assert "machines.yaml" in said
        assert await one.connect(1) == "", "granted meanwhile"


async def test_what_another_replica_left_is_removed(server: ApiServer) -> None:
    async with plane(server) as one:
        assert await one.connect(1) == ""
        one.registrar.disconnect(1)
        await until(lambda: "istio.io/disconnectedAt" in one.annotations())
    async with plane(server, SHORT) as other:
        await until(lambda: other.entry() is None)
