"""Conditions and allocated addresses get into the objects' own status, and stay right there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from istiodlite.kube import KubeClient
from istiodlite.objects import ObjectKey
from istiodlite.registry import Condition, MeshConfig, Registry
from istiodlite.sources.folder import Batch
from istiodlite.sources.kube import KubeSource
from istiodlite.status import Present, StatusWriter, Wanted, merged
from istiodlite.status.writer import removed
from tests.unit.istiodlite.kube.apiserver import PATHS, ApiServer, Fault, status, until
from tests.unit.istiodlite.kube.objects import namespace, policy

KEY = ObjectKey("Service", "shop", "web")
BOUND = Condition(KEY, "istio.io/WaypointBound", True, "WaypointAccepted", "attached")
UNBOUND = Condition(KEY, "istio.io/WaypointBound", False, "WaypointIsNotReady", "no waypoint")
OTHERS = {
    "type": "LoadBalancerReady",
    "status": "True",
    "reason": "x",
    "message": "",
    "lastTransitionTime": "t0",
}


def present(*conditions: dict[str, Any], generation: int = 0) -> Present:
    return Present("7", generation, "api/v1", conditions)


def after(now: Present, wanted: Wanted, at: str = "t1") -> list[dict[str, Any]]:
    patch = merged(now, wanted, at)
    assert patch is not None
    assert patch["metadata"] == {"resourceVersion": "7"}
    found: list[dict[str, Any]] = patch["status"]["conditions"]
    return found


def test_a_condition_is_added_behind_those_of_others() -> None:
    first, second = after(present(OTHERS), Wanted((BOUND,)))
    assert first == OTHERS
    assert second == {
        "type": "istio.io/WaypointBound", "status": "True", "reason": "WaypointAccepted", "message": "attached",
        "lastTransitionTime": "t1",
    }  # fmt: skip


def test_a_condition_as_it_should_be_is_not_written_again() -> None:
    (written,) = after(present(generation=3), Wanted((BOUND,)))
    assert written["observedGeneration"] == 3
    assert merged(present(written, generation=3), Wanted((BOUND,)), "t2") is None


def test_the_time_changes_only_with_the_status() -> None:
    (written,) = after(present(), Wanted((BOUND,)), "t1")
    other = Condition(KEY, BOUND.type, True, "WaypointAccepted", "attached to another")
    assert after(present(written), Wanted((other,)), "t2")[0]["lastTransitionTime"] == "t1"
    (flipped,) = after(present(written), Wanted((UNBOUND,)), "t2")
    assert (flipped["status"], flipped["lastTransitionTime"]) == ("False", "t2")


def test_a_condition_that_no_longer_holds_is_taken_away_and_others_stay() -> None:
    (written,) = after(present(), Wanted((BOUND,)))
    assert after(present(OTHERS, written), Wanted()) == [OTHERS]
    assert merged(present(OTHERS), Wanted(), "t2") is None


def test_addresses_are_written_where_they_differ() -> None:
    wanted = Wanted((), (("240.240.0.1", "a.com"), ("2001:2::1", "a.com")))
    patch = merged(Present("7", 1, "x"), wanted, "t1")
    assert patch is not None
    assert patch["status"] == {
        "addresses": [{"value": "240.240.0.1", "host": "a.com"}, {"value": "2001:2::1", "host": "a.com"}]
    }
    # In another order they are the same.
    assert (
        merged(
            Present("7", 1, "x", addresses=wanted.addresses[::-1] if wanted.addresses else ()), wanted, "t"
        )
        is None
    )


def service(name: str, **labels: str) -> dict[str, Any]:
    meta = {"name": name, "namespace": "shop", "labels": labels}
    spec = {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def entry(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": "shop", "generation": 2},
        "spec": {
            "hosts": [f"{name}.example.com"],
            "resolution": "STATIC",
            "ports": [{"number": 80, "name": "http"}],
        },
    }


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ApiServer]:
    api = ApiServer(tmp_path)
    async with api.serve():
        api.put(namespace("shop"))
        yield api


async def soon(_: float) -> None:
    await trio.sleep(0.01)


@asynccontextmanager
async def writing(server: ApiServer) -> AsyncIterator[StatusWriter]:
    """Source, registry and writer, joined as in the server."""
    registry = Registry(MeshConfig())
    async with KubeClient(server.access) as client, trio.open_nursery() as nursery:
        writer = StatusWriter(client, sleep=soon)

        def deliver(batch: Batch) -> None:
            writer.gone(removed(batch.changes))
            registry.apply(batch.changes)
            writer.pushed(registry, registry.rebuilt)

        nursery.start_soon(KubeSource(client, saw=writer.saw).run, deliver)
        nursery.start_soon(writer.run)
        yield writer
        nursery.cancel_scope.cancel()


def told(server: ApiServer, kind: str, name: str) -> dict[str, tuple[str, str]]:
    """type -> (status, reason)"""
    found = server.objects[PATHS[kind]][("shop", name)].get("status", {}).get("conditions", [])
    return {one["type"]: (one["status"], one["reason"]) for one in found}


@pytest.mark.trio
async def test_conditions_and_addresses_get_to_their_objects(server: ApiServer) -> None:
    server.put(service("plain"))
    server.put(service("web", **{"istio.io/use-waypoint": "missing"}))
    server.put(policy("deny"))
    server.put(entry("ext"))
    async with writing(server) as writer:
        await until(lambda: told(server, "Service", "web"))
        assert told(server, "Service", "web") == {"istio.io/WaypointBound": ("False", "WaypointIsNotReady")}
        await until(lambda: told(server, "AuthorizationPolicy", "deny"))
        assert told(server, "AuthorizationPolicy", "deny") == {"ZtunnelAccepted": ("True", "Accepted")}
        await until(lambda: "status" in server.objects[PATHS["ServiceEntry"]][("shop", "ext")])
        addresses = server.objects[PATHS["ServiceEntry"]][("shop", "ext")]["status"]["addresses"]
        assert {one["host"] for one in addresses} == {"ext.example.com"}
        assert addresses[0]["value"].startswith("240.240.")
        assert told(server, "Service", "plain") == {}
        # The label goes: so does what was said of it.
        server.put(
            {**server.objects[PATHS["Service"]][("shop", "web")], "metadata": service("web")["metadata"]}
        )
        await until(lambda: told(server, "Service", "web") == {})
        await until(lambda: writer.describe()["due"] == 0)


@pytest.mark.trio
async def test_what_was_left_by_an_earlier_run_is_put_right_at_the_start(server: ApiServer) -> None:
    stale = {
        "type": "istio.io/WaypointBound",
        "status": "True",
        "reason": "WaypointAccepted",
        "message": "old",
    }
    server.put({**service("web"), "status": {"conditions": [stale, OTHERS]}})
    async with writing(server):
        await until(lambda: told(server, "Service", "web") == {"LoadBalancerReady": ("True", "x")})


@pytest.mark.trio
async def test_somebody_faster_and_a_server_in_trouble_are_survived(server: ApiServer) -> None:
    server.faults.append(Fault("patch", times=1, answer=status(409, "Conflict", "modified")))
    server.faults.append(Fault("patch", times=2, answer=status(503, "", "busy")))
    async with writing(server) as writer:
        server.put(policy("deny"))
        await until(lambda: any(one.verb == "patch" for one in server.requests))
        # Nothing is tried again on a conflict until the watch shows what the other one wrote.
        server.put({**server.objects[PATHS["AuthorizationPolicy"]][("shop", "deny")]})
        await until(lambda: told(server, "AuthorizationPolicy", "deny"))
        assert writer.failed == 2


@pytest.mark.trio
async def test_a_missing_permission_is_said_once_with_what_to_grant(
    server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults.append(Fault("patch", times=5, answer=status(403, "Forbidden", "no")))
    server.put(policy("one"))
    server.put(policy("two"))
    async with writing(server) as writer:
        await until(lambda: writer.failed == 2)
    assert [one.message.partition("; ")[2] for one in caplog.records if one.name == "istiodlite.status"] == [
        "grant patch on authorizationpolicies/status"
    ]
