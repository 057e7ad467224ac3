"""An agent that keeps its decisions does what one does that decides every connection anew."""

from __future__ import annotations

import dataclasses
import logging
import re
from ipaddress import ip_address, ip_network
from typing import Any
from unittest.mock import patch

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from hbone.connect import parse_headers
from hbone.engine import Closed, Headers, ListenerKind
from tests.unit.ztunnel.agentbench import Bench
from tests.unit.ztunnel.doubles import service, workload
from ztunnel.decide.cache import Kept
from ztunnel.enrol.pods import Pod
from ztunnel.inbound import _told
from ztunnel.state.model import (
    GatewayAddress,
    Membership,
    NetworkAddress,
    Port,
    TunnelProtocol,
    WeightedWaypoint,
)
from ztunnel.state.policy import Action, Clause, Match, Policy, PolicyScope, Rule, StringMatcher
from ztunnel.state.snapshot import Update

HERE = workload("here", "10.0.0.1")
SVC = "shop/web.shop.svc.cluster.local"
WEB = (Membership(SVC, (Port(80, 8080),)),)
GATEWAY = GatewayAddress(NetworkAddress("net1", ip_address("10.0.0.4")))
OTHER_GATEWAY = GatewayAddress(NetworkAddress("net1", ip_address("10.0.0.3")))
WEB_SERVICE = service("web", "10.1.0.1", Port(80, 8080))


class Forgetful(Kept[Any]):
    """Keeps nothing."""

    def get(self, *_: Any) -> None:
        return None


def _policy(action: Action, **match: Any) -> Policy:
    rules = (Rule((Clause((Match(**match),)),)),)
    return Policy("shop", f"{action.value.lower()}-{'-'.join(match)}", PolicyScope.NAMESPACE, action, rules)


POLICIES = (
    _policy(Action.DENY, source_ips=(ip_network("10.0.0.2/32"),)),
    _policy(Action.DENY, destination_ports=frozenset({9090})),
    _policy(Action.DENY, principals=StringMatcher(exact=frozenset({"cluster.local/ns/shop/sa/b"}))),
    _policy(Action.ALLOW, namespaces=StringMatcher(exact=frozenset({"shop"}))),
)
UPDATES = (
    Update(workloads=(HERE,)),
    Update(workloads=(dataclasses.replace(HERE, canonical_revision="v2"),)),
    Update(workloads=(dataclasses.replace(HERE, authorization_policies=("shop/late",)),)),
    Update(workloads=(workload("a", "10.0.0.2", services=WEB),)),
    Update(workloads=(workload("a", "10.0.0.2", services=WEB, capacity=3),)),
    Update(workloads=(workload("a", "10.0.0.2", tunnel_protocol=TunnelProtocol.NONE),)),
    Update(workloads=(workload("a", "10.0.0.2", waypoint=GATEWAY),)),
    Update(workloads=(workload("b", "10.0.0.3", services=WEB),)),
    Update(workloads=(workload("wp", "10.0.0.4"),)),
    Update(workloads=(dataclasses.replace(HERE, services=WEB),)),
    Update(services=(WEB_SERVICE,)),
    Update(services=(dataclasses.replace(WEB_SERVICE, waypoint=GATEWAY),)),
    Update(
        services=(
            dataclasses.replace(
                WEB_SERVICE,
                weighted_waypoints=(WeightedWaypoint(GATEWAY, 1), WeightedWaypoint(OTHER_GATEWAY, 2)),
            ),
        )
    ),
    Update(removed_addresses=(SVC,)),
    *(Update(removed_addresses=(workload(name, "10.0.0.9").uid,)) for name in ("here", "a", "b", "wp")),
    *(Update(policies=(policy,)) for policy in POLICIES),
    *(Update(removed_policies=(policy.key,)) for policy in POLICIES),
)
PEERS = ("10.0.0.2", "10.0.0.3", "10.9.9.9", "fd00::9")
HEADERS: tuple[Headers, ...] = (
    (),
    (("forwarded", 'for="10.0.0.2:41200";host=web.shop.svc.cluster.local'),),
    (("forwarded", 'for="10.0.0.2:41201"'), ("baggage", "k8s.namespace.name=shop,service.name=a")),
    (("forwarded", "host=web.shop.svc.cluster.local;for=1"), ("x-forwarded-network", "net2")),
    (("x-forwarded-network", "net2"), ("baggage", "service.name=x"), ("baggage", "service.name=y")),
    (("x-forwarded-network", "net1"), ("baggage", f"service.name={'x' * 600}")),
)

# Which descriptor a namespace got is chance, and what is left with the engine is not what it is told of a connection.
ASIDE = ("add_netns", "epoch", "keep_plain", "keep_tunnel", "forget")

Connection = tuple[Any, ...]
OUTBOUND = st.tuples(
    st.just("outbound"),
    st.sampled_from(("10.0.0.2", "10.0.0.3", "10.1.0.1", "10.0.0.1", "10.7.7.7")),
    st.sampled_from((80, 8080, 15008)),
    st.floats(0, 1, exclude_max=True),
)
PLAINTEXT = st.tuples(st.just("plaintext"), st.sampled_from(PEERS), st.sampled_from((8080, 9090)))
HBONE = st.tuples(
    st.just("hbone"),
    st.sampled_from(PEERS),
    st.sampled_from(
        ("10.0.0.1:8080", "10.0.0.1:9090", "10.0.0.3:8080", "web.shop.svc.cluster.local:80", "?")
    ),
    st.sampled_from(("a", "b")),
    st.sampled_from(HEADERS),
    st.sampled_from(("CONNECT", "CONNECT", "GET")),
)


@st.composite
def neighbours(draw: st.DrawFn) -> list[Connection]:
    """A connection and others that differ from it in one field each: where a key that lacks one is found out."""
    kind = draw(st.sampled_from((OUTBOUND, PLAINTEXT, HBONE)))
    first, *others = draw(st.lists(kind, min_size=1, max_size=6))
    made: list[Connection] = [first]
    for other in others:
        field = draw(st.integers(1, len(first) - 1))
        made.append((*first[:field], other[field], *first[field + 1 :]))
    return made


Step = st.one_of(st.sampled_from(UPDATES), neighbours())


def _do(bench: Bench, pod: Pod, connection: Connection) -> int:
    kind, ip, to, *more = connection
    if kind == "outbound":
        bench.draw = more[0]
        return bench.connect(pod, "10.0.0.1", (ip, to))
    if kind == "plaintext":
        return bench.connect(pod, ip, ("10.0.0.1", to), ListenerKind.INBOUND)
    account, headers, method = more
    identity = f"spiffe://cluster.local/ns/shop/sa/{account}"
    return bench.request(pod, ip, "10.0.0.1", to, headers=headers, method=method, peer_identity=identity)


async def _run(bench: Bench, steps: list[Any]) -> tuple[list[Any], str]:
    """The flows and everything the engine was told; and the log without times."""
    await bench.know(HERE, workload("a", "10.0.0.2", services=WEB), workload("b", "10.0.0.3", services=WEB))
    bench.addresses = (ip_address("10.0.0.1"),)
    pod = await bench.enrol(HERE)
    done: list[Any] = []
    for step in steps:
        if isinstance(step, Update):
            await bench.store.apply(step)
            continue
        for connection in step:
            flow = bench.flows.get(_do(bench, pod, connection))
            assert flow is not None
            series = flow.facet.opened
            done.append((flow.verdict, flow.depends, flow.peer, flow.destination))
            done.append({**series.labels, "opened": series.opened})
    done.extend(call for call in bench.engine.calls if call[0] not in ASIDE)
    for flow in bench.flows:
        bench.turn(Closed(flow.token, 0, 0, 0, 3, 4, True))
    return done, re.sub(r"(?m)^\S+|\d+ms", "", bench.log())


@settings(max_examples=100, deadline=None)
@given(st.lists(Step, max_size=15))
def test_kept_decisions_are_those_that_would_be_made(steps: list[Any]) -> None:
    logging.getLogger("ztunnel.access").setLevel(logging.INFO)
    keeping = Bench()
    with patch("ztunnel.outbound.Kept", Forgetful), patch("ztunnel.inbound.Kept", Forgetful):
        forgetful = Bench()
    try:
        assert trio.run(_run, keeping, steps) == trio.run(_run, forgetful, steps)
    finally:
        keeping.dispose()
        forgetful.dispose()


@pytest.mark.trio
async def test_equal_connections_share_one_decision_until_the_snapshot_changes() -> None:
    bench = Bench()
    try:
        await bench.know(HERE, workload("a", "10.0.0.2"))
        pod = await bench.enrol(HERE)

        def shared() -> list[Any]:
            tokens = [bench.connect(pod, "10.0.0.1", ("10.0.0.2", 8080))]
            tokens.append(bench.connect(pod, "10.0.0.2", ("10.0.0.1", 80), ListenerKind.INBOUND))
            tokens.append(bench.request(pod, "10.0.0.2", "10.0.0.1", "10.0.0.1:80", headers=HEADERS[1]))
            return [bench.flows.get(token).shared for token in tokens]  # type: ignore[union-attr]

        first, again = shared(), shared()
        assert all(one is other for one, other in zip(first, again, strict=True))
        await bench.know(workload("elsewhere", "10.0.0.8"))
        assert not any(one is other for one, other in zip(first, shared(), strict=True))
    finally:
        bench.dispose()


@pytest.mark.trio
async def test_a_certificate_that_is_gone_stops_a_kept_way() -> None:
    bench = Bench()
    try:
        await bench.know(HERE, workload("a", "10.0.0.2"))
        pod = await bench.enrol(HERE)
        bench.connect(pod, "10.0.0.1", ("10.0.0.2", 8080))
        bench.identities.missing.add("here")
        bench.connect(pod, "10.0.0.1", ("10.0.0.2", 8080))
        assert len(bench.engine.named("connect_tunnel")) == 1
    finally:
        bench.dispose()


@pytest.mark.trio
async def test_a_pod_enrolled_anew_is_decided_anew() -> None:
    bench = Bench()
    try:
        await bench.know(HERE, workload("a", "10.0.0.2"))
        bench.addresses = (ip_address("10.0.0.1"),)
        pod = await bench.enrol(HERE)
        bench.connect(pod, "10.0.0.1", ("10.0.0.2", 8080))
        network = dataclasses.replace(pod.enrolled.network, addresses=(ip_address("10.0.0.2"),))
        pod.enrolled = dataclasses.replace(pod.enrolled, network=network)
        bench.connect(pod, "10.0.0.1", ("10.0.0.2", 8080))
        (plain,) = bench.engine.named("connect_plain")
        assert plain["destination"] == ("10.0.0.2", 8080)
    finally:
        bench.dispose()


Value = st.one_of(
    st.text(alphabet=st.characters(max_codepoint=255), max_size=40),
    st.from_regex(r'for="[0-9a-f.:\[\]]*"(;host=[a-z.";\\ -]*)?', fullmatch=True),
)
Name = st.sampled_from(("forwarded", "baggage", "x-forwarded-network", "traceparent", "x-other"))


@given(st.lists(st.tuples(Name, Value), max_size=4).map(tuple))
def test_what_headers_are_told_apart_by_is_all_that_is_read_of_them(headers: Headers) -> None:
    told = _told(headers)
    if told is None:
        return
    baggage, host, network = told
    read = parse_headers(headers)
    assert (read.forwarded_host, read.from_network) == (host, network)
    assert read.baggage == (parse_headers((("baggage", baggage),)).baggage if baggage is not None else None)
