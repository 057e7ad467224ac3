"""A machine registers with istiod and with istiodlite: the WorkloadEntries have to be alike, and so have refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import pytest
import yaml

from tests.interop.control.agent import Agent
from tests.interop.istiod.process import Istiod
from tests.interop.kube.conftest import Cluster, KubeServing
from tests.interop.kube.test_cluster import NETWORKING, body
from tests.interop.kube.test_machines import rights as rights
from tests.support.serving import wait_until

pytestmark = pytest.mark.istiod
Plane = Istiod | KubeServing
GROUP = """
metadata:
  labels: {app: group, tier: group}
  annotations: {example.com/team: a}
template:
  serviceAccount: vm
  labels: {app: template, tier: template, zone: template}
  ports: {http: 8080}
  network: n1
  locality: r1/z1
  weight: 4
probe: {tcpSocket: {port: 80}}
"""
CASES: list[tuple[str, dict[str, Any]]] = [
    ("192.0.2.80", {}),
    ("fd00:192::80", {}),
    ("192.0.2.81", {"NETWORK": "n2", "LABELS": {"tier": "own", "istio-locality": "a.b"}}),
    ("192.0.2.82", {"PROXY_CONFIG": {"readinessProbe": {"tcpSocket": {"port": 80}}}}),
    ("192.0.2.83", {"LABELS": {"networking.istio.io/tunnel": "none"}}),
]


@pytest.fixture(scope="module")
def namespaces(cluster: Cluster) -> Iterator[dict[str, str]]:
    """One for each control plane, as an entry has one name."""
    made = {}
    for plane in ("istiod", "istiodlite"):
        made[plane] = cluster.namespace()
        cluster.put(body("v1", "ServiceAccount", made[plane], "vm"))
        cluster.put(body("v1", "ServiceAccount", made[plane], "other"))
        cluster.put(body(NETWORKING, "WorkloadGroup", made[plane], "vms", spec=yaml.safe_load(GROUP)))
    return made


def machine(
    cluster: Cluster, plane: Plane, namespace: str, ip: str, account: str = "vm", **said: Any
) -> Agent:
    token = cluster.token(namespace, account, "istio-ca")
    asked = {"AUTO_REGISTER_GROUP": "vms", **said}
    return plane.agent(token, namespace=namespace, pod="vm", node="", ip=ip, said=asked)


def entry(cluster: Cluster, namespace: str, ip: str) -> dict[str, Any] | None:
    """The one of that address, without what must differ."""
    listed = cluster.get(f"/apis/{NETWORKING}/namespaces/{namespace}/workloadentries")["items"]
    found = [one for one in listed if one["spec"]["address"] == ip]
    if not found:
        return None
    one = copy.deepcopy(found[0])
    meta = one["metadata"]
    for annotation in ("istio.io/workloadController", "istio.io/connectedAt"):
        assert meta["annotations"].pop(annotation)
    for owner in meta["ownerReferences"]:
        assert owner.pop("uid")
    kept = {name: meta[name] for name in ("name", "labels", "annotations", "ownerReferences")}
    return {"metadata": kept, "spec": one["spec"]}


@pytest.mark.parametrize(("ip", "said"), CASES)
def test_both_enter_the_same_machine_alike(
    cluster: Cluster,
    istiod: Istiod,
    istiodlite: KubeServing,
    namespaces: dict[str, str],
    rights: None,
    ip: str,
    said: dict[str, Any],
) -> None:
    made = []
    for name, plane in (("istiod", istiod), ("istiodlite", istiodlite)):
        agent = machine(cluster, plane, namespaces[name], ip, **said)
        look = partial(entry, cluster, namespaces[name], ip)
        made.append(wait_until(partial(entered, agent, look), f"{name} enters it"))
    assert made[0] == made[1]


def entered(agent: Agent, look: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """The entry while a stream is open; None where it is ended: the group was not seen yet, or istiod, which writes
    the end of an earlier stream by itself, was in its own way."""
    with agent.stream() as stream:
        stream.start()
        try:
            stream.take()
        except grpc.RpcError:
            return None
        found: dict[str, Any] = wait_until(look, "the entry")
        return found


def answered(agent: Agent) -> bool:
    return entered(agent, lambda: {"any": True}) is not None


def test_neither_enters_whose_account_is_another(
    cluster: Cluster, istiod: Istiod, istiodlite: KubeServing, namespaces: dict[str, str], rights: None
) -> None:
    for name, plane in (("istiod", istiod), ("istiodlite", istiodlite)):
        wait_until(
            lambda name=name, plane=plane: answered(machine(cluster, plane, namespaces[name], "192.0.2.90")),
            f"{name} knows the group",
        )
        assert not answered(machine(cluster, plane, namespaces[name], "192.0.2.91", "other"))
        assert entry(cluster, namespaces[name], "192.0.2.91") is None
