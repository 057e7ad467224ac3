"""Annotations on pods, against a scripted API server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from istiodlite.kube import KubeClient
from tests.unit.istiodlite.kube.apiserver import ApiServer, Fault, status, until
from tests.unit.ztunnel.enrol_objects import UID, key, pod, pod_body
from ztunnel.enrol.podstatus import PodStatus
from ztunnel.enrol.roster import Roster
from ztunnel.enrol.settings import CaptureSettings

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
