"""State-of-the-world streams and refusals (NACK), with istiod and with istiodlite."""

from __future__ import annotations

import queue
import secrets
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from istiodlite.api import authorization_pb2, discovery_pb2, workload_pb2
from tests.interop.control.agent import ADDRESS, AUTHORIZATION, DEADLINE, Agent, Stream
from tests.interop.istiod.objects import Applied
from tests.interop.istiod.process import Istiod
from tests.interop.istiod.test_protocol import Plane
from tests.interop.istiod.test_protocol import agent as agent
from tests.interop.istiod.test_protocol import node as node
from tests.interop.istiod.test_protocol import plane as plane
from tests.interop.kube.conftest import Cluster

pytestmark = pytest.mark.istiod
SOTW = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"


class Whole:
    """One state-of-the-world stream."""

    def __init__(self, agent: Agent) -> None:
        self._agent, self._channel = agent, agent.channel()
        self._requests: queue.Queue[discovery_pb2.DiscoveryRequest | None] = queue.Queue()
        method = self._channel.stream_stream(
            SOTW,
            request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
        )
        feed = iter(self._requests.get, None)
        self._call = method(feed, metadata=agent.metadata(), timeout=DEADLINE)

    def ask(self, type_url: str, **fields: Any) -> None:
        request = discovery_pb2.DiscoveryRequest(type_url=type_url, **fields)
        request.node.CopyFrom(self._agent.node_message())
        self._requests.put(request)

    def take(self) -> discovery_pb2.DiscoveryResponse:
        """Not acknowledged."""
        found: discovery_pb2.DiscoveryResponse = next(self._call)
        return found

    def acknowledge(self, response: discovery_pb2.DiscoveryResponse) -> None:
        self.ask(response.type_url, version_info=response.version_info, response_nonce=response.nonce)

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()
        self._channel.close()


def names(response: discovery_pb2.DiscoveryResponse) -> set[str]:
    """As delta streams name them."""
    out = set()
    for one in response.resources:
        if response.type_url == AUTHORIZATION:
            policy = authorization_pb2.Authorization.FromString(one.value)
            out.add(f"{policy.namespace}/{policy.name}")
            continue
        address = workload_pb2.Address.FromString(one.value)
        service = address.service
        out.add(address.workload.uid or f"{service.namespace}/{service.hostname}")
    return out


@pytest.fixture
def whole(agent: Agent) -> Iterator[Whole]:
    one = Whole(agent)
    yield one
    one.close()


def naming(stream: Stream, name: str) -> discovery_pb2.DeltaDiscoveryResponse:
    """The next response with this resource, not acknowledged."""
    while True:
        response = stream.take()
        if name in {one.name for one in response.resources}:
            return response


def fresh() -> str:
    """What an earlier test removed may still be on its way."""
    return f"late-{secrets.token_hex(4)}"


def policy(gold: Applied, name: str, ports: list[str]) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": f"{gold.mark}-shop"},
        "spec": {"action": "DENY", "rules": [{"to": [{"operation": {"ports": ports}}]}]},
    }


@pytest.mark.parametrize("type_url", [ADDRESS, AUTHORIZATION])
def test_the_first_answer_is_the_same_as_on_a_delta_stream(
    plane: Plane, agent: Agent, whole: Whole, type_url: str, gold: Applied
) -> None:
    with agent.stream() as stream:
        stream.start()
        stream.until(lambda s: all(s.versions.values()))
        known = set(stream.versions[type_url])
    whole.ask(type_url)
    told = {name for name in names(whole.take()) if gold.mark in name}
    known = {name for name in known if gold.mark in name}
    if isinstance(plane, Istiod) and type_url == ADDRESS:
        # istiod takes a request without names for one on demand, and tells of the own node only.
        assert told < known
    else:
        assert told == known


def test_a_change_arrives_alone_from_istiod_and_among_all_from_istiodlite(
    plane: Plane, whole: Whole, cluster: Cluster, gold: Applied
) -> None:
    whole.ask(AUTHORIZATION)
    first = whole.take()
    whole.acknowledge(first)
    late = fresh()
    body = policy(gold, late, ["1"])
    cluster.put(body)
    try:
        name = f"{gold.mark}-shop/{late}"
        while name not in names(response := whole.take()):
            whole.acknowledge(response)
        # "State of the world" says that what is not there is gone: an agent that reads istiod's answer so would drop
        # every other policy.
        everything = f"{gold.mark}-shop/web" in names(response)
        assert everything == (not isinstance(plane, Istiod))
        assert response.nonce != first.nonce
    finally:
        cluster.delete(body)


def test_a_refusal_ends_nothing_and_the_next_change_arrives(
    agent: Agent, cluster: Cluster, gold: Applied
) -> None:
    late = fresh()
    name, bodies = f"{gold.mark}-shop/{late}", [policy(gold, late, [port]) for port in ("1", "2")]
    with agent.stream() as stream:
        stream.start()
        stream.until(lambda s: all(s.versions.values()))
        cluster.put(bodies[0])
        try:
            refused = naming(stream, name)
            stream.refuse(refused, f"{name}: not to my taste")
            cluster.put(bodies[1])
            again = naming(stream, name)
            (one,) = [one for one in again.resources if one.name == name]
            ports = (
                authorization_pb2.Authorization.FromString(one.resource.value).groups[0].rules[0].matches[0]
            )
            assert list(ports.destination_ports) == [2], "the refused one was not sent again"
        finally:
            cluster.delete(bodies[0])


def test_a_stream_without_a_node_is_ended(plane: Plane, agent: Agent) -> None:
    requests = iter([discovery_pb2.DiscoveryRequest(type_url=ADDRESS)])
    with agent.channel() as channel:
        method = channel.stream_stream(
            SOTW,
            request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
        )
        with pytest.raises(grpc.RpcError):
            next(method(requests, metadata=agent.metadata(), timeout=DEADLINE))
