"""Delta sessions: what a stream is told, when, and what it is not told."""

from __future__ import annotations

import pytest
from google.protobuf import struct_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from istiodlite.api import discovery_pb2
from istiodlite.registry import ADDRESS_TYPE, AUTHORIZATION_TYPE, Changes, Resource
from istiodlite.xds.session import MAX_UNACKNOWLEDGED, DeltaSession, Response
from istiodlite.xds.store import Store

Message = discovery_pb2.DeltaDiscoveryResponse


def message(response: Response) -> Message:
    """As a client reads it."""
    return Message.FromString(response.serialize())


def workload(
    name: str, version: str = "1", *, ip: str = "", node: str = "n1", services: tuple[str, ...] = ()
) -> Resource:
    return Resource(ADDRESS_TYPE, name, version, b"", (f"/{ip}",) if ip else (), node, frozenset(services))


def service(name: str, version: str = "1", *, vip: str = "") -> Resource:
    return Resource(ADDRESS_TYPE, name, version, b"", (f"/{vip}",) if vip else ())


def request(
    type_url: str = ADDRESS_TYPE,
    *,
    node: str = "",
    subscribe: tuple[str, ...] = (),
    unsubscribe: tuple[str, ...] = (),
    known: dict[str, str] | None = None,
    nonce: str = "",
    error: str = "",
) -> discovery_pb2.DeltaDiscoveryRequest:
    out = discovery_pb2.DeltaDiscoveryRequest(
        type_url=type_url,
        resource_names_subscribe=subscribe,
        resource_names_unsubscribe=unsubscribe,
        initial_resource_versions=known or {},
        response_nonce=nonce,
    )
    if node:
        metadata = struct_pb2.Struct()
        metadata.update({"NODE_NAME": node})
        out.node.CopyFrom(discovery_pb2.Node(id="ztunnel~1.1.1.1~z.i~i.svc", metadata=metadata))
    if error:
        out.error_detail.message = error
    return out


def names(response: Message) -> set[str]:
    return {one.name for one in response.resources} | {f"-{name}" for name in response.removed_resources}


class Conversation:
    """A session over a store with some resources."""

    def __init__(self, *resources: Resource) -> None:
        self.store = Store()
        self.change(*resources)
        self.session = DeltaSession(self.store)

    def change(self, *resources: Resource, remove: tuple[str, ...] = ()) -> None:
        self.store.apply(Changes(resources, tuple((ADDRESS_TYPE, name) for name in remove)))

    def ask(self, **fields: object) -> Message:
        (response,) = self.session.on_request(request(**fields))  # type: ignore[arg-type]
        return message(response)

    def polled(self) -> list[set[str]]:
        return [names(response) for response in self.poll()]

    def poll(self) -> list[Message]:
        return [message(response) for response in self.session.poll()]

    def wildcard(self) -> Message:
        response = self.ask(node="n1")
        self.acknowledge(response)
        return response

    def acknowledge(self, response: Message | Response) -> None:
        assert self.session.on_request(request(response.type_url, nonce=response.nonce)) == []


def test_an_empty_first_subscription_is_everything() -> None:
    talk = Conversation(workload("a"), service("s"))
    assert names(talk.ask()) == {"a", "s"}


def test_a_star_is_everything_too() -> None:
    assert names(Conversation(workload("a")).ask(subscribe=("*",))) == {"a"}


def test_the_first_answer_comes_even_if_there_is_nothing() -> None:
    response = Conversation().ask(type_url=AUTHORIZATION_TYPE)
    assert names(response) == set()
    assert response.type_url == AUTHORIZATION_TYPE
    assert response.nonce


def test_an_unknown_type_is_answered_with_nothing() -> None:
    assert names(Conversation(workload("a")).ask(type_url="type.googleapis.com/x")) == set()


def test_types_do_not_mix() -> None:
    talk = Conversation(workload("a"), Resource(AUTHORIZATION_TYPE, "n/p", "1", b""))
    assert names(talk.ask(type_url=AUTHORIZATION_TYPE)) == {"n/p"}
    assert names(talk.ask()) == {"a"}


def test_known_versions_are_skipped_and_what_is_gone_is_removed() -> None:
    talk = Conversation(workload("same"), workload("newer", "2"), workload("new"))
    known = {"same": "1", "newer": "1", "gone": "1"}
    assert names(talk.ask(known=known)) == {"newer", "new", "-gone"}


def test_an_acknowledgement_is_not_answered_and_is_recorded() -> None:
    talk = Conversation(workload("a"))
    talk.wildcard()
    subscription = talk.session.subscriptions[ADDRESS_TYPE]
    assert (subscription.acks, subscription.acknowledged) == (1, 1)
    assert not subscription.unacknowledged


def test_a_refusal_is_recorded_and_the_same_is_not_sent_again() -> None:
    talk = Conversation(workload("a"))
    response = talk.ask()
    assert talk.session.on_request(request(nonce=response.nonce, error="a: bad")) == []
    (nack,) = talk.session.nacks
    assert (nack.type_url, nack.nonce, nack.message, nack.names) == (
        ADDRESS_TYPE,
        response.nonce,
        "a: bad",
        ("a",),
    )
    assert talk.polled() == []
    talk.change(workload("a", "2"))
    assert talk.polled() == [{"a"}]


def test_a_stale_nonce_says_nothing() -> None:
    talk = Conversation(workload("a"))
    talk.wildcard()
    assert talk.session.on_request(request(nonce="0.99", error="what?")) == []
    assert talk.session.nacks == []


def test_a_subscription_beside_a_stale_nonce_still_counts() -> None:
    talk = Conversation(workload("a", ip="10.0.0.1"))
    talk.ask(subscribe=("*",), unsubscribe=("*",))
    assert names(talk.ask(nonce="0.99", subscribe=("/10.0.0.1",))) == {"a"}


def test_changes_and_removals_are_pushed_once() -> None:
    talk = Conversation(workload("a"), workload("b"))
    talk.wildcard()
    talk.change(workload("a", "2"), workload("c"), remove=("b",))
    assert talk.polled() == [{"a", "c", "-b"}]
    assert talk.polled() == []


def test_a_policy_comes_before_the_workloads_that_list_it_and_goes_after_them() -> None:
    store = Store()
    session = DeltaSession(store)
    for type_url in (ADDRESS_TYPE, AUTHORIZATION_TYPE):
        session.on_request(request(type_url))
    policy = Resource(AUTHORIZATION_TYPE, "ns/deny", "1", b"")
    store.apply(Changes((workload("w1"), policy)))
    assert [one.type_url for one in session.poll()] == [AUTHORIZATION_TYPE, ADDRESS_TYPE]
    store.apply(Changes((workload("w1", "2"),), ((AUTHORIZATION_TYPE, "ns/deny"),)))
    assert [one.type_url for one in session.poll()] == [ADDRESS_TYPE, AUTHORIZATION_TYPE]


def test_many_changes_between_polls_are_one_response_with_the_latest_state() -> None:
    talk = Conversation(workload("a"))
    talk.wildcard()
    for version in range(2, 50):
        talk.change(workload("a", str(version)))
    talk.change(workload("b"))
    talk.change(remove=("b",))
    (response,) = talk.poll()
    assert [(one.name, one.version) for one in response.resources] == [("a", "49")]


def test_pushes_wait_while_too_much_is_unacknowledged_and_then_coalesce() -> None:
    talk = Conversation(workload("a"))
    held = [talk.ask()]
    for version in range(2, 20):
        talk.change(workload("a", str(version)))
        held += talk.poll()
    assert len(held) == MAX_UNACKNOWLEDGED
    talk.acknowledge(held[0])
    (late,) = talk.poll()
    assert late.resources[0].version == "19"


def test_the_age_of_the_oldest_unacknowledged_response() -> None:
    talk = Conversation(workload("a"))
    assert talk.session.oldest_unacknowledged() is None
    (response,) = talk.session.on_request(request(), 5.0)
    talk.change(workload("a", "2"))
    talk.session.poll(9.0)
    assert talk.session.oldest_unacknowledged() == 5.0
    talk.session.on_request(request(nonce=response.nonce))
    assert talk.session.oldest_unacknowledged() == 9.0


WEB = "shop/web"


def on_demand(*resources: Resource, node: str = "n9", known: dict[str, str] | None = None) -> Conversation:
    talk = Conversation(*resources)
    talk.first = talk.ask(node=node, subscribe=("*",), unsubscribe=("*",), known=known)  # type: ignore[attr-defined]
    return talk


def test_on_demand_starts_with_nothing_but_the_own_nodes_workloads() -> None:
    talk = Conversation(workload("mine", node="n1"), workload("other", node="n2"), service(WEB))
    assert names(talk.ask(node="n1", subscribe=("*",), unsubscribe=("*",))) == {"mine"}


def test_on_demand_pushes_the_own_nodes_workloads_and_no_others() -> None:
    talk = on_demand(node="n1")
    talk.change(workload("mine", node="n1"), workload("other", node="n2"))
    assert talk.polled() == [{"mine"}]
    talk.change(workload("mine", "2", node="n1"))
    assert talk.polled() == [{"mine"}]
    talk.change(remove=("mine", "other"))
    assert talk.polled() == [{"-mine"}]


@pytest.mark.parametrize("asked", ["uid", "/10.0.0.1"])
def test_a_workload_is_found_by_uid_and_by_address(asked: str) -> None:
    talk = on_demand(workload("uid", ip="10.0.0.1"), workload("other", ip="10.0.0.2"))
    response = talk.ask(subscribe=(asked,))
    assert names(response) == {"uid"}
    assert list(response.resources[0].aliases) == ["/10.0.0.1"]


@pytest.mark.parametrize("asked", [WEB, "/10.96.0.1"])
def test_a_service_is_found_by_name_and_by_address_and_brings_its_workloads(asked: str) -> None:
    talk = on_demand(service(WEB, vip="10.96.0.1"), workload("a", services=(WEB,)), workload("b"))
    assert names(talk.ask(subscribe=(asked,))) == {WEB, "a"}


def test_an_address_of_a_workload_and_a_service_is_the_workload() -> None:
    talk = on_demand(service(WEB, vip="10.0.0.1"), workload("a", ip="10.0.0.1"))
    assert names(talk.ask(subscribe=("/10.0.0.1",))) == {"a"}


def test_an_unknown_name_is_removed_and_pushed_when_it_comes_to_be() -> None:
    talk = on_demand()
    assert names(talk.ask(subscribe=("/10.0.0.7",))) == {"-/10.0.0.7"}
    talk.change(workload("late", ip="10.0.0.7"))
    assert talk.polled() == [{"late"}]


def test_a_service_that_comes_to_be_brings_workloads_that_were_there() -> None:
    talk = on_demand(workload("a", services=(WEB,)))
    talk.ask(subscribe=("/10.96.0.1",))
    talk.change(service(WEB, vip="10.96.0.1"))
    assert talk.polled() == [{WEB, "a"}]


def test_new_workloads_of_a_subscribed_service_are_pushed() -> None:
    talk = on_demand(service(WEB, vip="10.96.0.1"))
    talk.ask(subscribe=("/10.96.0.1",))
    talk.change(workload("a", services=(WEB,)), workload("b", services=("shop/db",)))
    assert talk.polled() == [{"a"}]


def test_asking_again_is_answered_again() -> None:
    talk = on_demand(workload("a"))
    assert names(talk.ask(subscribe=("a",))) == {"a"}
    assert names(talk.ask(subscribe=("a",))) == {"a"}


def test_a_name_that_is_no_longer_wanted_is_not_pushed() -> None:
    talk = on_demand(workload("a"))
    talk.ask(subscribe=("a",))
    assert talk.session.on_request(request(unsubscribe=("a",))) == []
    talk.change(workload("a", "2"))
    assert talk.polled() == []


def test_reconnect_on_demand_asks_again_for_what_was_kept() -> None:
    talk = Conversation(workload("same"), workload("newer", "2"), workload("late", ip="10.0.0.7"))
    response = talk.ask(
        subscribe=("*",),
        unsubscribe=("*",),
        known={"same": "1", "newer": "1", "gone": "1", "/10.0.0.7": ""},
    )
    assert names(response) == {"newer", "late", "-gone"}
    talk.change(workload("same", "2"))
    assert talk.polled() == [{"same"}]


def test_what_was_kept_over_a_reconnect_is_removed_when_it_goes() -> None:
    talk = on_demand(workload("a"), known={"a": "1"})
    talk.change(remove=("a",))
    assert talk.polled() == [{"-a"}]


def test_resources_are_encoded_once_for_all_streams() -> None:
    store = Store()
    one = workload("a")
    store.apply(Changes((one,)))
    assert store.wire(one) is store.wire(one)


NAMES = ["a", "b", "c"]
moves = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(NAMES), st.integers(1, 9)),
        st.tuples(st.just("drop"), st.sampled_from(NAMES), st.just(0)),
        st.tuples(st.just("poll"), st.just(""), st.just(0)),
        st.tuples(st.just("reconnect"), st.just(""), st.just(0)),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=300)
@given(moves, st.booleans())
def test_a_client_always_ends_with_what_the_store_has(
    moves: list[tuple[str, str, int]], demand: bool
) -> None:
    talk = Conversation()
    known: dict[str, str] = {}

    def hear(responses: list[Response]) -> None:
        for response in map(message, responses):
            for name in response.removed_resources:
                known.pop(name, None)
            known.update((one.name, one.version) for one in response.resources)
            talk.acknowledge(response)

    def connect() -> None:
        talk.session = DeltaSession(talk.store)
        if demand:
            opening = request(subscribe=("*", "a", "b"), unsubscribe=("*",), known=dict(known))
            hear(talk.session.on_request(opening))
        else:
            hear(talk.session.on_request(request(known=dict(known))))

    connect()
    for what, name, number in [*moves, ("poll", "", 0)]:
        if what == "put":
            talk.change(workload(name, str(number)))
        elif what == "drop":
            talk.change(remove=(name,))
        elif what == "poll":
            hear(talk.session.poll())
        else:
            connect()
    wanted = {"a", "b"} if demand else set(NAMES)
    assert known == {one.name: one.version for one in talk.store.all(ADDRESS_TYPE) if one.name in wanted}
