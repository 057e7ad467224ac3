"""What a machine that registers itself becomes."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from istiodlite.api import discovery_pb2
from istiodlite.ca.caller import Caller
from istiodlite.machines import Machine, machine_of
from istiodlite.machines.machine import connected, entry_of, gone, is_checked, is_over, is_registered, refusal
from istiodlite.manifests.fields import Field
from istiodlite.manifests.kinds import KINDS, parse_object
from istiodlite.objects import Endpoint, Meta, ObjectKey, WorkloadEntry, WorkloadGroup
from tests.unit.istiodlite.mesh import Mesh, objects

CALLER = Caller("shop", "vm")
NOW = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
GROUP = """
kind: WorkloadGroup
metadata: {name: vms, namespace: shop, uid: u-1}
spec:
  metadata:
    labels: {app: group, tier: group}
    annotations: {ambient.istio.io/redirection: enabled}
  template:
    serviceAccount: vm
    labels: {app: template, tier: template, zone: template}
    ports: {http: 8080}
    network: n1
    locality: r1/z1
    weight: 4
"""


def group() -> WorkloadGroup:
    (found,) = objects(GROUP).values()
    assert isinstance(found, WorkloadGroup)
    return found


def node(kind: str = "ztunnel", **said: Any) -> discovery_pb2.Node:
    one = discovery_pb2.Node(id=f"{kind}~192.0.2.7~vm.shop~shop.svc.cluster.local")
    one.metadata.update(said)
    return one


def entry(body: dict[str, Any]) -> WorkloadEntry:
    """As the reader takes it."""
    found = parse_object(KINDS["networking.istio.io", "WorkloadEntry"], Field(body))
    assert isinstance(found, WorkloadEntry)
    return found


def registered(**said: Any) -> dict[str, Any]:
    machine = machine_of(node(AUTO_REGISTER_GROUP="vms", **said), CALLER)
    assert machine is not None
    return entry_of(machine, group(), "here", NOW.isoformat())


def test_a_node_that_asks_for_nothing_is_no_machine() -> None:
    assert machine_of(node(NETWORK="n"), CALLER) is None


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (Machine("shop", "192.0.2.7", "vms"), "vms-192.0.2.7"),
        (Machine("shop", "fd00::7", "vms"), "vms-fd00--7"),
        (Machine("shop", "192.0.2.7", "vms", network="n2"), "vms-192.0.2.7-n2"),
        (Machine("shop", "192.0.2.7", "g" * 300), "g" * 243 + "-192.0.2.7"),
        (Machine("shop", "192.0.2.7", entry="by-hand"), "by-hand"),
    ],
)
def test_the_name_of_its_entry(machine: Machine, name: str) -> None:
    assert machine.key == ObjectKey("WorkloadEntry", "shop", name)


def test_the_entry_inherits_from_its_group() -> None:
    body = registered()
    assert body["spec"] == {
        "address": "192.0.2.7",
        "ports": {"http": 8080},
        "labels": {"app": "group", "tier": "group", "zone": "template", "networking.istio.io/tunnel": "http"},
        "network": "n1",
        "locality": "r1/z1",
        "weight": 4,
        "serviceAccount": "vm",
    }
    assert body["metadata"]["labels"] == body["spec"]["labels"]
    assert body["metadata"]["annotations"] == {
        "istio.io/autoRegistrationGroup": "vms",
        "ambient.istio.io/redirection": "enabled",
        "istio.io/workloadController": "here",
        "istio.io/connectedAt": NOW.isoformat(),
    }
    (owner,) = body["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == (
        "WorkloadGroup",
        "vms",
        "u-1",
        True,
    )


def test_what_the_machine_says_counts_more_than_its_group() -> None:
    body = registered(
        NETWORK="n2",
        LABELS={"tier": "own", "istio-locality": "a/b", "networking.istio.io/tunnel": "none"},
        PROXY_CONFIG={"readinessProbe": {"tcpSocket": {"port": 1}}},
    )
    assert body["metadata"]["name"] == "vms-192.0.2.7-n2"
    assert body["spec"]["network"] == "n2"
    wanted = {"app": "group", "tier": "own", "zone": "template", "networking.istio.io/tunnel": "none"}
    assert body["spec"]["labels"] == wanted
    assert body["metadata"]["annotations"]["proxy.istio.io/health-checks-enabled"] == "true"


def test_only_those_that_speak_hbone_are_said_to() -> None:
    machine = machine_of(node("sidecar", AUTO_REGISTER_GROUP="vms"), CALLER)
    assert machine is not None
    assert not machine.speaks_hbone
    machine = machine_of(node("sidecar", AUTO_REGISTER_GROUP="vms", ENABLE_HBONE="true"), CALLER)
    assert machine is not None
    assert machine.speaks_hbone


def test_its_workload_has_the_groups_name_for_telemetry_and_speaks_hbone() -> None:
    body = registered()
    mesh = Mesh(GROUP)
    one = entry(body)
    mesh.registry.apply({ObjectKey("WorkloadEntry", "shop", one.meta.name): one})
    workload = mesh.workloads["Kubernetes/networking.istio.io/WorkloadEntry/shop/vms-192.0.2.7"]
    assert (workload.workload_name, workload.canonical_name, workload.service_account) == (
        "vms",
        "group",
        "vm",
    )
    assert (workload.native_tunnel, workload.tunnel_protocol, workload.network) == (True, 1, "n1")
    assert workload.capacity.value == 4


@pytest.mark.parametrize(
    ("account", "namespace", "said"),
    [
        ("vm", "shop", ""),
        ("", "shop", ""),
        ("other", "shop", "service account is other"),
        ("vm", "bank", "of namespace bank"),
    ],
)
def test_who_may_be_the_workload(account: str, namespace: str, said: str) -> None:
    why = refusal(Endpoint("", service_account=account), namespace, CALLER)
    assert said in why
    assert bool(why) == bool(said)


def marked(annotations: dict[str, str | None], **more: str) -> WorkloadEntry:
    kept = {name: value for name, value in {**annotations, **more}.items() if value is not None}
    return WorkloadEntry(Meta("x", "shop", annotations=kept), Endpoint("192.0.2.7"))


def test_an_entry_is_over_when_its_machine_was_away_for_the_grace_period() -> None:
    ago = lambda seconds: (NOW - datetime.timedelta(seconds=seconds)).isoformat()  # noqa: E731
    assert not is_over(marked(connected("here", ago(500))), NOW)
    assert not is_over(marked(gone(ago(9.9))), NOW)
    assert is_over(marked(gone(ago(10.1))), NOW)
    assert not is_over(marked({}), NOW), "written by hand"
    assert is_over(marked({"istio.io/disconnectedAt": "nonsense"}), NOW)


def test_only_what_was_made_for_a_machine_goes_with_it() -> None:
    group_name, health = (
        {"istio.io/autoRegistrationGroup": "vms"},
        {"proxy.istio.io/health-checks-enabled": "true"},
    )
    assert is_registered(marked(connected("here", NOW.isoformat()), **group_name))
    assert not is_registered(marked({}, **group_name)), "nobody's machine"
    assert is_checked(marked({}, **health))
    assert not is_checked(marked({}))
