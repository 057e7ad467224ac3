"""The delta discovery session."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from istiodlite.api import authorization_pb2, workload_pb2
from istiodlite.api.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource
from tests.unit.state.builders import authorization, match, wire_service, wire_workload
from ztunnel.state.policy import PolicyScope
from ztunnel.state.snapshot import Snapshot
from ztunnel.xds import delta
from ztunnel.xds.delta import (
    ADDRESS_TYPE,
    AUTHORIZATION_TYPE,
    DeltaSession,
    ProtocolError,
    Received,
    Rejected,
)

NODE = Node(id="ztunnel~10.0.0.1~ztunnel-a.istio-system~istio-system.svc.cluster.local")


def session(*, on_demand: bool = False) -> DeltaSession:
    return DeltaSession(NODE, on_demand=on_demand)


def address(
    message: workload_pb2.Workload | workload_pb2.Service,
    *,
    version: str = "v1",
    aliases: Iterable[str] = (),
    name: str | None = None,
) -> Resource:
    if isinstance(message, workload_pb2.Workload):
        wrapped, key = workload_pb2.Address(workload=message), message.uid
    else:
        wrapped, key = workload_pb2.Address(service=message), f"{message.namespace}/{message.hostname}"
    resource = Resource(name=key if name is None else name, version=version, aliases=aliases)
    resource.resource.type_url = ADDRESS_TYPE
    resource.resource.value = wrapped.SerializeToString()
    return resource


def policy(message: authorization_pb2.Authorization) -> Resource:
    resource = Resource(name=f"{message.namespace}/{message.name}")
    resource.resource.type_url = AUTHORIZATION_TYPE
    resource.resource.value = message.SerializeToString()
    return resource


def pod(name: str, **fields: object) -> workload_pb2.Workload:
    return wire_workload(uid=f"c//Pod/ns/{name}", name=name, **fields)


def bad_pod(name: str) -> workload_pb2.Workload:
    return pod(name, addresses=[b"abc"])


def bad_policy(name: str, scope: str = "NAMESPACE") -> authorization_pb2.Authorization:
    return authorization(name, [[[authorization_pb2.Match(destination_ports=[70000])]]], scope=scope)


def response(
    *resources: Resource,
    type_url: str = ADDRESS_TYPE,
    removed: Iterable[str] = (),
    nonce: str = "n1",
) -> DeltaDiscoveryResponse:
    return DeltaDiscoveryResponse(
        resources=resources, type_url=type_url, removed_resources=removed, nonce=nonce
    )


def policies(*messages: authorization_pb2.Authorization, **fields: object) -> DeltaDiscoveryResponse:
    return response(*map(policy, messages), type_url=AUTHORIZATION_TYPE, **fields)  # type: ignore[arg-type]


def of_type(requests: Iterable[DeltaDiscoveryRequest], type_url: str) -> DeltaDiscoveryRequest:
    return next(request for request in requests if request.type_url == type_url)


class TestStart:
    def test_subscribes_to_everything_of_both_types_and_names_the_node(self) -> None:
        requests = session().start()
        assert [request.type_url for request in requests] == [ADDRESS_TYPE, AUTHORIZATION_TYPE]
        for request in requests:
            assert request.node == NODE
            assert not request.resource_names_subscribe
            assert not request.resource_names_unsubscribe
            assert not request.initial_resource_versions
            assert not request.response_nonce

    def test_on_demand_asks_for_no_address_but_for_every_policy(self) -> None:
        requests = session(on_demand=True).start()
        addresses = of_type(requests, ADDRESS_TYPE)
        assert list(addresses.resource_names_subscribe) == ["*"]
        assert list(addresses.resource_names_unsubscribe) == ["*"]
        assert not of_type(requests, AUTHORIZATION_TYPE).resource_names_subscribe

    def test_a_new_stream_tells_what_is_held(self) -> None:
        s = session()
        s.start()
        s.on_response(response(address(pod("a"), version="v7"), address(wire_service(), version="v8")))
        s.on_response(policies(authorization("p")))
        requests = s.start()
        assert dict(of_type(requests, ADDRESS_TYPE).initial_resource_versions) == {
            "c//Pod/ns/a": "v7",
            "ns/s.ns.svc": "v8",
        }
        assert dict(of_type(requests, AUTHORIZATION_TYPE).initial_resource_versions) == {"ns/p": ""}

    def test_what_was_removed_is_no_longer_held(self) -> None:
        s = session()
        s.on_response(response(address(pod("a")), address(pod("b"))))
        s.on_response(response(removed=["c//Pod/ns/a"]))
        assert list(of_type(s.start(), ADDRESS_TYPE).initial_resource_versions) == ["c//Pod/ns/b"]


class TestResponse:
    def test_is_acknowledged_by_its_nonce_and_becomes_one_update(self) -> None:
        received = session().on_response(
            response(address(pod("a")), address(wire_service()), removed=["c//Pod/ns/x"], nonce="n9")
        )
        assert received.type_url == ADDRESS_TYPE
        assert [each.uid for each in received.update.workloads] == ["c//Pod/ns/a"]
        assert [each.key for each in received.update.services] == ["ns/s.ns.svc"]
        assert received.update.removed_addresses == ("c//Pod/ns/x",)
        assert received.request == DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, response_nonce="n9")
        assert received.rejected == ()

    def test_may_come_as_bytes(self) -> None:
        message = response(address(pod("a")))
        assert session().on_response(message.SerializeToString()) == session().on_response(message)

    def test_that_is_none_ends_the_stream(self) -> None:
        with pytest.raises(ProtocolError):
            session().on_response(b"\xff\xff\xff")

    def test_of_policies_becomes_an_update_of_policies(self) -> None:
        received = session().on_response(policies(authorization("p"), removed=["ns/q"]))
        assert [each.key for each in received.update.policies] == ["ns/p"]
        assert received.update.removed_policies == ("ns/q",)

    def test_of_an_unknown_type_is_acknowledged_and_ignored(self) -> None:
        received = session().on_response(response(address(pod("a")), type_url="x/y", nonce="n2"))
        assert received == Received(
            "x/y", received.update, DeltaDiscoveryRequest(type_url="x/y", response_nonce="n2")
        )
        assert not received.update


class TestRejection:
    def test_the_good_are_applied_and_the_bad_are_named(self) -> None:
        received = session().on_response(
            response(address(pod("a")), address(bad_pod("b")), address(bad_pod("c")), nonce="n3")
        )
        assert [each.uid for each in received.update.workloads] == ["c//Pod/ns/a"]
        assert received.request.response_nonce == "n3"
        assert received.request.error_detail.code == 0
        assert received.request.error_detail.message == (
            "c//Pod/ns/b: an address has 3 bytes instead of 4 or 16; "
            "c//Pod/ns/c: an address has 3 bytes instead of 4 or 16"
        )
        assert [each.name for each in received.rejected] == ["c//Pod/ns/b", "c//Pod/ns/c"]

    def test_the_last_good_one_stays_and_is_asked_for_again_on_reconnect(self) -> None:
        s = session()
        snapshot, _ = Snapshot.empty().apply(s.on_response(response(address(pod("a")))).update)
        snapshot, _ = snapshot.apply(s.on_response(response(address(bad_pod("a"), version="v2"))).update)
        assert snapshot.workload("c//Pod/ns/a") is not None
        assert dict(of_type(s.start(), ADDRESS_TYPE).initial_resource_versions) == {"c//Pod/ns/a": ""}

    def test_a_resource_of_another_type_or_under_another_name_is_rejected(self) -> None:
        odd = address(pod("a"))
        odd.resource.type_url = "x/y"
        received = session().on_response(response(odd, address(pod("b"), name="c//Pod/ns/z")))
        assert received.rejected == (
            Rejected("c//Pod/ns/a", "has the type 'x/y'"),
            Rejected("c//Pod/ns/z", "contains 'c//Pod/ns/b'"),
        )
        assert not received.update.workloads

    def test_a_push_in_which_everything_is_bad_is_not_echoed_whole(self) -> None:
        many = [address(bad_pod(f"p{i}")) for i in range(5000)]
        message = session().on_response(response(*many)).request.error_detail.message
        assert len(message) < 5000
        assert message.endswith("(5000 in all)")


class TestUnreadablePolicies:
    """A policy that cannot be read and has no predecessor must not leave the door open."""

    def test_become_policies_that_let_nothing_in(self) -> None:
        received = session().on_response(policies(bad_policy("p", "WORKLOAD_SELECTOR")))
        (stand_in,) = received.update.policies
        assert stand_in.key == "ns/p"
        assert stand_in.scope is PolicyScope.WORKLOAD_SELECTOR
        assert "70000" in stand_in.unusable
        assert received.request.error_detail.message.startswith("ns/p: ")

    def test_leave_a_good_predecessor_in_force(self) -> None:
        s = session()
        s.on_response(policies(authorization("p")))
        assert s.on_response(policies(bad_policy("p"))).update.policies == ()

    def test_are_replaced_by_a_good_successor_and_then_count_as_held(self) -> None:
        s = session()
        s.on_response(policies(bad_policy("p")))
        (good,) = s.on_response(policies(authorization("p"))).update.policies
        assert not good.unusable
        assert s.on_response(policies(bad_policy("p"))).update.policies == ()

    def test_stay_in_force_while_they_stay_bad(self) -> None:
        s = session()
        s.on_response(policies(bad_policy("p")))
        (again,) = s.on_response(policies(bad_policy("p"))).update.policies
        assert again.unusable

    def test_come_back_as_such_after_a_removal(self) -> None:
        s = session()
        s.on_response(policies(authorization("p")))
        received = s.on_response(policies(bad_policy("p"), removed=["ns/p"]))
        assert [bool(each.unusable) for each in received.update.policies] == [True]

    def test_are_told_on_reconnect_so_that_their_removal_is_heard_of(self) -> None:
        s = session()
        s.on_response(policies(bad_policy("p")))
        assert dict(of_type(s.start(), AUTHORIZATION_TYPE).initial_resource_versions) == {"ns/p": ""}
        s.on_response(policies(removed=["ns/p"]))
        assert not of_type(s.start(), AUTHORIZATION_TYPE).initial_resource_versions


class TestReadiness:
    def test_needs_a_first_response_of_each_type(self) -> None:
        s = session()
        s.start()
        assert not s.ready
        s.on_response(response())
        assert not s.ready
        s.on_response(policies())
        assert s.ready

    def test_needs_no_addresses_on_demand(self) -> None:
        s = session(on_demand=True)
        s.on_response(policies())
        assert s.ready

    def test_does_not_come_from_a_response_with_a_fault(self) -> None:
        s = session()
        s.on_response(policies())
        s.on_response(response(address(pod("a")), address(bad_pod("b"))))
        assert not s.ready
        s.on_response(response(address(pod("b"))))
        assert s.ready

    def test_stays_when_a_fault_or_a_new_stream_comes_later(self) -> None:
        s = session()
        s.on_response(response())
        s.on_response(policies())
        s.on_response(response(address(bad_pod("b"))))
        s.start()
        assert s.ready


class TestOnDemand:
    def started(self) -> DeltaSession:
        s = session(on_demand=True)
        s.start()
        return s

    def test_a_name_is_asked_for_once_however_many_wait_for_it(self) -> None:
        s = self.started()
        request = s.demand("/10.0.0.1")
        assert request == DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, resource_names_subscribe=["/10.0.0.1"])
        assert s.demand("/10.0.0.1") is None
        assert s.waiting == {"/10.0.0.1"}

    def test_an_answer_under_the_name_itself_wakes(self) -> None:
        s = self.started()
        s.demand("ns/s.ns.svc")
        assert s.on_response(response(address(wire_service()))).answered == {"ns/s.ns.svc"}
        assert s.waiting == frozenset()

    def test_an_answer_under_an_alias_wakes(self) -> None:
        s = self.started()
        s.demand("/10.0.0.1")
        received = s.on_response(response(address(pod("a"), aliases=["/10.0.0.1"])))
        assert received.answered == {"/10.0.0.1"}

    def test_an_answer_that_there_is_none_wakes(self) -> None:
        s = self.started()
        s.demand("/10.0.0.1")
        assert s.on_response(response(removed=["/10.0.0.1"])).answered == {"/10.0.0.1"}

    def test_other_answers_wake_nobody(self) -> None:
        s = self.started()
        s.demand("/10.0.0.1")
        assert s.on_response(response(address(pod("b"), aliases=["/10.0.0.2"]))).answered == frozenset()
        assert s.on_response(policies(authorization("p"))).answered == frozenset()
        assert s.waiting == {"/10.0.0.1"}

    def test_a_rejected_answer_wakes_too_since_no_better_one_comes(self) -> None:
        s = self.started()
        s.demand("c//Pod/ns/a")
        assert s.on_response(response(address(bad_pod("a")))).answered == {"c//Pod/ns/a"}

    def test_a_name_not_answered_is_asked_for_again_on_a_new_stream(self) -> None:
        s = self.started()
        s.demand("/10.0.0.2")
        s.demand("/10.0.0.1")
        s.demand("ns/s.ns.svc")
        s.on_response(response(address(wire_service())))
        first, _, again = s.start()
        assert list(first.resource_names_subscribe) == ["*"]
        assert dict(first.initial_resource_versions) == {"ns/s.ns.svc": "v1"}
        assert list(again.resource_names_subscribe) == ["/10.0.0.1", "/10.0.0.2"]

    def test_without_it_nothing_is_asked_for(self) -> None:
        assert session().demand("/10.0.0.1") is None


@st.composite
def _pushes(draw: st.DrawFn) -> list[DeltaDiscoveryResponse]:
    """What a control plane may send: pods and policies, good and bad, and removals, in any order."""
    names = st.sampled_from(["a", "b", "c"])
    messages = []
    for _ in range(draw(st.integers(0, 6))):
        bad = draw(st.booleans())
        if draw(st.booleans()):
            pods = draw(st.lists(names, max_size=3, unique=True))
            resources = [address(bad_pod(n) if bad else pod(n, node=draw(names))) for n in pods]
            removed = draw(st.lists(names, max_size=2, unique=True))
            messages.append(response(*resources, removed=[f"c//Pod/ns/{n}" for n in removed]))
        else:
            wire = [
                bad_policy(n) if bad else authorization(n, [[[match(namespaces=[draw(names)])]]])
                for n in draw(st.lists(names, max_size=3, unique=True))
            ]
            removed = draw(st.lists(names, max_size=2, unique=True))
            messages.append(policies(*wire, removed=[f"ns/{n}" for n in removed]))
    return messages


@settings(max_examples=200, deadline=None)
@given(_pushes())
def test_what_is_told_on_reconnect_is_what_the_snapshot_holds(pushes: list[DeltaDiscoveryResponse]) -> None:
    s = session()
    snapshot = Snapshot.empty()
    for push in pushes:
        received = s.on_response(push)
        snapshot, _ = snapshot.apply(received.update)
        assert bool(received.rejected) is bool(received.request.error_detail.message)
    requests = s.start()
    told = set(of_type(requests, AUTHORIZATION_TYPE).initial_resource_versions)
    assert told == {each.key for each in snapshot.policies()}
    versions = dict(of_type(requests, ADDRESS_TYPE).initial_resource_versions)
    held = {each.uid for each in snapshot.workloads()}
    assert held <= set(versions)
    assert {name for name, version in versions.items() if version} <= held


@given(
    st.lists(st.integers(0, 3000), min_size=1, max_size=40),
    st.lists(st.text(max_size=20), max_size=5),
    st.integers(1, 4000),
)
@settings(deadline=None, max_examples=100)
def test_a_large_response_read_in_pieces_is_the_same(
    sizes: list[int], removed: list[str], piece: int
) -> None:
    whole = DeltaDiscoveryResponse(type_url=ADDRESS_TYPE, nonce="n", removed_resources=removed)
    for number, size in enumerate(sizes):
        whole.resources.add(name=str(number)).resource.value = b"x" * size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "PIECE", piece)
        read = delta._parsed(whole.SerializeToString())
    assert (read.type_url, read.nonce) == (whole.type_url, whole.nonce)
    assert list(read.resources) == list(whole.resources)
    assert list(read.removed_resources) == list(whole.removed_resources)


@given(st.binary(max_size=400))
@settings(deadline=None, max_examples=300)
def test_garbage_read_in_pieces_is_a_protocol_error_or_a_message(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "PIECE", 16)
        try:
            delta._parsed(data)
        except ProtocolError:
            return
    DeltaDiscoveryResponse.FromString(data)
