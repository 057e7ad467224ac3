"""Machines register with a real API server, with the rights of the roles and no more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import yaml

from istiodlite.machines import HEALTH_TYPE
from tests.interop.control.agent import Agent
from tests.interop.kube.conftest import MANIFESTS, Cluster, KubeServing
from tests.interop.kube.test_cluster import NETWORKING, body
from tests.support.serving import wait_until

pytestmark = pytest.mark.kube
ADDRESS = "192.0.2.70"
NAME = f"vms-{ADDRESS}"


@pytest.fixture
def rights(cluster: Cluster) -> Iterator[None]:
    """base/machines.yaml is applied."""
    made = list(yaml.safe_load_all((MANIFESTS / "base" / "machines.yaml").read_text()))
    for one in made:
        cluster.put(one)
    wait_until(
        lambda: cluster.may("istiodlite", "create", "networking.istio.io", "workloadentries"), "the right"
    )
    yield
    for one in made:
        cluster.delete(one)


@pytest.fixture
def place(cluster: Cluster, serving: KubeServing) -> str:
    """A namespace with a group and its account; the control plane has seen the group."""
    namespace = cluster.namespace()
    for account in ("vm", "other"):
        cluster.put(body("v1", "ServiceAccount", namespace, account))
    spec = {
        "metadata": {"labels": {"app": "vm"}},
        "template": {"serviceAccount": "vm", "ports": {"http": 8080}},
    }
    cluster.put(body(NETWORKING, "WorkloadGroup", namespace, "vms", spec=spec))
    return namespace


def machine(
    cluster: Cluster, serving: KubeServing, namespace: str, account: str = "vm", **said: Any
) -> Agent:
    token = cluster.token(namespace, account, "istio-ca")
    asked = said or {
        "AUTO_REGISTER_GROUP": "vms",
        "PROXY_CONFIG": {"readinessProbe": {"tcpSocket": {"port": 1}}},
    }
    return serving.agent(token, namespace=namespace, pod="vm", node="", ip=ADDRESS, said=asked)


def entry(cluster: Cluster, namespace: str, name: str = NAME) -> Any:
    return cluster.get(f"/apis/{NETWORKING}/namespaces/{namespace}/workloadentries/{name}")


def admitted(agent: Agent) -> bool:
    """Whether a stream is answered; groups that were made a moment ago may not have been seen."""
    with agent.stream() as stream:
        stream.start()
        try:
            return bool(stream.take())
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            return False


def refusal(agent: Agent) -> str:
    with agent.stream() as stream:
        stream.start()
        with pytest.raises(grpc.RpcError) as caught:
            stream.take()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        return str(caught.value.details())


def healthy(cluster: Cluster, namespace: str) -> tuple[str, str] | None:
    for one in (entry(cluster, namespace) or {}).get("status", {}).get("conditions", []):
        if one["type"] == "Healthy":
            return one["status"], one["message"]
    return None


def test_a_machine_is_entered_reports_its_health_and_goes(
    cluster: Cluster, serving: KubeServing, place: str, rights: None
) -> None:
    agent = machine(cluster, serving, place)
    uid = f"Kubernetes/networking.istio.io/WorkloadEntry/{place}/{NAME}"
    wait_until(lambda: admitted(agent), lambda: serving.log)
    with agent.stream() as stream:
        stream.start()
        stream.until(lambda s: uid in s.workloads)
        assert stream.workloads[uid].workload_name == "vms"
        assert stream.workloads[uid].status == 1, "its check has not succeeded yet"
        made = entry(cluster, place)
        assert made["spec"]["serviceAccount"] == "vm"
        assert made["metadata"]["ownerReferences"][0]["name"] == "vms"
        assert "istio.io/connectedAt" in made["metadata"]["annotations"]
        stream.subscribe(HEALTH_TYPE)
        wait_until(lambda: healthy(cluster, place) == ("True", ""), lambda: serving.log)
        stream.until(lambda s: s.workloads[uid].status == 0)
        ill: dict[str, Any] = {"error_detail": {"message": "no answer"}}
        stream.subscribe(HEALTH_TYPE, **ill)
        wait_until(lambda: healthy(cluster, place) == ("False", "no answer"), lambda: serving.log)
        stream.until(lambda s: s.workloads[uid].status == 1)
    wait_until(
        lambda: "istio.io/disconnectedAt" in entry(cluster, place)["metadata"]["annotations"],
        lambda: serving.log,
    )
    wait_until(lambda: entry(cluster, place) is None, lambda: serving.log)


def test_a_machine_that_comes_back_in_time_keeps_its_entry(
    cluster: Cluster, serving: KubeServing, place: str, rights: None
) -> None:
    agent = machine(cluster, serving, place)
    wait_until(lambda: admitted(agent), lambda: serving.log)
    first = wait_until(lambda: entry(cluster, place), "the entry")["metadata"]["uid"]
    wait_until(
        lambda: "istio.io/disconnectedAt" in entry(cluster, place)["metadata"]["annotations"],
        lambda: serving.log,
    )
    with agent.stream() as stream:
        stream.start()
        stream.take()
        found = entry(cluster, place)["metadata"]
        assert found["uid"] == first
        assert "istio.io/disconnectedAt" not in found["annotations"]


def test_whose_account_is_another_is_refused(
    cluster: Cluster, serving: KubeServing, place: str, rights: None
) -> None:
    wait_until(lambda: admitted(machine(cluster, serving, place)), lambda: serving.log)
    text = refusal(machine(cluster, serving, place, "other"))
    assert "service account is vm, the token's other" in text
    text = refusal(machine(cluster, serving, place, AUTO_REGISTER_GROUP="none"))
    assert f"there is no WorkloadGroup {place}/none" in text
    text = refusal(machine(cluster, serving, place, WORKLOAD_ENTRY="none"))
    assert f"there is no WorkloadEntry {place}/none" in text


def test_health_of_an_entry_written_by_hand(
    cluster: Cluster, serving: KubeServing, place: str, rights: None
) -> None:
    made = body(NETWORKING, "WorkloadEntry", place, NAME, spec={"address": ADDRESS, "serviceAccount": "vm"})
    made["metadata"]["annotations"] = {"proxy.istio.io/health-checks-enabled": "true"}
    cluster.put(made)
    agent = machine(cluster, serving, place, WORKLOAD_ENTRY=NAME)
    wait_until(lambda: admitted(agent), lambda: serving.log)
    with agent.stream() as stream:
        stream.start()
        stream.take()
        stream.subscribe(HEALTH_TYPE)
        wait_until(lambda: healthy(cluster, place) == ("True", ""), lambda: serving.log)
    # Nobody says anything of it any more; the entry itself stays.
    wait_until(lambda: healthy(cluster, place) is None, lambda: serving.log)
    assert entry(cluster, place)["metadata"]["name"] == NAME


def test_without_the_right_the_machine_is_told_what_to_apply(
    cluster: Cluster, serving: KubeServing, place: str
) -> None:
    def said() -> str:
        text = refusal(machine(cluster, serving, place))
        return text if "machines.yaml" in text else ""

    assert "cannot be written" in wait_until(said, lambda: serving.log)
