"""Annotations on pods, and who tells which pods are in: against a scripted API server."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from istiodlite.kube import Access, KubeClient
from tests.unit.istiodlite.kube.apiserver import ApiServer, Fault, status, until
from tests.unit.ztunnel.enrol_objects import UID, key, pod, pod_body
from ztunnel.config import load
from ztunnel.enrol.choice import Source
from ztunnel.enrol.podstatus import PodStatus
from ztunnel.enrol.roster import Roster
from ztunnel.enrol.settings import CaptureSettings
from ztunnel.enrol.source import PodSource
from ztunnel.enrol.zds import Add, Delete, Request

PATH = "/api/v1/namespaces/shop/pods/web/status"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ApiServer]:
    server = ApiServer(tmp_path)
    async with server.serve():
        yield server


def enrolled() -> Roster:
    """One pod, which is in."""
    roster = Roster()
    roster.pod(key(), pod(mode="ambient"))
    roster.advance(0.0)
    roster.found(UID, (4, 1), 0.0)
    roster.added(UID, (4, 1), CaptureSettings(), "", 0.0)
    return roster


def annotation(server: ApiServer) -> str | None:
    annotations = server.objects["/api/v1/pods"]["shop", "web"]["metadata"]["annotations"]
    value: str | None = annotations.get("ambient.istio.io/redirection")
    return value


@pytest.mark.trio
async def test_a_pod_is_told_once(server: ApiServer) -> None:
    server.put({"kind": "Pod", **pod_body()})
    roster = enrolled()
    async with KubeClient(server.access) as client, trio.open_nursery() as nursery:
        writer = PodStatus(client, lambda: roster)
        nursery.start_soon(writer.run)
        writer.check()
        await until(lambda: annotation(server) == "enabled")
        for _ in range(3):
            writer.check()
            await trio.testing.wait_all_tasks_blocked()
        assert [one.path for one in server.requests] == [PATH]
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_another_pod_of_the_name_is_left_alone(server: ApiServer) -> None:
    server.put({"kind": "Pod", **pod_body(uid=UID.replace("0", "9"))})
    roster = enrolled()
    async with KubeClient(server.access) as client, trio.open_nursery() as nursery:
        writer = PodStatus(client, lambda: roster)
        nursery.start_soon(writer.run)
        writer.check()
        await until(lambda: server.requests)
        await until(lambda: writer._written)
        assert annotation(server) is None
        assert writer.problem == ""
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_what_is_forbidden_is_said_with_advice_and_tried_again(
    server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.put({"kind": "Pod", **pod_body()})
    server.faults.append(Fault("patch", times=2, answer=status(403, "Forbidden", "pods is forbidden")))
    roster = enrolled()
    async with KubeClient(server.access) as client, trio.open_nursery() as nursery:
        writer = PodStatus(client, lambda: roster, draw=lambda: 1.0)
        nursery.start_soon(writer.run)
        writer.check()
        with caplog.at_level(logging.WARNING):
            await until(lambda: writer.problem)
            assert writer.problem.endswith("; grant patch on pods/status, or set AMBIENT_POD_STATUS=false")
            await until(lambda: annotation(server) == "enabled")
        await until(lambda: writer.problem == "")
        assert caplog.text.count("pods are not told of their capture") == 1
        assert writer.failures == 2
        nursery.cancel_scope.cancel()


class Listening:
    """In place of the pods of an agent."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = 0

    def __len__(self) -> int:
        return sum(isinstance(one, Add) for one in self.requests)

    def connected(self) -> None:
        self.connections += 1

    def disconnected(self) -> None:
        self.requests.append(Delete("disconnected"))

    async def handle(self, request: Request) -> str:
        self.requests.append(request)
        return ""


class InCluster(PodSource):
    """The credentials are not where a kubelet puts them."""

    access: Access

    def _access(self) -> Access:
        return self.access


@pytest.mark.trio
async def test_a_cni_agent_that_turns_up_takes_over(server: ApiServer, tmp_path: Path) -> None:
    uds = tmp_path / "zds.sock"
    config = load({"NODE_NAME": "n1", "INPOD_UDS": str(uds), "AMBIENT_POD_CGROUPS": str(tmp_path)})
    pods = Listening()
    source = InCluster(config, pods, lambda: False, {"KUBERNETES_SERVICE_HOST": "10.96.0.1"})  # type: ignore[arg-type]
    source.access = server.access
    assert source.exists
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        await until(lambda: pods.connections == 1)
        assert source.chosen is not None
        assert source.chosen.source is Source.KUBERNETES
        assert "kubernetes (there is no ZDS socket): 0 in, 0 waiting" in source.note()
        assert source.describe()["waiting"] == {}
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            await listener.bind(str(uds))
            listener.listen(5)
            await until(lambda: pods.connections == 2)
        assert source.chosen.source is Source.ZDS
        assert source.note() == "enrolment: zds (a CNI agent answers at the ZDS socket)"
        assert source.describe() == {"source": "zds", "why": "a CNI agent answers at the ZDS socket"}
        nursery.cancel_scope.cancel()
