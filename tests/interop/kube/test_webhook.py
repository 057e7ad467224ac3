"""A real API server asks the webhook before it stores an object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from istiodlite.webhook.registration import NAME, PATH
from tests.interop.kube.conftest import Cluster, KubeServing, manifests
from tests.interop.kube.test_cluster import SECURITY, body
from tests.support.ports import free_port
from tests.support.serving import wait_until

pytestmark = pytest.mark.kube


@pytest.fixture
def validated(cluster: Cluster, tmp_path: Path) -> Iterator[KubeServing]:
    """With the manifest's webhook, asked at this machine: no Service leads here."""
    (manifest,) = [one for one in manifests("base") if one["metadata"]["name"] == NAME]
    port = free_port()
    hook = {**manifest["webhooks"][0], "clientConfig": {"url": f"https://127.0.0.1:{port}/validate"}}
    cluster.http.delete(PATH)
    cluster.put({**manifest, "webhooks": [hook]})
    one = KubeServing(cluster, tmp_path, "--webhook-port", str(port)).start()
    yield one
    cluster.http.delete(PATH)
    assert one.stop() == 0, one.log
    assert "Traceback" not in one.log, one.log


def test_objects_are_refused_and_warned_of_when_they_are_applied(
    cluster: Cluster, validated: KubeServing
) -> None:
    def failure_policy() -> Any:
        return cluster.get(PATH)["webhooks"][0]["failurePolicy"]

    wait_until(lambda: failure_policy() == "Fail", lambda: validated.log)
    namespace = cluster.namespace()
    rule = {"from": [{"source": {"ipBlocks": ["10.0.0.0/99"]}}]}
    bad = body(SECURITY, "AuthorizationPolicy", namespace, "bad", spec={"rules": [rule]})

    def refused() -> Any:
        # The API server takes a moment to see the new configuration.
        answer = cluster.apply(bad)
        return answer if "istiodlite" in answer.text else None

    answer = wait_until(refused, lambda: validated.log)
    assert not answer.is_success
    assert "spec.rules[0].from[0].source.ipBlocks[0]" in json.loads(answer.text)["message"]

    rule = {"to": [{"operation": {"methods": ["DELETE"]}}]}
    answer = cluster.apply(
        body(SECURITY, "AuthorizationPolicy", namespace, "warned", spec={"action": "DENY", "rules": [rule]})
    )
    assert answer.is_success, answer.text
    assert "deny-only-http" in answer.headers["warning"]
