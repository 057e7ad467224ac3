"""State-of-the-world sessions: all that was asked for, whenever some of it changed, and nothing else."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from istiodlite.api import discovery_pb2
from istiodlite.registry import ADDRESS_TYPE, Changes, Resource
from istiodlite.xds.sotw import FullResponse, SotwSession
from istiodlite.xds.store import Store
from istiodlite.xds.stream import MAX_UNACKNOWLEDGED


def workload(name: str, version: str = "1", *, node: str = "n1", services: tuple[str, ...] = ()) -> Resource:
    return Resource(ADDRESS_TYPE, name, version, f"{name}={version}".encode(), (f"/{name}",), node, services)


def store_of(*resources: Resource) -> Store:
    store = Store()
    store.apply(Changes(resources))
    return store


def ask(
    *names: str, nonce: str = "", error: str = "", node: str = "", type_url: str = ADDRESS_TYPE
) -> discovery_pb2.DiscoveryRequest:
    out = discovery_pb2.DiscoveryRequest(type_url=type_url, resource_names=names, response_nonce=nonce)
    if node:
        out.node.id = "ztunnel~1.1.1.1~z.i~i.svc"
        out.node.metadata.update({"NODE_NAME": node})
    if error:
        out.error_detail.message = error
    return out


def content(response: FullResponse) -> list[str]:
    message = discovery_pb2.DiscoveryResponse.FromString(response.serialize())
    assert message.nonce == response.nonce
    assert message.type_url == ADDRESS_TYPE
    assert all(one.type_url == ADDRESS_TYPE for one in message.resources)
    assert len(message.resources) == response.count
    return [one.value.decode() for one in message.resources]


def test_a_first_request_without_names_gets_everything() -> None:
    session = SotwSession(store_of(workload("b"), workload("a")))
    (response,) = session.on_request(ask())
    assert content(response) == ["a=1", "b=1"]


def test_every_new_subscription_is_answered_even_with_nothing() -> None:
    (response,) = SotwSession(Store()).on_request(ask("unknown"))
    assert content(response) == []


def test_a_change_brings_all_that_is_asked_for_and_a_removal_is_absence() -> None:
    store = store_of(workload("a"), workload("b"))
    session = SotwSession(store)
    (first,) = session.on_request(ask())
    assert session.on_request(ask(nonce=first.nonce)) == []
    store.apply(Changes((workload("c"),), ((ADDRESS_TYPE, "a"),)))
    (second,) = session.poll()
    assert content(second) == ["b=1", "c=1"]
    assert second.version != first.version
    assert session.poll() == []


def test_a_change_of_something_else_is_not_told() -> None:
    store = store_of(workload("a"), workload("b"))
    session = SotwSession(store)
    session.on_request(ask("a"))
    store.apply(Changes((workload("b", "2"),)))
    assert session.poll() == []
    store.apply(Changes((workload("a", "2"),)))
    assert content(session.poll()[0]) == ["a=2"]


def test_new_names_are_answered_at_once_and_names_left_out_are_forgotten() -> None:
    session = SotwSession(store_of(workload("a"), workload("b")))
    (first,) = session.on_request(ask("a"))
    (second,) = session.on_request(ask("b", nonce=first.nonce))
    assert content(second) == ["b=1"]


def test_a_request_with_a_stale_nonce_changes_nothing() -> None:
    store = store_of(workload("a"), workload("b"))
    session = SotwSession(store)
    (first,) = session.on_request(ask("a"))
    store.apply(Changes((workload("a", "2"),)))
    (second,) = session.poll()
    assert session.on_request(ask("a", "b", nonce=first.nonce)) == []
    assert session.subscriptions[ADDRESS_TYPE].asked == {"a"}
    (third,) = session.on_request(ask("a", "b", nonce=second.nonce))
    assert content(third) == ["a=2", "b=1"]


def test_a_refused_response_is_noted_and_not_sent_again_until_it_changes() -> None:
    store = store_of(workload("a"))
    session = SotwSession(store)
    (first,) = session.on_request(ask())
    assert session.on_request(ask(nonce=first.nonce, error="no")) == []
    assert [nack.message for nack in session.nacks] == ["no"]
    assert session.poll() == []
    store.apply(Changes((workload("a", "2"),)))
    assert content(session.poll()[0]) == ["a=2"]


def test_names_may_be_aliases_and_services_and_the_own_node_comes_unasked() -> None:
    service = Resource(ADDRESS_TYPE, "ns/web", "1", b"web", ("/vip",))
    store = store_of(
        service, workload("w", node="n2", services=("ns/web",)), workload("own"), workload("x", node="n3")
    )
    (response,) = SotwSession(store).on_request(ask("/vip", node="n1"))
    assert content(response) == ["web", "own=1", "w=1"]


def test_a_client_that_does_not_acknowledge_hears_the_rest_at_once_later() -> None:
    store = store_of(workload("a"))
    session = SotwSession(store)
    responses = session.on_request(ask(), now=1.0)
    for version in range(2, 20):
        store.apply(Changes((workload("a", str(version)),)))
        responses += session.poll(now=float(version))
    assert len(responses) == MAX_UNACKNOWLEDGED
    assert session.oldest_unacknowledged() == 1.0
    session.on_request(ask(nonce=responses[-1].nonce))
    assert content(session.poll()[0]) == ["a=19"]


def test_the_version_is_of_the_content_and_outlives_the_process() -> None:
    versions = set()
    for order in (("a", "b"), ("b", "a")):
        store = Store()
        for name in order:
            store.apply(Changes((workload(name),)))
        versions.add(SotwSession(store).on_request(ask())[0].version)
    assert len(versions) == 1


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 3), st.booleans()), max_size=30))
def test_a_client_that_follows_has_what_the_store_has(steps: list[tuple[str, int, bool]]) -> None:
    store = Store()
    session = SotwSession(store)
    (answer,) = session.on_request(ask())
    for name, version, look in steps:
        gone = version == 0
        store.apply(
            Changes((), ((ADDRESS_TYPE, name),)) if gone else Changes((workload(name, str(version)),))
        )
        for later in session.poll() if look else ():
            session.on_request(ask(nonce=later.nonce))
            answer = later
    for later in session.poll():
        answer = later
    assert content(answer) == sorted(f"{one.name}={one.version}" for one in store.all(ADDRESS_TYPE))
