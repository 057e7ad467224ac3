"""Which pairs may talk directly: only what both decisions allow, and the same whatever the order of changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpf.pairs import Backend, Endpoint, PairKey, Split, Target, backends
from hbone.connect import SocketAddress
from tests.unit.state.builders import NODE, by_name, match, policy, service, snapshot, update, workload
from ztunnel.decide.inbound import decide_inbound
from ztunnel.decide.model import InboundConnection, OutboundConnection, Tunnel, Via
from ztunnel.decide.outbound import decide_outbound
from ztunnel.direct.between import LocalPod, pairs_between
from ztunnel.direct.plan import Plan
from ztunnel.state.model import HBONE_PORT, ApplicationTunnel, ApplicationTunnelProtocol, Service, Workload
from ztunnel.state.policy import Policy
from ztunnel.state.snapshot import Snapshot, Update

CLIENT, SERVER = 1, 2
WEB = "ns/web.ns.svc"
VIP, VIP6 = "10.96.0.1", "fd00:96::1"


def client(**fields: Any) -> Workload:
    return workload("client", "10.0.0.1", "fd00::1", account="client", node=NODE, **fields)


def server(**fields: Any) -> Workload:
    fields = {"services": {WEB: {80: 8080}}} | fields
    return workload("server", "10.0.0.2", "fd00::2", account="server", node=NODE, **fields)


def web(**fields: Any) -> Service:
    return service("web", VIP, VIP6, **fields)


def local(slot: int, of: Workload) -> LocalPod:
    return LocalPod(slot, of.addresses, of)


def test_only_pairs_of_pods_that_both_asked_are_accelerated() -> None:
    known = snapshot(client(), server(), web())
    pods = {w.name: w for w in known.workloads()}
    for turbo in ((True, True), (True, False), (False, True), (False, False)):
        plan = Plan("")
        ends = (local(CLIENT, pods["client"]), local(SERVER, pods["server"]))
        plan.mark([end._replace(turbo=wants) for end, wants in zip(ends, turbo, strict=True)])
        plan.settle(known, 10)
        assert {b.turbo for target in plan.pairs.values() for b in backends(target)} == {all(turbo)}


def planned(*resources: Workload | Service | Policy) -> dict[PairKey, Target]:
    """Pairs of the pods `client` and `server`."""
    known = snapshot(*resources)
    pods = {w.name: w for w in known.workloads()}
    plan = Plan("")
    plan.mark([local(CLIENT, pods["client"]), local(SERVER, pods["server"])])
    plan.settle(known, 10)
    return {key: backend for key, backend in plan.pairs.items() if key.slot == CLIENT}


def asked(pairs: Iterable[PairKey]) -> set[str]:
    return {str(SocketAddress(key.asked.ip, key.asked.port)) for key in pairs}


EVERYTHING = {"10.0.0.2:8080", "[fd00::2]:8080", f"{VIP}:80", f"[{VIP6}]:80"}


def test_ports_of_services_and_their_addresses_are_in_the_plan() -> None:
    pairs = planned(client(), server(), web())
    assert asked(pairs) == EVERYTHING
    assert pairs[PairKey(CLIENT, Endpoint(ip_address(VIP), 80))] == Backend(
        SERVER, Endpoint(ip_address("10.0.0.2"), 8080)
    )
    assert pairs[PairKey(CLIENT, Endpoint(ip_address(VIP6), 80))].address.ip == ip_address("fd00::2")


def test_service_with_another_endpoint_is_left_to_the_balancer() -> None:
    far = workload("far", "10.0.1.1", services={WEB: {80: 8080}}, node="elsewhere")
    assert asked(planned(client(), server(), web(), far)) == {"10.0.0.2:8080", "[fd00::2]:8080"}
    assert asked(planned(client(), server(), web(), replace(far, healthy=False))) == EVERYTHING


@pytest.mark.parametrize(
    "resources",
    [
        (client(), server(hbone=False), web()),
        (client(), server(waypoint=by_name("wp.ns.svc")), web(waypoint=by_name("wp.ns.svc"))),
        (client(), server(native_tunnel=True), web()),
        (client(native_tunnel=True), server(), web()),
        (
            client(),
            server(application_tunnel=ApplicationTunnel(ApplicationTunnelProtocol.NONE, 9090)),
            web(),
        ),
        (client(), server(network="other"), web()),
        (client(), server(authorization_policies=("ns/missing",)), web()),
        (client(), server(), web(), policy("nobody", [])),
        (client(), server(), web(), policy("deny", [[[match(namespaces=["ns"])]]], action="DENY")),
        (client(), server(services={}), web()),
        (client(), server(services={WEB: {80: HBONE_PORT}}), web(ports={80: HBONE_PORT})),
    ],
)
def test_what_is_not_plainly_allowed_is_left_to_the_proxy(resources: tuple[Any, ...]) -> None:
    assert planned(*resources) == {}


def test_waypoint_of_the_service_alone_leaves_the_pods_own_address() -> None:
    pairs = planned(client(), server(), web(waypoint=by_name("wp.ns.svc")))
    assert asked(pairs) == {"10.0.0.2:8080", "[fd00::2]:8080"}


def test_policy_by_principal_and_port_decides_pair_by_pair() -> None:
    allow = policy(
        "allow", [[[match(principals=["cluster.local/ns/ns/sa/client"], destination_ports=[8080])]]]
    )
    two = {80: 8080, 81: 8081}
    assert asked(planned(client(), server(services={WEB: two}), web(ports=two), allow)) == EVERYTHING


def test_every_address_of_the_client_has_to_be_allowed() -> None:
    allow = policy("allow", [[[match(source_ips=["10.0.0.1/32", "fd00::/64"])]]])
    assert asked(planned(client(), server(), web(), allow)) == EVERYTHING
    both = replace(client(), addresses=(*client().addresses, ip_address("10.0.0.9")))
    assert asked(planned(both, server(), web(), allow)) == {"[fd00::2]:8080", f"[{VIP6}]:80"}


def test_address_that_the_pod_does_not_have_is_left_out() -> None:
    known = snapshot(client(), server(), web())
    target = LocalPod(SERVER, (ip_address("10.0.0.2"),), server())
    block = pairs_between(local(CLIENT, client()), target, "", known)
    assert asked(block.pairs) == {"10.0.0.2:8080", f"{VIP}:80"}


def test_great_changes_are_doubtful_until_they_are_settled() -> None:
    known = snapshot(client(), server(), web())
    plan = Plan("")
    pods = [local(CLIENT, client()), local(SERVER, server())]
    assert plan.mark(pods) == {}
    assert plan.doubtful == 2
    added = plan.settle(known, 1) | plan.settle(known, 1)
    assert asked(added) == EVERYTHING
    changed, changes = known.apply(update(policy("nobody", [])))
    assert asked(plan.mark(pods, changes)) == EVERYTHING
    assert plan.pairs == {}
    assert plan.settle(changed, 10) == {}


def test_a_pod_that_leaves_takes_its_pairs_with_it() -> None:
    known = snapshot(client(), server(), web())
    plan = Plan("")
    plan.follow([local(CLIENT, client()), local(SERVER, server())], None, known)
    gone = plan.follow([local(CLIENT, client())], None, known)
    assert (asked(gone.removed), gone.added, plan.pairs) == (EVERYTHING, {}, {})


# Random meshes

NAMES = ("a", "b", "c", "d")
SERVICES = ("s", "t")


@st.composite
def meshes(draw: st.DrawFn) -> list[Workload | Service | Policy]:
    """A few pods, services and policies; some pods are not local, not enrolled or behind waypoints."""
    flags = st.booleans()
    found: list[Workload | Service | Policy] = []
    for index, name in enumerate(NAMES):
        members = {f"ns/{s}.ns.svc": {80: 8080} for s in draw(st.sets(st.sampled_from(SERVICES)))}
        found.append(
            workload(
                name,
                f"10.0.0.{index + 1}",
                *([f"fd00::{index + 1}"] if draw(flags) else []),
                account=name,
                services=members,
                node=NODE if draw(st.integers(0, 3)) else "elsewhere",
                hbone=bool(draw(st.integers(0, 5))),
                healthy=bool(draw(st.integers(0, 4))),
                waypoint=by_name("wp.ns.svc") if not draw(st.integers(0, 5)) else None,
            )
        )
    for index, name in enumerate(SERVICES):
        waypoint = by_name("wp.ns.svc") if not draw(st.integers(0, 4)) else None
        found.append(service(name, f"10.96.0.{index + 1}", f"fd00:96::{index + 1}", waypoint=waypoint))
    for number in range(draw(st.integers(0, 3))):
        who = draw(st.sets(st.sampled_from(NAMES), max_size=3))
        matches = [match(principals=[f"cluster.local/ns/ns/sa/{name}"]) for name in sorted(who)]
        action = draw(st.sampled_from(["ALLOW", "DENY"]))
        found.append(policy(f"p{number}", [[matches]] if matches else [], action=action))
    return found


def enrolled(known: Snapshot) -> list[LocalPod]:
    return [
        local(NAMES.index(each.name), each)
        for each in known.workloads()
        if each.node == NODE and each.tunnel_protocol == "HBONE"
    ]


def assert_all_allowed(plan: Plan, known: Snapshot, draws: list[float]) -> None:
    pods = {pod.slot: pod for pod in enrolled(known)}
    for key, answer in plan.pairs.items():
        source, targets = pods[key.slot].workload, {each.slot: each for each in backends(answer)}
        of_service = known.service_at("", key.asked.ip, "ns") is not None
        assert of_service or all(pods[slot].workload.waypoint is None for slot in targets)
        for client_ip in source.addresses:
            if client_ip.version != key.asked.ip.version:
                continue
            peer, asked_address = SocketAddress(client_ip, 0), SocketAddress(*key.asked)
            for draw in draws:
                out = decide_outbound(OutboundConnection(source, "", peer, asked_address), known, draw)
                assert isinstance(out.action, Tunnel)
                assert out.route == "direct"
                (slot,) = (slot for slot in targets if pods[slot].workload.uid == out.action.hop.uid)
                assert out.action.authority == str(SocketAddress(*targets[slot].address))
                arriving = InboundConnection(
                    pods[slot].workload,
                    Via.HBONE,
                    peer,
                    out.action.destination,
                    source.identity,
                    out.action.authority,
                )
                assert decide_inbound(arriving, known).allowed


@settings(max_examples=150, deadline=None)
@given(meshes(), st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3))
def test_every_pair_is_allowed_by_both_decisions(mesh: list[Any], draws: list[float]) -> None:
    known = snapshot(*mesh)
    plan = Plan("")
    plan.follow(enrolled(known), None, known)
    assert_all_allowed(plan, known, draws)


@settings(max_examples=100, deadline=None)
@given(st.lists(meshes(), min_size=2, max_size=4), st.booleans())
def test_following_changes_comes_to_the_same_as_starting_anew(steps: list[list[Any]], sliced: bool) -> None:
    known = Snapshot.empty(NODE)
    plan = Plan("")
    kernel: dict[PairKey, Target] = {}
    for mesh in steps:
        gone = tuple(each.key for each in known.policies())
        change = replace(update(*mesh), removed_policies=gone)
        known, changes = known.apply(change)
        if sliced:
            for key in plan.mark(enrolled(known), changes):
                del kernel[key]
            while plan.doubtful:
                kernel |= plan.settle(known, 1)
        else:
            difference = plan.follow(enrolled(known), changes, known)
            for key in difference.removed:
                del kernel[key]
            kernel |= difference.added
        anew = Plan("")
        anew.follow(enrolled(known), None, known)
        assert kernel == plan.pairs == anew.pairs


def test_updates_that_concern_no_pair_change_nothing() -> None:
    known = snapshot(client(), server(), web())
    plan = Plan("")
    pods = [local(CLIENT, client()), local(SERVER, server())]
    plan.follow(pods, None, known)
    other = workload("other", "10.0.5.5", services={"ns/x.ns.svc": {80: 80}})
    known, changes = known.apply(Update(workloads=(other,)))
    assert plan.mark(pods, changes) == {}
    assert plan.doubtful == 0


# Services with several endpoints


def second(**fields: Any) -> Workload:
    fields = {"services": {WEB: {80: 8080}}, "node": NODE} | fields
    return workload("second", "10.0.0.3", "fd00::3", account="second", **fields)


SECOND = 3


def split_plan(*resources: Workload | Service | Policy, enrolled: Iterable[str] = ()) -> Plan:
    """Of the pods `client`, `server` and `second`, or of those named."""
    known = snapshot(*resources)
    slots = {"client": CLIENT, "server": SERVER, "second": SECOND}
    plan = Plan("")
    plan.mark([local(slots[w.name], w) for w in known.workloads() if w.name in (tuple(enrolled) or slots)])
    plan.settle(known, 100)
    return plan


def to_service(plan: Plan, ip: str = VIP) -> Target | None:
    return plan.pairs.get(PairKey(CLIENT, Endpoint(ip_address(ip), 80)))


def both_backends(weights: tuple[int, int] = (1, 1)) -> set[tuple[Backend, int]]:
    ends = {SERVER: "10.0.0.2", SECOND: "10.0.0.3"}
    return {
        (Backend(slot, Endpoint(ip_address(ip), 8080)), weight)
        for (slot, ip), weight in zip(ends.items(), weights, strict=True)
    }


def test_service_with_several_local_endpoints_is_split_among_them() -> None:
    plan = split_plan(client(), server(), second(), web())
    target = to_service(plan)
    assert isinstance(target, Split)
    assert set(target.choices) == both_backends()
    assert isinstance(to_service(plan, VIP6), Split)


def test_endpoints_are_chosen_as_often_as_the_balancer_would() -> None:
    plan = split_plan(client(), server(capacity=3), second(capacity=1), web())
    target = to_service(plan)
    assert isinstance(target, Split)
    assert set(target.choices) == both_backends((3, 1))
    drained = to_service(split_plan(client(), server(capacity=0), second(), web()))
    assert drained == Backend(SECOND, Endpoint(ip_address("10.0.0.3"), 8080))


def test_endpoint_that_is_not_healthy_is_not_among_them() -> None:
    target = to_service(split_plan(client(), server(healthy=False), second(), web()))
    assert target == Backend(SECOND, Endpoint(ip_address("10.0.0.3"), 8080))


@pytest.mark.parametrize(
    "resources",
    [
        (server(), second(node="elsewhere")),
        (server(), second(hbone=False)),
        (server(), second(application_tunnel=ApplicationTunnel(ApplicationTunnelProtocol.NONE, 9090))),
        (server(), second(authorization_policies=("ns/missing",))),
    ],
)
def test_one_endpoint_that_is_not_for_the_kernel_leaves_the_service_to_the_proxy(resources: Any) -> None:
    enrolled = ["client", "server", *(w.name for w in resources if w.node == NODE and w.name == "second")]
    plan = split_plan(client(), *resources, web(), enrolled=enrolled)
    assert to_service(plan) is None
    assert PairKey(CLIENT, Endpoint(ip_address("10.0.0.2"), 8080)) in plan.pairs


def test_pod_that_serves_what_it_asks_for_is_left_to_the_proxy() -> None:
    plan = split_plan(client(services={WEB: {80: 8080}}), server(), second(), web())
    assert to_service(plan) is None


def test_endpoints_that_come_go_and_fall_ill_are_followed() -> None:
    known = snapshot(client(), server(), second(), web())
    pods = {
        w.name: local({"client": CLIENT, "server": SERVER, "second": SECOND}[w.name], w)
        for w in known.workloads()
    }
    plan = Plan("")
    plan.follow(pods.values(), None, known)
    assert isinstance(to_service(plan), Split)
    one = Backend(SECOND, Endpoint(ip_address("10.0.0.3"), 8080))

    def change(*resources: Workload | Service | Policy) -> None:
        nonlocal known
        known, changes = known.apply(update(*resources))
        for w in known.workloads():
            if w.name in pods:
                pods[w.name] = pods[w.name]._replace(workload=w)
        difference = plan.follow(pods.values(), changes, known)
        fresh = Plan("")
        fresh.follow(pods.values(), None, known)
        assert plan.pairs == fresh.pairs
        assert difference.added.keys() <= plan.pairs.keys()

    change(server(healthy=False))
    assert to_service(plan) == one
    change(server())
    assert isinstance(to_service(plan), Split)
    change(server(services={}))
    assert to_service(plan) == one
    change(server())
    change(workload("far", "10.0.1.1", services={WEB: {80: 8080}}, node="elsewhere"))
    assert to_service(plan) is None


def test_pods_of_the_service_that_enrol_and_leave_are_followed() -> None:
    known = snapshot(client(), server(), second(), web())
    pods = {
        w.name: local({"client": CLIENT, "server": SERVER, "second": SECOND}[w.name], w)
        for w in known.workloads()
    }
    plan = Plan("")
    for names, is_split in (
        (("client", "second"), False),
        (("client", "server", "second"), True),
        (("client", "server"), False),
        (("client", "server", "second"), True),
    ):
        plan.follow([pods[name] for name in names], None, known)
        assert isinstance(to_service(plan), Split) is is_split
        fresh = Plan("")
        fresh.follow([pods[name] for name in names], None, known)
        assert plan.pairs == fresh.pairs


@given(st.lists(st.integers(0, 5), min_size=2, max_size=6))
def test_shares_are_those_of_the_balancer(capacities: list[int]) -> None:
    """Counted over draws that cover everything."""
    pods = [
        workload(
            f"p{n}",
            f"10.0.2.{n + 1}",
            account="server",
            node=NODE,
            services={WEB: {80: 8080}},
            capacity=capacity,
        )
        for n, capacity in enumerate(capacities)
    ]
    known = snapshot(client(), *pods, web())
    plan = Plan("")
    slots = {w.name: index for index, w in enumerate([client(), *pods], CLIENT)}
    plan.mark([local(slots[w.name], w) for w in known.workloads()])
    plan.settle(known, 100)
    target = to_service(plan)
    total = sum(capacities)
    if not total:
        assert target is None
        return
    assert target is not None
    asking = OutboundConnection(
        known.workload(client().uid),
        "",
        SocketAddress(ip_address("10.0.0.1"), 1),
        SocketAddress(ip_address(VIP), 80),
    )  # type: ignore[arg-type]
    chosen = Counter(
        verdict.action.hop.name
        for draw in range(total)
        if isinstance((verdict := decide_outbound(asking, known, (draw + 0.5) / total)).action, Tunnel)
    )
    choices = target.choices if isinstance(target, Split) else ((target, total),)
    assert {backend.slot: weight for backend, weight in choices} == {
        slots[n]: count for n, count in chosen.items()
    }
