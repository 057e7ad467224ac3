"""The root gets into every namespace, and stays there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from istiodlite.ca.distribution import LEFT_OUT, NAME, RootDistribution, map_body, wants_root
from istiodlite.kube import KubeClient
from istiodlite.objects import Meta, Namespace, ObjectKey
from tests.unit.istiodlite.kube.apiserver import PATHS, ApiServer, Fault, status, until

ROOT = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ApiServer]:
    api = ApiServer(tmp_path)
    async with api.serve():
        yield api


async def soon(_: float) -> None:
    """In place of the waits between tries."""
    await trio.sleep(0.01)


@asynccontextmanager
async def distributing(server: ApiServer) -> AsyncIterator[RootDistribution]:
    async with KubeClient(server.access) as client, trio.open_nursery() as nursery:
        distribution = RootDistribution(client, ROOT.encode, sleep=soon)
        nursery.start_soon(distribution.run)
        yield distribution
        nursery.cancel_scope.cancel()


def told(distribution: RootDistribution, *names: str, deleting: bool = False) -> None:
    distribution.note(
        {ObjectKey("Namespace", "", one): Namespace(Meta(one, deleting=deleting)) for one in names}
    )


def maps(server: ApiServer) -> dict[str, Any]:
    return {namespace: body for (namespace, _), body in server.objects[PATHS["ConfigMap"]].items()}


def right(body: dict[str, Any]) -> bool:
    labelled = body["metadata"].get("labels", {}).get("istio.io/config") == "true"
    return bool(labelled and body["data"]["root-cert.pem"] == ROOT)


def config_map(namespace: str, data: dict[str, str], name: str = NAME, **labels: str) -> dict[str, Any]:
    meta = {"name": name, "namespace": namespace, "labels": labels}
    return {"kind": "ConfigMap", "metadata": meta, "data": data}


@pytest.mark.trio
async def test_every_namespace_gets_the_root_but_those_where_nothing_runs(server: ApiServer) -> None:
    async with distributing(server) as distribution:
        told(distribution, "default", "kube-system", "shop", *LEFT_OUT)
        await until(lambda: set(maps(server)) == {"default", "kube-system", "shop"})
        assert all(right(body) for body in maps(server).values())
        told(distribution, "late")
        await until(lambda: "late" in maps(server))
        assert not LEFT_OUT & set(maps(server))


@pytest.mark.trio
async def test_a_map_that_is_deleted_or_changed_is_put_right_and_others_entries_stay(
    server: ApiServer,
) -> None:
    async with distributing(server) as distribution:
        told(distribution, "a", "b")
        await until(lambda: len(maps(server)) == 2)
        server.delete("ConfigMap", "a", NAME)
        server.put(config_map("b", {"root-cert.pem": "other", "extra": "kept"}, team="x"))
        await until(lambda: "a" in maps(server) and right(maps(server)["b"]))
        assert maps(server)["b"]["data"]["extra"] == "kept"
        assert maps(server)["b"]["metadata"]["labels"]["team"] == "x"


@pytest.mark.trio
async def test_maps_that_are_right_already_are_not_written(server: ApiServer) -> None:
    server.put(config_map("a", {"root-cert.pem": ROOT}, **{"istio.io/config": "true"}))
    server.put(config_map("a", {"x": "y"}, name="other"))
    async with distributing(server) as distribution:
        told(distribution, "a", "b")
        await until(lambda: "b" in maps(server))
        assert [one.path for one in server.requests if one.method in ("POST", "PUT")] == [
            "/api/v1/namespaces/b/configmaps"
        ]


@pytest.mark.trio
async def test_only_maps_of_that_name_are_asked_for(server: ApiServer) -> None:
    async with distributing(server):
        await until(lambda: server.watched("ConfigMap"))
    asked = [one.query.get("fieldSelector") for one in server.requests]
    assert set(asked) == {f"metadata.name={NAME}"}


@pytest.mark.trio
async def test_a_refused_write_is_tried_again(server: ApiServer) -> None:
    server.faults.append(Fault("post", answer=status(500, "InternalError", "no"), times=3))
    async with distributing(server) as distribution:
        told(distribution, "a")
        await until(lambda: "a" in maps(server))
        assert right(maps(server)["a"])
        await until(lambda: distribution.describe() == {"namespaces": 1, "written": 1, "notYetRight": []})


@pytest.mark.trio
async def test_someone_who_keeps_changing_the_map_is_reported(
    server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with distributing(server) as distribution:
        told(distribution, "a")
        for _ in range(8):
            await until(lambda: "a" in maps(server) and right(maps(server)["a"]))
            server.put(config_map("a", {"root-cert.pem": "another istiod's"}))
        await until(lambda: right(maps(server)["a"]))
    lines = [one.message for one in caplog.records if "does not stay" in one.message]
    assert len(lines) == 1


def test_a_namespace_that_is_being_deleted_gets_none() -> None:
    assert wants_root(Namespace(Meta("shop")))
    assert not wants_root(Namespace(Meta("shop", deleting=True)))
    assert not wants_root(Namespace(Meta("kube-public")))


def test_a_new_map_has_name_key_and_label() -> None:
    assert map_body("shop", ROOT, None) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": "shop", "labels": {"istio.io/config": "true"}},
        "data": {"root-cert.pem": ROOT},
    }
