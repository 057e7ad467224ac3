"""What a ztunnel says and hears, with istiod and with istiodlite: the answers have to be alike."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from cryptography import x509

from hbone.spiffe import SpiffeId
from hbone.svid import make_csr
from tests.interop.control.agent import ADDRESS, AUTHORIZATION, Agent
from tests.interop.istiod.objects import Applied
from tests.interop.istiod.process import Istiod
from tests.interop.kube.conftest import Cluster, KubeServing
from tests.support.serving import wait_until

pytestmark = pytest.mark.istiod
Plane = Istiod | KubeServing


@dataclass(frozen=True)
class Node:
    """A node of the gold objects, with the ztunnel's pod and token there."""

    name: str
    pod: str
    token: str


@pytest.fixture(scope="module")
def node(cluster: Cluster, gold: Applied) -> Iterator[Node]:
    name = f"{gold.mark}-n1"
    body: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"ztunnel-{name}", "namespace": "istio-system"},
        "spec": {
            "nodeName": name,
            "serviceAccountName": "ztunnel",
            "containers": [{"name": "c", "image": "none"}],
        },
        "status": {"phase": "Running", "podIP": "192.0.2.200", "podIPs": [{"ip": "192.0.2.200"}]},
    }
    made = cluster.put(body)
    token = cluster.token("istio-system", "ztunnel", "istio-ca", made)
    yield Node(name, body["metadata"]["name"], token)
    cluster.delete(body)


@pytest.fixture(params=["istiod", "istiodlite"])
def plane(request: pytest.FixtureRequest) -> Plane:
    found: Plane = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def agent(plane: Plane, node: Node, gold: Applied) -> Agent:
    """A ztunnel's client; the control plane has seen the gold objects."""
    one = plane.agent(node.token, node=node.name, pod=node.pod)
    uid = f"Kubernetes//Pod/{gold.mark}-strict/open-but"

    def known() -> bool:
        with one.stream() as stream:
            stream.start()
            stream.until(lambda s: all(s.versions.values()))
            return uid in stream.workloads

    wait_until(known, "the last pod is served")
    return one


def test_both_types_come_unasked_and_are_acknowledged(agent: Agent, gold: Applied) -> None:
    with agent.stream() as stream:
        stream.start()
        stream.until(lambda s: all(s.versions.values()))
        assert f"{gold.mark}-shop/web.{gold.mark}-shop.svc.cluster.local" in stream.services
        assert f"{gold.mark}-shop/web" in stream.policies
        assert all(stream.versions[ADDRESS].values()), "every resource has a version"


def test_a_reconnect_with_what_is_known_brings_nothing_twice(agent: Agent) -> None:
    with agent.stream() as stream:
        stream.start()
        stream.until(lambda s: all(s.versions.values()))
        versions = stream.versions
    with agent.stream() as stream:
        stream.start(versions)
        answered = {stream.take().type_url for _ in (ADDRESS, AUTHORIZATION)}
        assert answered == {ADDRESS, AUTHORIZATION}
    with agent.stream() as stream:
        stream.start({**versions, ADDRESS: {**versions[ADDRESS], "Kubernetes//Pod/never/was": "1"}})
        responses = [stream.take(), stream.take()]
        removed = [name for one in responses for name in one.removed_resources]
        assert removed == ["Kubernetes//Pod/never/was"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("/10.244.1.5", "Kubernetes//Pod/{0}-shop/web-7d9c5b7f6-abcde"),
        ("/fd00:244::15", "Kubernetes//Pod/{0}-shop/web-7d9c5b7f6-abcde"),
        ("Kubernetes//Pod/{0}-shop/native", "Kubernetes//Pod/{0}-shop/native"),
        ("/10.111.77.10", "{0}-shop/web.{0}-shop.svc.cluster.local"),
        ("{0}-shop/web.{0}-shop.svc.cluster.local", "{0}-shop/web.{0}-shop.svc.cluster.local"),
    ],
)
def test_what_is_asked_for_by_any_of_its_names_comes(
    agent: Agent, gold: Applied, name: str, found: str
) -> None:
    with agent.stream() as stream:
        stream.subscribe(ADDRESS, resource_names_subscribe=["*"], resource_names_unsubscribe=["*"])
        stream.subscribe(ADDRESS, resource_names_subscribe=[name.format(gold.mark)])
        stream.until(lambda s: found.format(gold.mark) in s.versions[ADDRESS])


def test_a_service_brings_its_workloads(agent: Agent, gold: Applied) -> None:
    with agent.stream() as stream:
        stream.subscribe(ADDRESS, resource_names_subscribe=["*"], resource_names_unsubscribe=["*"])
        stream.subscribe(ADDRESS, resource_names_subscribe=["/10.111.77.10"])
        wanted = {
            f"Kubernetes//Pod/{gold.mark}-shop/{name}" for name in ("web-7d9c5b7f6-abcde", "slow", "leaving")
        }
        stream.until(lambda s: wanted <= s.workloads.keys())


@pytest.mark.parametrize("name", ["/203.0.113.250", "Kubernetes//Pod/no/such", "no/such.example.com"])
def test_what_does_not_exist_is_answered_as_removed(agent: Agent, name: str) -> None:
    with agent.stream() as stream:
        stream.subscribe(ADDRESS, resource_names_subscribe=["*"], resource_names_unsubscribe=["*"])
        stream.subscribe(ADDRESS, resource_names_subscribe=[name])
        # What runs on the agent's own node comes unasked, from either.
        while name not in stream.receive().removed_resources:
            assert name not in stream.versions[ADDRESS]


def csr_for(identity: SpiffeId) -> str:
    made, _ = make_csr(identity)
    return made.decode() if isinstance(made, bytes) else made


def test_a_certificate_for_a_pod_of_the_node(plane: Plane, agent: Agent, gold: Applied) -> None:
    identity = SpiffeId("cluster.local", f"{gold.mark}-shop", "web")
    answer = agent.create_certificate(csr_for(identity), str(identity), seconds=3600)
    assert len(answer.cert_chain) == 2
    assert answer.cert_chain[-1].encode().strip() == plane.root().strip()
    leaf = x509.load_pem_x509_certificate(answer.cert_chain[0].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [str(identity)]
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == datetime.timedelta(seconds=3600 + 120)


@pytest.mark.parametrize("account", ["nobody", "default-of-nowhere"])
def test_no_certificate_for_an_account_that_runs_nowhere_here(
    agent: Agent, gold: Applied, account: str
) -> None:
    identity = SpiffeId("cluster.local", f"{gold.mark}-shop", account)
    with pytest.raises(grpc.RpcError) as caught:
        agent.create_certificate(csr_for(identity), str(identity))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_no_certificate_without_a_token(agent: Agent, gold: Applied) -> None:
    identity = SpiffeId("cluster.local", f"{gold.mark}-shop", "web")
    agent.token = ""
    with pytest.raises(grpc.RpcError) as caught:
        agent.create_certificate(csr_for(identity), str(identity))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_both_sign_with_the_root_of_one_secret(
    istiod: Istiod, istiodlite: KubeServing, node: Node, gold: Applied
) -> None:
    identity = SpiffeId("cluster.local", f"{gold.mark}-shop", "web")
    chains = [
        one.agent(node.token).create_certificate(csr_for(identity), str(identity)).cert_chain
        for one in (istiod, istiodlite)
    ]
    assert chains[0][-1].strip() == chains[1][-1].strip()
