"""Agents and a control plane that is broken, confused or restless (61, 62, 65)."""

from __future__ import annotations

import time

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from istiodlite.api import authorization_pb2, discovery_pb2, workload_pb2
from istiodlite.registry import MeshConfig, Registry
from istiodlite.xds.session import DeltaSession as ServerSession
from istiodlite.xds.session import Response as Said
from istiodlite.xds.store import Store as ServerStore
from tests.adversarial.control.server import Response, Scripted, serving
from tests.unit.istiodlite.histories import STATES, at
from ztunnel.state.snapshot import Snapshot
from ztunnel.store import Store
from ztunnel.xds.client import XdsClient
from ztunnel.xds.delta import ADDRESS_TYPE, AUTHORIZATION_TYPE, DeltaSession

PATIENCE = 10.0


def node() -> discovery_pb2.Node:
    made = discovery_pb2.Node(id="ztunnel~1.1.1.1~z.istio-system~istio-system.svc.cluster.local")
    made.metadata.update({"NODE_NAME": "n1"})
    return made


def workload(name: str, address: bytes = b"\x0a\x00\x00\x01", uid: str = "") -> discovery_pb2.Resource:
    message = workload_pb2.Workload(
        uid=uid or name, name=name, namespace="shop", addresses=[address], node="n1"
    )
    return resource(name, workload_pb2.Address(workload=message).SerializeToString())


def service(name: str, vip: bytes) -> discovery_pb2.Resource:
    message = workload_pb2.Service(
        name=name, namespace="shop", hostname=name, addresses=[workload_pb2.NetworkAddress(address=vip)]
    )
    return resource(f"shop/{name}", workload_pb2.Address(service=message).SerializeToString())


def resource(
    name: str, body: bytes, type_url: str = ADDRESS_TYPE, version: str = "1"
) -> discovery_pb2.Resource:
    made = discovery_pb2.Resource(name=name, version=version)
    made.resource.type_url = type_url
    made.resource.value = body
    return made


def response(nonce: str, *resources: discovery_pb2.Resource, removed: tuple[str, ...] = ()) -> Response:
    return Response(type_url=ADDRESS_TYPE, nonce=nonce, resources=resources, removed_resources=removed)


def policies(nonce: str, *resources: discovery_pb2.Resource) -> Response:
    return Response(type_url=AUTHORIZATION_TYPE, nonce=nonce, resources=resources)


@pytest.mark.trio
async def test_xds_one_bad_resource() -> None:
    """The refusal names every bad one; the others apply; the last good state stays; a new stream asks for the
    bad ones again."""
    good = [workload("a"), workload("kept", b"\x0a\x00\x00\x02")]
    bad = [
        resource("garbage", b"\xff\xff\xff"),
        resource("policy", workload("policy").resource.value, AUTHORIZATION_TYPE),
        workload("kept", b"\x0a\x00\x00"),
        workload("stranger", uid="another"),
    ]
    twins = [service("one", b"\x0a\x60\x00\x01"), service("two", b"\x0a\x60\x00\x01")]
    with serving(Scripted(say=lambda _: [response("1", *good), policies("p")])) as server:
        store = Store("n1")
        client = XdsClient(server.plane(), DeltaSession(node()), store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            assert await store.wait_until(lambda s: s.workload("kept") is not None, PATIENCE)
            server.push(response("2", *bad, workload("new", b"\x0a\x00\x00\x03"), *twins))
            answer = await trio.to_thread.run_sync(server.answer_to, "2")
            said = answer.error_detail.message
            assert all(each.name in said for each in bad)
            assert "new" not in said
            snapshot = store.snapshot
            assert snapshot.workload("new") is not None
            assert {each.key for each in snapshot.services()} == {"shop/one", "shop/two"}, (
                "both claim one address"
            )
            kept = snapshot.workload("kept")
            assert kept is not None
            assert str(kept.addresses[0]) == "10.0.0.2"
            assert client.rejected[ADDRESS_TYPE] == 4
            server.push(None)
            with trio.fail_after(PATIENCE):
                while server.streams < 2:
                    await trio.sleep(0.01)
            opening = await trio.to_thread.run_sync(_opening, server)
            assert opening["kept"] == ""
            assert opening["new"] == "1"
            nursery.cancel_scope.cancel()


def _opening(server: Scripted) -> dict[str, str]:
    """The versions that the next stream opens with."""
    while True:
        request = server.requests.get(timeout=PATIENCE)
        if request.node.id and request.type_url == ADDRESS_TYPE:
            return dict(request.initial_resource_versions)


steps = st.lists(
    st.tuples(
        st.integers(0, len(STATES) - 1),
        st.integers(0, 3),
        st.sampled_from(["", "poll", "late", "stale", "reconnect"]),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=100)
@given(steps)
def test_xds_stale_nonce_and_reorder(history: list[tuple[int, int, str]]) -> None:
    """Acknowledgements that come late, twice or of another stream, objects in any order: the agent ends with what
    an agent has that comes last."""
    registry, store = Registry(MeshConfig()), ServerStore()
    agent, snapshot = DeltaSession(node()), Snapshot.empty("n1")
    server = ServerSession(store)
    owed: list[discovery_pb2.DeltaDiscoveryRequest] = []
    stale = [discovery_pb2.DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, response_nonce="0.0")]

    def hear(responses: list[Said], *, late: bool = False) -> None:
        nonlocal snapshot
        for one in responses:
            received = agent.on_response(one.serialize())
            assert not received.rejected
            snapshot = snapshot.apply(received.update)[0]
            (owed if late else stale).append(received.request)
            if not late:
                hear(server.on_request(received.request))

    for request in agent.start():
        hear(server.on_request(request))
    for place, which, then in history:
        key, obj = at(place, which)
        store.apply(registry.apply({key: obj}))
        if then in ("poll", "late"):
            hear(server.poll(), late=then == "late")
        elif then == "stale":
            hear(server.on_request(stale[(place + which) % len(stale)]))
        elif then == "reconnect":
            server = ServerSession(store)
            owed.clear()
            for request in agent.start():
                hear(server.on_request(request))
    for request in owed:
        hear(server.on_request(request))
    hear(server.poll())
    fresh, final, first = DeltaSession(node()), Snapshot.empty("n1"), ServerSession(store)
    for request in fresh.start():
        for one in first.on_request(request):
            final = final.apply(fresh.on_response(one.serialize()).update)[0]
    assert snapshot == final
    assert not server.nacks


@pytest.mark.trio
async def test_xds_reconnect_storm() -> None:
    """A server that takes every stream and ends it at once is not dialled without end, and nothing is forgotten."""
    with serving(Scripted(say=lambda _: [response("1", workload("a")), policies("p")])) as server:
        store = Store("n1")
        client = XdsClient(server.plane(), DeltaSession(node()), store, draw=lambda: 0.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            assert await store.wait_until(lambda s: s.workload("a") is not None, PATIENCE)
            version, server.drop = store.snapshot.version, True
            server.push(None)
            begin, cpu = server.streams, time.process_time()
            await trio.sleep(2.5)
            # 10 ms, doubled each time: eight in two and a half seconds, then ever fewer.
            assert 3 <= server.streams - begin <= 9
            assert time.process_time() - cpu < 0.5
            assert store.snapshot.version == version
            assert store.snapshot.workload("a") is not None
            server.drop = False
            server.push(response("9", workload("b", b"\x0a\x00\x00\x09")))
            assert await store.wait_until(lambda s: s.workload("b") is not None, PATIENCE)
            nursery.cancel_scope.cancel()


def test_a_policy_before_its_workload_and_a_removal_before_its_object_are_no_trouble() -> None:
    agent, snapshot = DeltaSession(node()), Snapshot.empty("n1")
    policy = authorization_pb2.Authorization(
        name="p", namespace="shop", scope=authorization_pb2.WORKLOAD_SELECTOR
    )
    for message in (
        response("1", removed=("never-seen",)),
        policies("2", resource("shop/p", policy.SerializeToString(), AUTHORIZATION_TYPE)),
        response("3", workload("a")),
    ):
        received = agent.on_response(message.SerializeToString())
        assert not received.rejected
        snapshot = snapshot.apply(received.update)[0]
    assert snapshot.workload("a") is not None
    assert snapshot.policy("shop/p") is not None
