"""Control plane and node agent, both without I/O: whatever happens to objects and streams, the agent ends
with the snapshot that a fresh agent gets, and refuses nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hbone.connect import SocketAddress
from hbone.reasons import Reason
from istiodlite.api import discovery_pb2
from istiodlite.objects import KubeObject, ObjectKey
from istiodlite.registry import ADDRESS_TYPE, MeshConfig, Registry
from istiodlite.xds.session import DeltaSession, Response
from istiodlite.xds.store import Store
from tests.unit.istiodlite.histories import STATES, at
from tests.unit.istiodlite.mesh import WEB_POD, objects
from ztunnel.decide.model import OutboundConnection, Refuse
from ztunnel.decide.outbound import decide_outbound
from ztunnel.state.snapshot import Snapshot
from ztunnel.xds.delta import DeltaSession as AgentSession


class Pair:
    """One registry and one agent, joined by a stream that can be cut."""

    def __init__(self, *, on_demand: bool = False) -> None:
        self.registry = Registry(MeshConfig())
        self.store = Store()
        node = discovery_pb2.Node(id="ztunnel~1.1.1.1~z.istio-system~istio-system.svc.cluster.local")
        node.metadata.update({"NODE_NAME": "n1"})
        self.agent = AgentSession(node, on_demand=on_demand)
        self.snapshot = Snapshot.empty("n1")
        self.server = DeltaSession(self.store)
        self.refused: list[object] = []

    def connect(self) -> None:
        self.server = DeltaSession(self.store)
        for request in self.agent.start():
            self.ask(request)

    def ask(self, request: discovery_pb2.DeltaDiscoveryRequest) -> None:
        self.hear(self.server.on_request(request))

    def hear(self, responses: list[Response]) -> None:
        for response in responses:
            received = self.agent.on_response(response.serialize())
            self.snapshot = self.snapshot.apply(received.update)[0]
            self.refused.extend(received.rejected)
            self.ask(received.request)

    def change(self, key: ObjectKey, obj: KubeObject | None) -> None:
        self.store.apply(self.registry.apply({key: obj}))

    def poll(self) -> None:
        self.hear(self.server.poll())


steps = st.lists(
    st.tuples(st.integers(0, len(STATES) - 1), st.integers(0, 3), st.sampled_from(["", "poll", "reconnect"])),
    max_size=30,
)


@settings(deadline=None, max_examples=150)
@given(steps)
def test_an_agent_ends_with_what_a_fresh_agent_gets(history: list[tuple[int, int, str]]) -> None:
    pair = Pair()
    pair.connect()
    for place, which, then in history:
        pair.change(*at(place, which))
        if then == "poll":
            pair.poll()
        elif then == "reconnect":
            pair.connect()
    pair.poll()
    fresh = Pair()
    fresh.store = pair.store
    fresh.connect()
    assert pair.refused == []
    assert pair.agent.ready
    assert pair.snapshot == fresh.snapshot


@settings(deadline=None, max_examples=150)
@given(steps)
def test_an_agent_on_demand_ends_with_its_node_and_what_it_asked_for(
    history: list[tuple[int, int, str]],
) -> None:
    pair = Pair(on_demand=True)
    pair.connect()
    for name in ("shop/web.shop.svc.cluster.local", "/10.1.0.6"):
        asked = pair.agent.demand(name)
        assert asked is not None
        pair.ask(asked)
        pair.agent.demand(name)
    for place, which, then in history:
        pair.change(*at(place, which))
        if then:
            pair.poll()
    pair.poll()
    assert pair.refused == []
    for resource in pair.store.all(ADDRESS_TYPE):
        wanted = (
            resource.node == "n1"
            or resource.name == "shop/web.shop.svc.cluster.local"
            or "/10.1.0.6" in resource.aliases
            or "shop/web.shop.svc.cluster.local" in resource.services
        )
        known = {**pair.snapshot.by_uid, **pair.snapshot.by_key}
        if wanted:
            assert resource.name in known
    for name in {*pair.snapshot.by_uid, *pair.snapshot.by_key}:
        assert pair.store.get(ADDRESS_TYPE, name) is not None, "what is gone was removed"


FAR = """
kind: Gateway
metadata: {name: east, namespace: shop, labels: {topology.istio.io/network: east}}
spec: {gatewayClassName: istio-remote, listeners: [{name: cross, port: 15008, protocol: HBONE}]}
status: {addresses: [{value: 192.0.2.3}]}
---
kind: ServiceEntry
metadata: {name: far, namespace: shop}
spec:
  hosts: [far.example.com]
  addresses: [192.0.2.9]
  resolution: STATIC
  ports: [{number: 80, name: http}]
  endpoints: [{address: 10.5.5.5, network: east}]
"""


def test_who_is_only_on_another_network_is_refused_and_not_dialled() -> None:
    pair = Pair()
    pair.connect()
    for key, obj in objects(WEB_POD, FAR).items():
        pair.change(key, obj)
    pair.poll()
    (source,) = [one for uid, one in pair.snapshot.by_uid.items() if "//Pod/" in uid]
    (far,) = [one for one in pair.snapshot.by_uid.values() if one.network == "east" and one.services]
    assert far.network_gateway is not None
    client, destination = SocketAddress.of("10.1.0.5", 41200), SocketAddress.of("192.0.2.9", 80)
    verdict = decide_outbound(OutboundConnection(source, "", client, destination), pair.snapshot, 0.5)
    assert isinstance(verdict.action, Refuse)
    assert verdict.reason is Reason.NETWORK_UNREACHABLE
