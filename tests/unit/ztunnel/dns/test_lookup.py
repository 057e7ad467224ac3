"""What the mesh knows under a name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.state.builders import service, snapshot, workload
from ztunnel.dns.lookup import Client, Match, Names, addresses_of
from ztunnel.state.model import (
    HealthPolicy,
    IPFamilies,
    LoadBalancing,
    LoadBalancingMode,
    Scope,
    Service,
    Visibility,
    Workload,
)
from ztunnel.state.snapshot import Snapshot

NAMES = Names("cluster.local")
CLIENT = Client("ns", "", workload("client", node="n1"))


def named(name: str, *vips: str, namespace: str = "ns", **fields: Any) -> Service:
    """A Kubernetes Service."""
    return service(
        name, *vips, namespace=namespace, hostname=f"{name}.{namespace}.svc.cluster.local", **fields
    )


def entry(host: str, *vips: str, **fields: Any) -> Service:
    """A ServiceEntry's host."""
    return service("entry", *vips, hostname=host, **fields)


def endpoint(name: str, *ips: str, of: str = "db.ns.svc.cluster.local", **fields: Any) -> Workload:
    return workload(name, *ips, services={f"ns/{of}": {}}, **fields)


def find(name: str, mesh: Snapshot, client: Client = CLIENT, names: Names = NAMES) -> Match | None:
    return names.find(name, client, mesh)


def told(
    name: str, mesh: Snapshot, version: int = 4, client: Client = CLIENT, draw: float = 0.0
) -> list[str]:
    found = find(name, mesh, client)
    assert found is not None, name
    return [str(ip) for ip in addresses_of(found, version, client, mesh, draw)]


WEB = snapshot(named("web", "10.96.0.1/32", "fd00::1/128"), named("web", "10.96.0.2/32", namespace="bar"))


@pytest.mark.parametrize("name", ["web", "web.ns", "web.ns.svc", "web.ns.svc.cluster.local"])
def test_service_is_known_by_every_form_of_its_name(name: str) -> None:
    assert told(name, WEB) == ["10.96.0.1"]
    assert told(name, WEB, 6) == ["fd00::1"]


def test_other_namespaces_service_needs_its_namespace() -> None:
    assert told("web.bar", WEB) == ["10.96.0.2"]
    assert told("web", WEB, client=Client("bar", "")) == ["10.96.0.2"]
    assert find("web", WEB, Client("third", "")) is None


@pytest.mark.parametrize(
    "name", ["nobody", "web.ns.svc.cluster.localx", "ns.svc.cluster.local", "svc", "local"]
)
def test_unknown_name_is_left_to_the_name_server(name: str) -> None:
    assert find(name, WEB) is None


def test_name_exists_though_it_has_no_address_of_that_family() -> None:
    assert told("web.bar", WEB, 6) == []


class TestServiceEntry:
    MESH = snapshot(entry("api.example.com", "240.240.0.1/32"), entry("bare.example.com"))

    def test_is_answered_by_its_own_address(self) -> None:
        found = find("api.example.com", self.MESH)
        assert found == Match("api.example.com", found.service) if found else False
        assert told("api.example.com", self.MESH) == ["240.240.0.1"]

    def test_without_an_address_is_left_to_the_name_server(self) -> None:
        assert find("bare.example.com", self.MESH) is None

    def test_behind_a_search_domain_is_an_alias(self) -> None:
        found = find("api.example.com.ns.svc.cluster.local", self.MESH)
        assert found is not None
        assert (found.alias, found.host) == (True, "api.example.com")

    def test_only_with_blocks_has_nothing_to_tell(self) -> None:
        assert told("cidr.example.com", snapshot(entry("cidr.example.com", "10.1.0.0/16"))) == []


class TestWildcard:
    MESH = snapshot(
        entry("*.example.com", "240.0.0.1/32"),
        entry("*.b.example.com", "240.0.0.2/32"),
        entry("x.example.com", "240.0.0.3/32"),
    )

    def test_most_specific_wins_and_exact_beats_all(self) -> None:
        assert told("a.example.com", self.MESH) == ["240.0.0.1"]
        assert told("a.b.example.com", self.MESH) == ["240.0.0.2"]
        assert told("a.a.b.example.com", self.MESH) == ["240.0.0.2"]
        assert told("x.example.com", self.MESH) == ["240.0.0.3"]

    def test_does_not_cover_its_own_base(self) -> None:
        assert find("example.com", self.MESH) is None

    def test_is_never_an_alias(self) -> None:
        found = find("a.example.com.ns.svc.cluster.local", self.MESH)
        assert found is not None
        assert (found.wildcard, found.alias) == (True, False)


class TestChoice:
    def test_own_namespace_then_canonical_then_preferred_then_first(self) -> None:
        services = {
            name: entry("api.example.com", f"240.0.0.{number}/32", namespace=name, canonical=name == "canon")
            for number, name in enumerate(("a", "canon", "liked", "ns"), 1)
        }
        everyone = [*services]
        for best, left in (
            ("ns", everyone),
            ("canon", everyone[:3]),
            ("liked", ["a", "liked"]),
            ("a", ["a"]),
        ):
            found = find(
                "api.example.com",
                snapshot(*(services[each] for each in left)),
                names=Names("cluster.local", "liked"),
            )
            assert found is not None
            assert found.service.namespace == best

    def test_hidden_service_of_another_namespace_is_left_to_the_name_server(self) -> None:
        mesh = snapshot(
            entry("api.example.com", "240.0.0.1/32", namespace="other", visibility=Visibility.NAMESPACE)
        )
        assert find("api.example.com", mesh) is None
        assert find("api.example.com", mesh, Client("other", "")) is not None

    def test_addresses_of_other_networks_are_not_told(self) -> None:
        mesh = snapshot(named("web", "10.96.0.1/32", network="far"))
        assert told("web", mesh) == []
        assert told("web", mesh, client=Client("ns", "far")) == ["10.96.0.1"]

    def test_family_of_the_service_decides(self) -> None:
        mesh = snapshot(named("web", "10.96.0.1/32", "fd00::1/128", ip_families=IPFamilies.IPV4_ONLY))
        assert (told("web", mesh), told("web", mesh, 6)) == (["10.96.0.1"], [])


class TestHeadless:
    MESH = snapshot(
        named("db"),
        endpoint("db-0", "10.0.0.1", "fd00::1"),
        endpoint("db-1", "10.0.0.2"),
        endpoint("db-2", "10.0.0.3", healthy=False),
        endpoint("far", "10.0.0.4", network="far"),
    )

    def test_is_its_healthy_endpoints_here(self) -> None:
        assert told("db", self.MESH) == ["10.0.0.1", "10.0.0.2"]
        assert told("db", self.MESH, 6) == ["fd00::1"]

    def test_draw_turns_the_order(self) -> None:
        orders = {tuple(told("db", self.MESH, draw=number / 8)) for number in range(8)}
        assert orders == {("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1")}

    def test_without_endpoints_exists_all_the_same(self) -> None:
        assert told("db", snapshot(named("db"))) == []

    def test_unhealthy_ones_are_told_where_the_service_wants_it(self) -> None:
        balancing = LoadBalancing(health_policy=HealthPolicy.ALLOW_ALL)
        mesh = snapshot(named("db", load_balancing=balancing), endpoint("db-2", "10.0.0.3", healthy=False))
        assert told("db", mesh) == ["10.0.0.3"]

    def test_near_ones_come_first_where_the_service_wants_it(self) -> None:
        balancing = LoadBalancing((Scope.NODE,), LoadBalancingMode.FAILOVER)
        pods = [endpoint(f"db-{n}", f"10.0.0.{n}", node="n1" if n == 3 else "n2") for n in range(1, 5)]
        mesh = snapshot(named("db", load_balancing=balancing), *pods)
        assert {told("db", mesh, draw=number / 8)[0] for number in range(8)} == {"10.0.0.3"}

    @pytest.mark.parametrize("name", ["db-1.db", "db-1.db.ns.svc", "db-1.db.ns.svc.cluster.local"])
    def test_its_pods_have_names(self, name: str) -> None:
        assert told(name, self.MESH) == ["10.0.0.2"]

    def test_pod_it_does_not_have_is_left_to_the_name_server(self) -> None:
        assert find("db-7.db.ns.svc.cluster.local", self.MESH) is None
        assert find("db-2.db.ns.svc.cluster.local", self.MESH) is None
        assert (
            find(
                "web-0.web.ns.svc.cluster.local",
                snapshot(
                    named("web", "10.96.0.1/32"), endpoint("web-0", "10.0.0.9", of="web.ns.svc.cluster.local")
                ),
            )
            is None
        )
