"""Status written to a real API server, with the rights of the role and no more."""

from __future__ import annotations

from typing import Any

import pytest

from tests.interop.kube.conftest import Cluster, KubeServing
from tests.interop.kube.test_cluster import NETWORKING, SECURITY, body
from tests.support.serving import wait_until

pytestmark = pytest.mark.kube


def told(cluster: Cluster, path: str) -> dict[str, str]:
    found: dict[str, Any] = cluster.get(path) or {}
    return {one["type"]: one["reason"] for one in found.get("status", {}).get("conditions", [])}


def test_conditions_and_addresses_are_in_the_objects(cluster: Cluster, serving: KubeServing) -> None:
    namespace = cluster.namespace()
    web = body("v1", "Service", namespace, "web", spec={"ports": [{"port": 80}]})
    web["metadata"]["labels"] = {"istio.io/use-waypoint": "missing"}
    cluster.put(web)
    cluster.put(
        body(SECURITY, "AuthorizationPolicy", namespace, "deny", spec={"action": "DENY", "rules": [{}]})
    )
    hosts: dict[str, Any] = {
        "hosts": ["a.example.com"],
        "resolution": "DNS",
        "ports": [{"number": 80, "name": "http"}],
    }
    cluster.put(body(NETWORKING, "ServiceEntry", namespace, "ext", spec=hosts))
    where = f"/api/v1/namespaces/{namespace}/services/web"
    wait_until(
        lambda: told(cluster, where) == {"istio.io/WaypointBound": "WaypointIsNotReady"}, lambda: serving.log
    )
    where = f"/apis/{SECURITY}/namespaces/{namespace}/authorizationpolicies/deny"
    wait_until(lambda: told(cluster, where) == {"ZtunnelAccepted": "Accepted"}, lambda: serving.log)
    where = f"/apis/{NETWORKING}/namespaces/{namespace}/serviceentries/ext"
    found = wait_until(lambda: cluster.get(where).get("status", {}).get("addresses"), lambda: serving.log)
    assert {one["host"] for one in found} == {"a.example.com"}
    assert "not written" not in serving.log
