"""The snapshot: look-ups, precedence, removal, what changed, and that order leaves no trace."""

import dataclasses
import statistics
import time
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.state.builders import NODE, pod_uid, policy, service, snapshot, update, workload
from ztunnel.state.model import NetworkMode, Service, Visibility, Workload
from ztunnel.state.policy import Policy
from ztunnel.state.snapshot import Changes, Key, Kind, Snapshot, Update

IP = ip_address("10.0.0.1")
VIP = ip_address("10.96.0.1")


def removed(*names: str) -> Update:
    return Update(removed_addresses=names)


class TestWorkloads:
    def test_are_found_by_uid_and_by_network_and_address(self) -> None:
        one = workload("a", "10.0.0.1", "2001:db8::1")
        s = snapshot(one)
        assert s.workload(one.uid) == one
        assert s.workload_at("", IP) == one
        assert s.workload_at("", ip_address("2001:db8::1")) == one
        assert s.workload_at("other", IP) is None
        assert s.workload_at("", ip_address("10.0.0.2")) is None

    def test_an_update_moves_them_to_their_new_address(self) -> None:
        s, _ = snapshot(workload("a", "10.0.0.1")).apply(update(workload("a", "10.0.0.2")))
        assert s.workload_at("", IP) is None
        assert s.workload_at("", ip_address("10.0.0.2")) is not None

    def test_a_removal_leaves_nothing_behind(self) -> None:
        one = workload("a", "10.0.0.1", services={"ns/s.ns.svc": {}}, node=NODE, hostname="h")
        s, _ = snapshot(one).apply(removed(one.uid))
        assert s == Snapshot.empty(NODE)

    def test_of_several_with_one_address_the_pod_behind_hbone_is_meant(self) -> None:
        ranked = [
            workload("pod", "10.0.0.1"),
            workload("plain", "10.0.0.1", hbone=False),
            workload("vm", "10.0.0.1", uid="A/networking.istio.io/WorkloadEntry/ns/vm"),
            workload("plain-vm", "10.0.0.1", uid="A/networking.istio.io/WorkloadEntry/ns/vm2", hbone=False),
        ]
        s = snapshot(*reversed(ranked))
        for one in ranked:
            assert s.workload_at("", IP) == one
            s, _ = s.apply(removed(one.uid))
        assert s.workload_at("", IP) is None

    def test_rank_follows_an_update(self) -> None:
        s = snapshot(workload("a", "10.0.0.1"), workload("b", "10.0.0.1", hbone=False))
        s, _ = s.apply(update(workload("a", "10.0.0.1", hbone=False), workload("b", "10.0.0.1")))
        assert s.workload_at("", IP) == s.workload(pod_uid("ns", "b"))

    def test_host_network_pods_are_not_found_by_the_address_of_their_node(self) -> None:
        one = workload("a", "10.0.0.1", network_mode=NetworkMode.HOST_NETWORK, services={"ns/s.ns.svc": {}})
        s = snapshot(one)
        assert s.workload_at("", IP) is None
        assert list(s.endpoints("ns/s.ns.svc")) == [one]

    def test_pods_of_this_node_are_found_as_the_cni_names_them(self) -> None:
        here, there = workload("a", node=NODE, account="sa"), workload("b", node="node-2", account="sa")
        s = snapshot(here, there)
        assert s.local_workload("ns", "sa", "a") == here
        assert s.local_workload("ns", "default", "a") is None
        assert s.local_workload("ns", "sa", "b") is None

    def test_host_names_are_looked_up_within_a_namespace(self) -> None:
        one = workload("a", hostname="db.example.com")
        assert snapshot(one).workload_named("ns", "db.example.com") == one
        assert snapshot(one).workload_named("other", "db.example.com") is None


class TestEndpoints:
    KEY = "ns/s.ns.svc"

    def test_come_before_or_after_their_service(self) -> None:
        one, svc = workload("a", services={self.KEY: {}}), service("s")
        for first, second in ((one, svc), (svc, one)):
            s, _ = snapshot(first).apply(update(second))
            assert list(s.endpoints(self.KEY)) == [one]

    def test_survive_an_update_and_a_return_of_their_service(self) -> None:
        one = workload("a", services={self.KEY: {}})
        s, _ = snapshot(one, service("s")).apply(update(service("s", canonical=True)))
        assert list(s.endpoints(self.KEY)) == [one]
        s, _ = s.apply(removed(self.KEY))
        assert s.service(self.KEY) is None
        s, _ = s.apply(update(service("s")))
        assert list(s.endpoints(self.KEY)) == [one]

    def test_unhealthy_ones_are_kept_since_the_service_decides_about_them(self) -> None:
        s = snapshot(workload("a", services={self.KEY: {}}, healthy=False))
        assert len(list(s.endpoints(self.KEY))) == 1

    def test_leave_with_their_workload_or_their_membership(self) -> None:
        one, two = workload("a", services={self.KEY: {}}), workload("b", services={self.KEY: {}})
        s, _ = snapshot(one, two).apply(removed(one.uid))
        assert list(s.endpoints(self.KEY)) == [two]
        s, _ = s.apply(update(workload("b")))
        assert list(s.endpoints(self.KEY)) == []


class TestServices:
    def test_are_found_by_key_name_and_address(self) -> None:
        svc = service("s", "10.96.0.1")
        s = snapshot(svc)
        assert s.service("ns/s.ns.svc") == svc
        assert s.service_named("s.ns.svc", "anyone") == svc
        assert s.service_at("", VIP, "anyone") == svc
        assert s.service_at("other", VIP, "anyone") is None

    def test_a_shared_address_means_the_own_namespace_then_the_canonical_then_the_first(self) -> None:
        a = service("s", "10.96.0.1", namespace="a", hostname="h")
        b = service("s", "10.96.0.1", namespace="b", hostname="h", canonical=True)
        c = service("s", "10.96.0.1", namespace="c", hostname="h")
        s = snapshot(c, a, b)
        for look_up in (lambda ns: s.service_at("", VIP, ns), lambda ns: s.service_named("h", ns)):
            assert look_up("c") == c
            assert look_up("other") == b
        s, _ = s.apply(removed(b.key))
        assert s.service_at("", VIP, "other") == a

    def test_a_service_visible_in_its_namespace_only_is_hidden_from_others(self) -> None:
        hidden = service("s", "10.96.0.1", visibility=Visibility.NAMESPACE)
        s = snapshot(hidden)
        assert s.service_at("", VIP, "ns") == hidden
        assert s.service_named("s.ns.svc", "ns") == hidden
        assert s.service_at("", VIP, "other") is None
        assert s.service_named("s.ns.svc", "other") is None

    def test_a_hidden_exact_address_gives_way_to_a_block(self) -> None:
        hidden = service("s", "10.96.0.1", visibility=Visibility.NAMESPACE)
        block = service("block", "10.96.0.0/16", namespace="b")
        s = snapshot(hidden, block)
        assert s.service_at("", VIP, "other") == block
        assert s.service_at("", VIP, "ns") == hidden

    @pytest.mark.parametrize(
        ("ip", "short", "long", "exact"),
        [
            ("10.96.0.1", "10.0.0.0/8", "10.96.0.0/16", "10.96.0.1"),
            ("2001:db8::1", "2001::/16", "2001:db8::/32", "2001:db8::1"),
        ],
    )
    def test_the_longest_block_is_meant_and_an_exact_address_beats_all(
        self, ip: str, short: str, long: str, exact: str
    ) -> None:
        services = [service("short", short), service("long", long), service("exact", exact)]
        s = snapshot(*services)
        for svc in reversed(services):
            assert s.service_at("", ip_address(ip), "ns") == svc
            s, _ = s.apply(removed(svc.key))
        assert s.service_at("", ip_address(ip), "ns") is None

    def test_an_exact_address_of_another_namespace_beats_a_block_of_the_own(self) -> None:
        exact, block = service("e", "10.96.0.1", namespace="a"), service("b", "10.96.0.0/16", namespace="b")
        assert snapshot(exact, block).service_at("", VIP, "b") == exact

    def test_among_blocks_the_own_namespace_beats_the_longer_prefix_and_that_the_canonical(self) -> None:
        mine = service("mine", "10.0.0.0/8", namespace="mine")
        long = service("long", "10.96.0.0/16", namespace="a")
        canonical = service("canonical", "10.96.0.0/12", namespace="a", canonical=True)
        s = snapshot(mine, long, canonical)
        assert s.service_at("", VIP, "mine") == mine
        assert s.service_at("", VIP, "other") == long
        s, _ = s.apply(removed(long.key))
        assert s.service_at("", VIP, "other") == canonical

    def test_one_block_shared_by_namespaces_is_resolved_by_namespace_then_canonical(self) -> None:
        a = service("s", "10.96.0.0/16", namespace="a")
        b = service("s", "10.96.0.0/16", namespace="b", canonical=True)
        s = snapshot(a, b)
        assert s.service_at("", VIP, "a") == a
        assert s.service_at("", VIP, "c") == b

    def test_families_and_networks_are_kept_apart(self) -> None:
        dual = service("s", "10.96.0.1", "2001:db8::/32")
        s = snapshot(dual, service("other", "10.96.0.0/16", network="n"))
        assert s.service_at("", ip_address("2001:db8::9"), "ns") == dual
        assert s.service_at("", ip_address("10.96.0.2"), "ns") is None
        assert s.service_at("n", ip_address("2001:db8::9"), "ns") is None

    def test_a_whole_family_can_be_one_block(self) -> None:
        everything = service("s", "0.0.0.0/0")
        assert snapshot(everything).service_at("", VIP, "ns") == everything
        assert snapshot(everything).service_at("", ip_address("::1"), "ns") is None

    def test_an_update_moves_them_to_their_new_addresses(self) -> None:
        s, _ = snapshot(service("s", "10.96.0.1", "10.97.0.0/16")).apply(update(service("s", "10.96.0.2")))
        assert s.service_at("", VIP, "ns") is None
        assert s.service_at("", ip_address("10.97.0.1"), "ns") is None
        assert s == snapshot(service("s", "10.96.0.2"))


class TestPolicies:
    def test_are_found_by_name_and_by_scope(self) -> None:
        mesh = policy("g", namespace="istio-system", scope="GLOBAL")
        here, other = policy("b"), policy("a")
        listed = policy("w", scope="WORKLOAD_SELECTOR")
        s = snapshot(mesh, here, other, listed)
        assert s.policy("ns/w") == listed
        assert s.scoped_policies("") == (mesh,)
        assert s.scoped_policies("ns") == (other, here)
        assert s.scoped_policies("istio-system") == ()

    def test_a_change_of_scope_moves_a_policy(self) -> None:
        s, changes = snapshot(policy("p")).apply(update(policy("p", scope="GLOBAL")))
        assert s.scoped_policies("ns") == ()
        assert len(s.scoped_policies("")) == 1
        assert changes.policy_namespaces == {"ns", ""}
        s, changes = s.apply(update(policy("p", scope="WORKLOAD_SELECTOR")))
        assert s.scoped_policies("") == ()
        assert changes.keys == {Key(Kind.POLICIES, ""), Key(Kind.POLICY, "ns/p")}

    def test_a_removal_leaves_nothing_behind(self) -> None:
        s, changes = snapshot(policy("p")).apply(Update(removed_policies=("ns/p",)))
        assert s == Snapshot.empty(NODE)
        assert changes.policies == {"ns/p"}


class TestChanges:
    def test_a_batch_that_says_nothing_new_changes_nothing(self) -> None:
        resources = (workload("a", "10.0.0.1"), service("s", "10.96.0.1"), policy("p"))
        before = snapshot(*resources)
        after, changes = before.apply(update(*resources))
        assert after is before
        assert not changes
        after, changes = before.apply(Update(removed_addresses=("nobody",), removed_policies=("ns/x",)))
        assert after is before
        assert changes == Changes()

    def test_the_version_counts_batches_that_changed_something(self) -> None:
        s = snapshot(workload("a"))
        assert s.version == 1
        assert s.apply(update(workload("a")))[0].version == 1
        assert s.apply(update(workload("b"), service("s")))[0].version == 2

    def test_a_workload_names_itself_its_addresses_and_its_services(self) -> None:
        before = snapshot(workload("a", "10.0.0.1", services={"ns/s.ns.svc": {}}))
        _, changes = before.apply(update(workload("a", "10.0.0.2", services={"ns/t.ns.svc": {}})))
        assert changes.keys == {
            Key(Kind.WORKLOAD, pod_uid("ns", "a")),
            Key(Kind.ADDRESS, "/10.0.0.1"),
            Key(Kind.ADDRESS, "/10.0.0.2"),
            Key(Kind.ENDPOINTS, "ns/s.ns.svc"),
            Key(Kind.ENDPOINTS, "ns/t.ns.svc"),
        }
        assert changes.workloads == {pod_uid("ns", "a")}

    def test_a_service_names_itself_its_host_name_and_its_addresses(self) -> None:
        _, changes = snapshot().apply(update(service("s", "10.96.0.1", "10.97.0.0/16", network="n")))
        assert changes.keys == {
            Key(Kind.SERVICE, "ns/s.ns.svc"),
            Key(Kind.HOSTNAME, "s.ns.svc"),
            Key(Kind.ADDRESS, "n/10.96.0.1"),
            Key(Kind.BLOCKS, "n"),
        }
        assert changes.services == {"ns/s.ns.svc"}

    def test_what_is_removed_and_sent_in_one_batch_stays(self) -> None:
        one = workload("a", "10.0.0.1")
        s, _ = snapshot(one).apply(Update(workloads=(one,), removed_addresses=(one.uid,)))
        assert s == snapshot(one)

    def test_of_two_equal_names_in_a_batch_the_last_counts(self) -> None:
        s = snapshot(workload("a", "10.0.0.1"), workload("a", "10.0.0.2"))
        assert s == snapshot(workload("a", "10.0.0.2"))

    @pytest.mark.parametrize(("limit", "count"), [(1, 8), (2, 5), (100, 4)])
    def test_a_large_batch_in_parts_gives_the_same_snapshot(self, limit: int, count: int) -> None:
        before = snapshot(workload("gone"), workload("again"), policy("gone"))
        whole = Update(
            workloads=(workload("a"), workload("again", node=NODE), workload("b")),
            services=(service("s"), service("t")),
            policies=(policy("p"), policy("q")),
            removed_addresses=(pod_uid("ns", "gone"), pod_uid("ns", "again")),
            removed_policies=("ns/gone",),
        )
        after = before
        parts = list(whole.parts(limit))
        for part in parts:
            after, _ = after.apply(part)
        assert after == before.apply(whole)[0]
        assert len(parts) == count
        assert [part for part in parts if part.policies] == [part for part in parts if part.removed_policies]

    def test_the_snapshot_before_is_untouched(self) -> None:
        before = snapshot(workload("a", "10.0.0.1", services={"ns/s.ns.svc": {}}), policy("p"))
        copy = dataclasses.replace(before)
        before.apply(update(workload("b", "10.0.0.1", services={"ns/s.ns.svc": {}}), policy("q")))
        assert before == copy
        assert len(list(before.endpoints("ns/s.ns.svc"))) == 1


Resource = Workload | Service | Policy

_IPS = st.sampled_from(["10.0.0.1", "10.0.0.2", "2001:db8::1"])
_VIPS = st.sampled_from(["10.96.0.1", "10.96.0.0/16", "10.0.0.0/8", "2001:db8::/32", "2001:db8::1"])
_NAMES = st.sampled_from(["a", "b", "c"])
_NAMESPACES = st.sampled_from(["ns", "other"])

_workloads = st.builds(
    lambda name, namespace, ips, services, **fields: workload(
        name, *sorted(ips), namespace=namespace, services={key: {80: 81} for key in services}, **fields
    ),
    _NAMES,
    _NAMESPACES,
    st.sets(_IPS),
    st.sets(st.sampled_from(["ns/a.ns.svc", "ns/b.ns.svc"])),
    hbone=st.booleans(),
    node=st.sampled_from([NODE, "node-2"]),
    hostname=st.sampled_from(["", "h"]),
    network_mode=st.sampled_from(NetworkMode),
)
_services = st.builds(
    lambda name, namespace, vips, **fields: service(name, *sorted(vips), namespace=namespace, **fields),
    _NAMES,
    _NAMESPACES,
    st.sets(_VIPS),
    canonical=st.booleans(),
    hostname=st.sampled_from(["h.svc", "i.svc"]),
    network=st.sampled_from(["", "n"]),
)
_policies = st.builds(
    policy, _NAMES, namespace=_NAMESPACES, scope=st.sampled_from(["GLOBAL", "NAMESPACE", "WORKLOAD_SELECTOR"])
)


def _name(resource: Resource) -> str:
    return resource.uid if isinstance(resource, Workload) else resource.key


def _kind(resource: Resource) -> str:
    return "policy" if isinstance(resource, Policy) else "address"


@st.composite
def _histories(draw: st.DrawFn) -> tuple[list[Resource], list[Update]]:
    """Resources, and a history of batches that ends with exactly these: with detours over others."""
    pool = draw(st.lists(_workloads | _services | _policies, max_size=14))
    final = list({(_kind(each), _name(each)): each for each in pool}.values())
    batches: list[Update] = []
    # The detour: anything at all, in any order.
    detour = draw(st.permutations(pool))
    while detour:
        size = draw(st.integers(1, len(detour)))
        batches.append(update(*detour[:size]))
        detour = detour[size:]
    # Then what must not stay is removed, and what must is sent, again in any order and batching.
    rest = draw(st.permutations(final))
    dropped = draw(st.sets(st.sampled_from(range(len(final))))) if final else set()
    kept = [each for index, each in enumerate(final) if index not in dropped]
    gone = [each for index, each in enumerate(final) if index in dropped]
    batches.append(
        Update(
            removed_addresses=tuple(_name(each) for each in gone if _kind(each) == "address"),
            removed_policies=tuple(_name(each) for each in gone if _kind(each) == "policy"),
        )
    )
    rest = [each for each in rest if each in kept]
    while rest:
        size = draw(st.integers(1, len(rest)))
        batches.append(update(*rest[:size]))
        rest = rest[size:]
    return kept, batches


@settings(max_examples=300, deadline=None)
@given(_histories())
def test_equal_resources_make_equal_snapshots_whatever_the_history(
    history: tuple[list[Resource], list[Update]],
) -> None:
    kept, batches = history
    s = Snapshot.empty(NODE)
    for batch in batches:
        s, _ = s.apply(batch)
    assert s == snapshot(*kept)


@settings(max_examples=200, deadline=None)
@given(_histories())
def test_whatever_a_look_up_says_differently_is_among_the_changes(
    history: tuple[list[Resource], list[Update]],
) -> None:
    _, batches = history
    s = Snapshot.empty(NODE)
    for batch in batches:
        after, changes = s.apply(batch)
        for network in ("", "n"):
            for text in ("10.0.0.1", "10.0.0.2", "2001:db8::1", "10.96.0.1", "10.96.0.2"):
                ip = ip_address(text)
                keys = {Key(Kind.ADDRESS, f"{network}/{text}"), Key(Kind.BLOCKS, network)}
                for namespace in ("ns", "other"):
                    if s.service_at(network, ip, namespace) != after.service_at(network, ip, namespace):
                        assert keys & changes.keys
                if s.workload_at(network, ip) != after.workload_at(network, ip):
                    assert Key(Kind.ADDRESS, f"{network}/{text}") in changes.keys
        for scope in ("", "ns", "other"):
            changed = s.scoped_policies(scope) != after.scoped_policies(scope)
            assert (scope in changes.policy_namespaces) >= changed
        s = after


def test_one_change_among_many_workloads_takes_well_under_two_milliseconds() -> None:
    many = [
        workload(f"p{i}", str(ip_address(0x0A000000 + i)), services={f"ns/s{i % 100}.ns.svc": {80: 81}})
        for i in range(10_000)
    ]
    s = snapshot(*many)
    took = []
    for one in many[::100]:
        change = update(dataclasses.replace(one, healthy=False))
        start = time.perf_counter()
        s, _ = s.apply(change)
        took.append(time.perf_counter() - start)
    assert statistics.median(took) < 0.002
