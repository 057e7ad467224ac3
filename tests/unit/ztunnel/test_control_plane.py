"""xDS client and certificates against a real istiodlite process."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from hbone.spiffe import SpiffeId
from istiodlite.api.discovery_pb2 import Node
from tests.interop.control.conftest import ControlPlane as Server
from ztunnel.config import Endpoint
from ztunnel.control_plane import ControlPlane
from ztunnel.identity.ca import CaClient
from ztunnel.identity.manager import CertificateRefused
from ztunnel.store import Store
from ztunnel.xds.client import XdsClient
from ztunnel.xds.delta import DeltaSession

PATIENCE = 20.0


def pod(name: str, namespace: str, account: str, ip: str, node: str = "n1", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "labels": labels,
            "annotations": {"ambient.istio.io/redirection": "enabled"},
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": account,
            "containers": [{"name": "c", "image": "i"}],
        },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.put(
        pod("ztunnel-n1", "istio-system", "ztunnel", "192.168.0.1"),
        pod("web", "shop", "web", "10.0.0.2"),
        pod("far", "shop", "far", "10.0.0.7", node="n2"),
    )
    server.start()
    yield server
    server.stop()


def connect(server: Server, tmp_path: Path, **changes: Any) -> ControlPlane:
    root, token = tmp_path / "root.pem", tmp_path / "token"
    if not root.exists():
        root.write_bytes(server.root())
        token.write_text(server.token())
    settings: dict[str, Any] = {
        "root_ca": str(root),
        "server_name": "istiod.istio-system.svc",
        "token": str(token),
        "cluster_id": "Kubernetes",
    }
    return ControlPlane(Endpoint("127.0.0.1", server.port), **(settings | changes))


@asynccontextmanager
async def xds(plane: ControlPlane, *, on_demand: bool = False) -> AsyncIterator[tuple[XdsClient, Store]]:
    node = Node(id="ztunnel~192.168.0.1~ztunnel-n1.istio-system~istio-system.svc.cluster.local")
    node.metadata.update({"NODE_NAME": "n1", "CLUSTER_ID": "Kubernetes"})
    store = Store("n1")
    client = XdsClient(plane, DeltaSession(node, on_demand=on_demand), store, draw=lambda: 0.5)
    with trio.fail_after(PATIENCE * 2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            yield client, store
            nursery.cancel_scope.cancel()
    plane.close()


async def until(condition: Callable[[], Any]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.sleep(0.01)


@pytest.mark.trio
async def test_ready_comes_with_the_first_full_state_and_changes_follow(
    server: Server, tmp_path: Path
) -> None:
    async with xds(connect(server, tmp_path)) as (client, store):
        await client.ready.wait()
        assert store.snapshot.local_workload("shop", "web", "web") is not None
        assert not await store.wait_until(lambda s: s.workload("Kubernetes//Pod/shop/late") is not None, 0.05)
        server.put(pod("late", "shop", "late", "10.0.0.3"))
        found = await store.wait_until(
            lambda s: s.workload("Kubernetes//Pod/shop/late") is not None, PATIENCE
        )
        assert found
        assert client.connected
        assert sum(client.messages.values()) >= 3
        assert sum(client.message_bytes.values()) > 100


@pytest.mark.trio
async def test_state_outlives_the_control_plane_and_catches_up_with_it(
    server: Server, tmp_path: Path
) -> None:
    async with xds(connect(server, tmp_path)) as (client, store):
        await client.ready.wait()
        await trio.to_thread.run_sync(server.stop)
        await until(lambda: not client.connected)
        assert store.snapshot.local_workload("shop", "web", "web") is not None
        server.delete(pod("web", "shop", "web", "10.0.0.2"))
        server.put(pod("web2", "shop", "web", "10.0.0.4"))
        await trio.to_thread.run_sync(server.start)
        gone = await store.wait_until(
            lambda s: (
                s.local_workload("shop", "web", "web") is None
                and s.local_workload("shop", "web", "web2") is not None
            ),
            PATIENCE,
        )
        assert gone
    assert client.terminations


@pytest.mark.trio
async def test_a_server_that_is_not_there_is_tried_with_growing_delays(
    server: Server, tmp_path: Path
) -> None:
    plane = connect(server, tmp_path)
    await trio.to_thread.run_sync(server.stop)
    async with xds(plane) as (client, _):
        await trio.sleep(2)
        assert 1 <= client.terminations["ConnectionError"] <= 12
        assert not client.ready.is_set()


@pytest.mark.trio
async def test_a_wrong_token_is_not_ready_and_does_not_spin(server: Server, tmp_path: Path) -> None:
    async with xds(connect(server, tmp_path, token="a.b.c")) as (client, _):
        await until(lambda: client.terminations["Error"] >= 1)
        assert not client.ready.is_set()
        await trio.sleep(1)
        assert client.terminations.total() < 12


@pytest.mark.trio
async def test_the_stream_is_renewed_when_the_root_file_changes(server: Server, tmp_path: Path) -> None:
    async with xds(connect(server, tmp_path)) as (client, _):
        await client.ready.wait()
        before = client.terminations.total()
        replacement = tmp_path / "root.new"
        replacement.write_bytes(server.root() + b"\n")
        replacement.rename(tmp_path / "root.pem")
        await until(lambda: client.terminations.total() > before and client.connected)


@pytest.mark.trio
async def test_on_demand_every_waiter_of_a_name_is_answered(server: Server, tmp_path: Path) -> None:
    answers: dict[str, bool] = {}
    async with xds(connect(server, tmp_path), on_demand=True) as (client, store):
        await client.ready.wait()
        assert store.snapshot.workload("Kubernetes//Pod/shop/far") is None

        async def ask(key: str, name: str) -> None:
            answers[key] = await client.ask(name, PATIENCE)

        async with trio.open_nursery() as nursery:
            # By alias twice at once, by a name that does not exist, by uid.
            nursery.start_soon(ask, "alias", "/10.0.0.7")
            nursery.start_soon(ask, "alias again", "/10.0.0.7")
            nursery.start_soon(ask, "nobody", "/10.9.9.9")
            nursery.start_soon(ask, "uid", "Kubernetes//Pod/shop/far")
        assert store.snapshot.workload("Kubernetes//Pod/shop/far") is not None
        with trio.fail_after(1):
            assert await client.ask("/10.0.0.7", 1)
    assert answers == {"alias": True, "alias again": True, "nobody": True, "uid": True}


@pytest.mark.trio
async def test_a_certificate_for_a_pod_of_this_node(server: Server, tmp_path: Path) -> None:
    ca = CaClient(connect(server, tmp_path), ttl=3600)
    wanted = SpiffeId("cluster.local", "shop", "web")
    svid = await ca.issue(wanted)
    assert svid.identity == wanted
    assert svid.not_after - datetime.now(UTC) <= timedelta(hours=1)
    assert b"PRIVATE KEY" in svid.key_pem
    assert b"BEGIN CERTIFICATE" in svid.roots_pem


@pytest.mark.trio
async def test_an_identity_of_another_node_is_refused_with_a_reason(server: Server, tmp_path: Path) -> None:
    ca = CaClient(connect(server, tmp_path), ttl=3600)
    with pytest.raises(CertificateRefused, match=r"permission_denied|unauthenticated"):
        await ca.issue(SpiffeId("cluster.local", "shop", "far"))


@pytest.mark.trio
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"token": "/nowhere/token"}, "cannot read the token /nowhere/token: .*AUTH_TOKEN"),
        ({"root_ca": "/nowhere/root.pem"}, "cannot read the roots /nowhere/root.pem: .*XDS_ROOT_CA"),
        ({"server_name": "evil.example"}, "unavailable"),
    ],
)
async def test_what_is_missing_is_named(
    server: Server, tmp_path: Path, changes: dict[str, str], text: str
) -> None:
    ca = CaClient(connect(server, tmp_path, **changes), ttl=3600)
    with pytest.raises(CertificateRefused, match=text):
        await ca.issue(SpiffeId("cluster.local", "shop", "web"))


@pytest.mark.trio
async def test_a_huge_push_is_taken_in_without_the_collector_which_works_again_afterwards(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ztunnel.xds.client._HUGE", 1)
    collecting: list[bool] = []
    async with xds(connect(server, tmp_path)) as (client, store):
        apply = store.apply

        async def watched(update: Any) -> None:
            collecting.append(gc.isenabled())
            await apply(update)

        monkeypatch.setattr(store, "apply", watched)
        await client.ready.wait()
        assert collecting
        assert not any(collecting)
        await until(gc.isenabled)
    gc.unfreeze()
