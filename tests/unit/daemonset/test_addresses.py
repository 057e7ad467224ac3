"""Ranges and allocation."""

from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemonset.local.addresses import MESHES, NODES, Address, RangeExhausted, Ranges, next_free, next_number
from daemonset.local.allocate import AddressConflict, cluster_ips
from daemonset.local.servicespec import ServiceSpec, parse_service


def test_ranges_of_meshes_nodes_and_services_never_overlap() -> None:
    networks = []
    for index in (0, 1, MESHES - 1):
        ranges = Ranges(index)
        networks += [ranges.nodes[0], ranges.services[0], ranges.pods(1)[0], ranges.pods(NODES)[0]]
        networks += [ranges.nodes[1], ranges.services[1], ranges.pods(1)[1], ranges.pods(NODES)[1]]
    for a, b in combinations(networks, 2):
        assert not a.overlaps(b) if a.version == b.version else True


def test_nodes_and_fabric_have_different_addresses() -> None:
    ranges = Ranges(3)
    addresses = [ranges.fabric, *(ranges.node(n) for n in range(1, NODES + 1))]
    assert len(set(addresses)) == NODES + 1
    assert all(v4 in ranges.nodes[0] and v6 in ranges.nodes[1] for v4, v6 in addresses)


def test_index_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="mesh index"):
        Ranges(MESHES)


NETWORK = IPv4Network("10.1.2.0/28")


@given(st.sets(st.integers(0, 15)), st.none() | st.integers(0, 15))
def test_next_free_is_free_inside_and_never_reserved(taken: set[int], after: int | None) -> None:
    used: set[Address] = {NETWORK[i] for i in taken}
    possible = {NETWORK[i] for i in range(2, 15)} - used
    last = None if after is None else NETWORK[after]
    if possible:
        assert next_free(NETWORK, used, last) in possible
    else:
        with pytest.raises(RangeExhausted):
            next_free(NETWORK, used, last)


def test_freed_address_is_taken_again_last() -> None:
    last: Address | None = None
    given_out = []
    for _ in range(13):
        last = next_free(NETWORK, (), last)
        given_out.append(last)
    assert len(set(given_out)) == 13
    assert next_free(NETWORK, (), last) == given_out[0] == IPv4Address("10.1.2.2")


def test_next_number_fills_gaps() -> None:
    assert next_number({1, 3}, 5) == 2
    assert next_number({1, 2}, 2) is None


def service(name: str, **spec: object) -> ServiceSpec:
    return parse_service("ns", name, {"ports": [{"port": 80}], **spec})


def test_cluster_ips_are_distinct_and_of_the_families_asked_for() -> None:
    services = [
        service("a"),
        service("b", ipFamilyPolicy="RequireDualStack"),
        service("c", ipFamilies=["IPv6"]),
    ]
    got = cluster_ips(services, {}, Ranges(0))
    versions = {name: [ip_address(a).version for a in got["ns", name]] for name in "abc"}
    assert versions == {"a": [4], "b": [4, 6], "c": [6]}
    everything = [a for addresses in got.values() for a in addresses]
    assert len(everything) == len(set(everything))


def test_services_keep_their_addresses() -> None:
    first = cluster_ips([service("a"), service("b")], {}, Ranges(0))
    second = cluster_ips([service("c"), service("b")], first, Ranges(0))
    assert second["ns", "b"] == first["ns", "b"]
    assert second["ns", "c"] != first["ns", "b"]


def test_requested_address_is_given_even_if_another_service_had_it() -> None:
    first = cluster_ips([service("a")], {}, Ranges(0))
    wanted = first["ns", "a"][0]
    second = cluster_ips([service("a"), service("b", clusterIP=wanted)], first, Ranges(0))
    assert second["ns", "b"] == (wanted,)
    assert second["ns", "a"] != (wanted,)


def test_headless_and_external_services_get_none() -> None:
    services = [service("a", clusterIP="None"), service("b", type="ExternalName", externalName="x.y")]
    assert cluster_ips(services, {}, Ranges(0)) == {}


@pytest.mark.parametrize(
    "address", ["10.96.0.10", "172.30.0.5", "10.160.3.4", "127.0.0.1", "fd00:a1e5::1:0:0:5"]
)
def test_addresses_with_another_use_are_refused(address: str) -> None:
    with pytest.raises(AddressConflict, match=address):
        cluster_ips([service("a", clusterIP=address)], {}, Ranges(0))


def test_services_range_is_part_of_the_refused_ipv6_range_but_usable() -> None:
    address = str(Ranges(0).services[1][99])
    assert ip_network(address).subnet_of(Ranges(0).all_pods[1])  # type: ignore[arg-type]
    assert cluster_ips([service("a", clusterIP=address)], {}, Ranges(0))["ns", "a"] == (address,)
