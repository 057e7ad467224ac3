"""Services to endpoints, to ClusterIP rules and to names."""

import re
from ipaddress import IPv4Network, IPv6Network, ip_address

from daemonset.local.dnsnames import etc_hosts, hosts_file, marker, resolv_conf
from daemonset.local.endpoints import Backend, PodEndpoint, PortBackends, backends
from daemonset.local.nameserver import has_answer, question
from daemonset.local.ruleset import ruleset
from daemonset.local.servicespec import ServicePort, ServiceSpec, SliceSpec, parse_service, parse_slice

REFUSE = ([IPv4Network("10.96.0.0/16")], [IPv6Network("fd00::/112")])


def pod(name: str, ready: bool = True, node: str = "a", **labels: str) -> PodEndpoint:
    number = int(name[1:])
    addresses = (f"10.1.0.{number}", f"fd01::{number}")
    return PodEndpoint("ns", name, labels or {"app": "web"}, node, addresses, ready, {"http": 8000 + number})


def service(**spec: object) -> ServiceSpec:
    return parse_service(
        "ns", "web", {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}], **spec}
    )


IPS = {("ns", "web"): ("10.96.0.20",)}


def test_backends_are_the_ready_pods_that_the_selector_finds() -> None:
    pods = [pod("p1"), pod("p2", ready=False), pod("p3", app="other")]
    (found,) = backends([service()], IPS, pods, [])
    assert found.backends == (Backend("10.1.0.1", 8001, "a"),)


def test_pods_of_other_namespaces_are_not_selected() -> None:
    stranger = PodEndpoint("elsewhere", "p9", {"app": "web"}, "a", ("10.1.0.9",), True, {"http": 1})
    assert backends([service()], IPS, [stranger], [])[0].backends == ()


def test_not_ready_pods_count_if_published_anyway() -> None:
    assert backends([service(publishNotReadyAddresses=True)], IPS, [pod("p1", ready=False)], [])[0].backends


def test_pod_without_the_named_port_is_left_out() -> None:
    nameless = PodEndpoint("ns", "p9", {"app": "web"}, "a", ("10.1.0.9",), True, {})
    assert [b.address for b in backends([service()], IPS, [nameless, pod("p1")], [])[0].backends] == [
        "10.1.0.1"
    ]


def test_each_family_has_backends_of_its_own_family() -> None:
    both = {("ns", "web"): ("10.96.0.20", "fd00::20")}
    for found in backends([service(ipFamilyPolicy="RequireDualStack")], both, [pod("p1")], []):
        assert {ip_address(b.address).version for b in found.backends} == {ip_address(found.address).version}


def test_service_without_selector_takes_its_slices() -> None:
    given = parse_slice(
        "ns",
        {
            "metadata": {"labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["192.0.2.1"]},
                {"addresses": ["192.0.2.2"], "conditions": {"ready": False}},
            ],
            "ports": [{"port": 9000}],
        },
    )
    assert isinstance(given, SliceSpec)
    (found,) = backends([service(selector=None)], IPS, [], [given])
    assert found.backends == (Backend("192.0.2.1", 9000),)


def behind(*found: Backend, local: bool = False, address: str = "10.96.0.20") -> PortBackends:
    return PortBackends(("ns", "web"), address, ServicePort(80, 80), found, local)


def test_rules_spread_over_all_backends_of_a_service_port() -> None:
    text = ruleset([behind(Backend("10.1.0.1", 8001), Backend("10.1.0.2", 8002))], "a", REFUSE)
    assert "numgen random mod 2 map { 0 : 10.1.0.1 . 8001, 1 : 10.1.0.2 . 8002 }" in text
    (chain,) = re.findall(r"10\.96\.0\.20 \. tcp \. 80 : goto (\S+)", text)
    assert f"chain {chain} {{" in text


def test_rules_replace_the_whole_table_at_once() -> None:
    text = ruleset([], "a", REFUSE)
    assert text.startswith(
        "add table inet ambientlite\ndelete table inet ambientlite\ntable inet ambientlite {\n"
    )
    assert text.endswith("}\n")


def test_service_without_backends_is_not_dispatched_but_refused() -> None:
    text = ruleset([behind()], "a", REFUSE)
    assert "goto" not in text
    assert "elements = { 10.96.0.0/16 }" in text
    assert "reject with tcp reset" in text


def test_ipv6_backends_are_written_with_brackets() -> None:
    assert "dnat ip6 to [fd01::1]:80" in ruleset(
        [behind(Backend("fd01::1", 80), address="fd00::20")], "a", REFUSE
    )


def test_node_local_service_uses_the_nodes_own_pods_only() -> None:
    port = behind(Backend("10.1.0.1", 80, "a"), Backend("10.1.0.2", 80, "b"), local=True)
    assert "dnat ip to 10.1.0.1:80" in ruleset([port], "a", REFUSE)
    assert "goto" not in ruleset([port], "c", REFUSE)


def test_chains_of_different_ports_and_addresses_have_different_names() -> None:
    ports = [
        PortBackends(
            ("ns", "web"), address, ServicePort(number, 80, protocol=protocol), (Backend("10.1.0.1", 80),)
        )
        for address in ("10.96.0.20", "10.96.0.21")
        for number in (80, 81)
        for protocol in ("TCP", "UDP")
    ]
    assert len(set(re.findall(r"goto (\S+?)[,\s]", ruleset(ports, "a", REFUSE)))) == 8


def lines(*services: ServiceSpec, pods: tuple[PodEndpoint, ...] = ()) -> set[str]:
    return set(hosts_file(services, IPS, pods, (ip_address("172.30.0.1"),), 7).splitlines())


def test_services_have_names_and_so_has_the_control_plane() -> None:
    assert lines(service()) == {
        f"127.0.0.1 {marker(7)}",
        "172.30.0.1 istiod.istio-system.svc.cluster.local",
        "10.96.0.20 web.ns.svc.cluster.local",
    }


def test_headless_service_names_its_ready_pods_in_its_families() -> None:
    headless = parse_service("ns", "all", {"clusterIP": "None", "selector": {"app": "web"}, "ports": []})
    named = PodEndpoint("ns", "p3", {"app": "web"}, "a", ("10.1.0.3",), True, {}, "db-0", "all")
    found = lines(headless, pods=(pod("p1"), pod("p2", ready=False), named))
    assert {x for x in found if "all" in x} == {
        "10.1.0.1 all.ns.svc.cluster.local",
        "10.1.0.3 all.ns.svc.cluster.local",
        "10.1.0.3 db-0.all.ns.svc.cluster.local",
    }


def test_resolv_conf_searches_as_on_kubernetes() -> None:
    assert resolv_conf("ns", [ip_address("10.96.0.10")]) == (
        "search ns.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
    )


def test_etc_hosts_names_the_pod_and_its_aliases() -> None:
    text = etc_hosts("p", ["10.1.0.1"], [{"ip": "192.0.2.9", "hostnames": ["x", "y"]}])
    assert "10.1.0.1 p\n" in text
    assert "192.0.2.9 x y\n" in text


def test_dns_question_and_answer() -> None:
    query = question("a.bc", 5)
    assert query[12:18] == b"\x01a\x02bc\x00"
    assert not has_answer(query, 5)
    answer = query[:2] + b"\x81\x80" + query[4:6] + b"\0\1" + query[8:]
    assert has_answer(answer, 5)
    assert not has_answer(answer, 6)
    assert not has_answer(b"")
