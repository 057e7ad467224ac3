"""Choosing an endpoint."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hbone.reasons import Reason
from tests.unit.state.builders import service, snapshot, workload
from ztunnel.decide.balance import choose_endpoint, weighted
from ztunnel.decide.refusal import RefusalError
from ztunnel.state.model import LoadBalancing, LoadBalancingMode, Locality, Scope, Workload

SVC = "ns/s.ns.svc"
CLIENT = workload("client", node="n1", locality=Locality("r1", "z1", "s1"), cluster_id="c1")


def endpoint(name: str, **fields: Any) -> Workload:
    return workload(name, f"10.0.0.{ord(name)}", services={SVC: {}}, **fields)


def chosen(balancing: LoadBalancing, *endpoints: Workload) -> set[str]:
    """The names of all endpoints that some draw picks."""
    s = snapshot(service("s", load_balancing=balancing), *endpoints)
    svc = s.service(SVC)
    assert svc is not None
    return {choose_endpoint(svc, 80, CLIENT, "", s, i / 64).workload.name for i in range(64)}


def strict(*scopes: Scope) -> LoadBalancing:
    return LoadBalancing(scopes, LoadBalancingMode.STRICT)


def failover(*scopes: Scope) -> LoadBalancing:
    return LoadBalancing(scopes, LoadBalancingMode.FAILOVER)


def place(region: str, zone: str = "", subzone: str = "") -> Locality:
    return Locality(region, zone, subzone)


def test_without_a_mode_every_endpoint_is_chosen_by_some_draw() -> None:
    assert chosen(LoadBalancing((Scope.NODE,)), endpoint("a", node="n1"), endpoint("b")) == {"a", "b"}


class TestStrict:
    def test_only_endpoints_that_share_every_scope_count(self) -> None:
        endpoints = [
            endpoint("a", node="n1", cluster_id="c1"),
            endpoint("b", node="n1", cluster_id="c2"),
            endpoint("c", node="n2", cluster_id="c1"),
        ]
        assert chosen(strict(Scope.NODE, Scope.CLUSTER), *endpoints) == {"a"}
        assert chosen(strict(Scope.NODE), *endpoints) == {"a", "b"}

    def test_without_such_an_endpoint_there_is_none(self) -> None:
        with pytest.raises(RefusalError) as caught:
            chosen(strict(Scope.NODE), endpoint("a", node="n2"))
        assert caught.value.reason is Reason.NO_HEALTHY_UPSTREAM


class TestFailover:
    ENDPOINTS = (
        endpoint("a", locality=place("r1", "z1", "s1")),
        endpoint("b", locality=place("r1", "z1", "s2")),
        endpoint("c", locality=place("r1", "z2", "s1")),
        endpoint("d", locality=place("r2", "z1", "s1")),
    )
    SCOPES = (Scope.REGION, Scope.ZONE, Scope.SUBZONE)

    @pytest.mark.parametrize(("gone", "expected"), [("", "a"), ("a", "b"), ("ab", "c"), ("abc", "d")])
    def test_those_that_share_most_leading_scopes_are_chosen(self, gone: str, expected: str) -> None:
        rest = [each for each in self.ENDPOINTS if each.name not in gone]
        assert chosen(failover(*self.SCOPES), *rest) == {expected}

    def test_the_count_ends_at_the_first_scope_that_is_not_shared(self) -> None:
        other_region, other_zone = (
            endpoint("a", locality=place("r2", "z1")),
            endpoint("b", locality=place("r2")),
        )
        assert chosen(failover(Scope.REGION, Scope.ZONE), other_region, other_zone) == {"a", "b"}

    def test_all_of_the_best_rank_share_the_connections(self) -> None:
        twins = [endpoint("a", locality=place("r1")), endpoint("b", locality=place("r1"))]
        assert chosen(failover(Scope.REGION), *twins, endpoint("c")) == {"a", "b"}

    def test_a_first_scope_of_network_does_not_hide_the_others(self) -> None:
        near, far = endpoint("a", locality=place("r1")), endpoint("b", locality=place("r2"))
        assert chosen(failover(Scope.NETWORK, Scope.REGION), near, far) == {"a"}


class TestWeights:
    def test_capacity_is_the_share(self) -> None:
        s = snapshot(service("s"), endpoint("a", capacity=1), endpoint("b", capacity=3))
        svc = s.service(SVC)
        assert svc is not None
        names = [choose_endpoint(svc, 80, CLIENT, "", s, i / 100).workload.name for i in range(100)]
        assert (names.count("a"), names.count("b")) == (25, 75)

    def test_an_endpoint_without_capacity_gets_nothing(self) -> None:
        assert chosen(LoadBalancing(), endpoint("a", capacity=0), endpoint("b")) == {"b"}
        with pytest.raises(RefusalError):
            chosen(LoadBalancing(), endpoint("a", capacity=0))

    @settings(deadline=None)
    @given(st.lists(st.integers(0, 2**32 - 1), max_size=20), st.floats(0, 1, exclude_max=True))
    def test_every_draw_falls_on_an_index_with_a_weight(self, weights: list[int], draw: float) -> None:
        index = weighted(weights, draw)
        if sum(weights) == 0:
            assert index is None
        else:
            assert index is not None
            assert weights[index] > 0
