"""Services and service entries: Istio's rules, one case each."""

from __future__ import annotations

import pytest

from istiodlite.api import workload_pb2 as pb
from tests.unit.istiodlite.mesh import WEB_HOST, WEB_POD, WEB_SERVICE, WEB_UID, Mesh, ports

LB = pb.LoadBalancing
CLOSE = [LB.NETWORK, LB.REGION, LB.ZONE]


def test_the_worked_example_of_a_service() -> None:
    gateway = """
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: IPAddress, value: 10.96.0.99},
                     {type: Hostname, value: waypoint.shop.svc.cluster.local}]}
"""
    service = WEB_SERVICE.replace("name: web,", "name: web, labels: {istio.io/use-waypoint: waypoint},")
    hostname = pb.NamespacedHostname(namespace="shop", hostname="waypoint.shop.svc.cluster.local")
    assert Mesh(service, gateway).services == {
        WEB_HOST: pb.Service(
            name="web",
            namespace="shop",
            hostname="web.shop.svc.cluster.local",
            addresses=[pb.NetworkAddress(address=bytes([10, 96, 0, 10]))],
            ports=[pb.Port(service_port=80, target_port=0, app_protocol=pb.HTTP11)],
            ip_families=pb.IPV4_ONLY,
            canonical=True,
            waypoint=pb.GatewayAddress(hostname=hostname, hbone_mtls_port=15008),
        )
    }


def test_a_headless_service_has_no_address_and_its_pods_are_members() -> None:
    mesh = Mesh(WEB_POD, WEB_SERVICE.replace("10.96.0.10", "None"))
    assert not mesh.services[WEB_HOST].addresses
    assert ports(mesh.workloads[WEB_UID], WEB_HOST) == [(80, 8080)]


def test_an_external_name_service_is_not_sent() -> None:
    mesh = Mesh(WEB_POD, WEB_SERVICE.replace("spec:", "spec:\n  type: ExternalName"))
    assert not mesh.services
    assert not mesh.workloads[WEB_UID].services


def test_udp_ports_are_listed() -> None:
    mesh = Mesh(WEB_SERVICE.replace("[{name", "[{name: dns, port: 53, protocol: UDP}, {name"))
    port = mesh.services[WEB_HOST].ports[0]
    assert (port.service_port, port.app_protocol) == (53, pb.UNKNOWN)


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ("name: http, port: 1", pb.HTTP11),
        ("name: http-web, port: 1", pb.HTTP11),
        ("name: http2, port: 1", pb.HTTP2),
        ("name: grpc-api, port: 1", pb.GRPC),
        ("name: https, port: 1", pb.TLS),
        ("name: tls-x, port: 1", pb.TLS),
        ("name: tcp, port: 1", pb.TCP),
        ("name: web, port: 1", pb.UNKNOWN),
        ("name: tcp, port: 1, appProtocol: kubernetes.io/h2c", pb.HTTP2),
        ("name: http, port: 1, appProtocol: grpc", pb.GRPC),
        ("port: 1", pb.UNKNOWN),
    ],
)
def test_the_protocol_comes_from_app_protocol_then_from_the_name(port: str, expected: int) -> None:
    mesh = Mesh(WEB_SERVICE.replace("name: http, port: 80, targetPort: http", port))
    assert mesh.services[WEB_HOST].ports[0].app_protocol == expected


@pytest.mark.parametrize(
    ("families", "expected"),
    [("[IPv4]", pb.IPV4_ONLY), ("[IPv6]", pb.IPV6_ONLY), ("[IPv6, IPv4]", pb.DUAL), ("[]", pb.AUTOMATIC)],
)
def test_address_families(families: str, expected: int) -> None:
    mesh = Mesh(WEB_SERVICE.replace("[IPv4]", families))
    assert mesh.services[WEB_HOST].ip_families == expected


@pytest.mark.parametrize(
    ("spec", "mode", "scopes", "health"),
    [
        ("internalTrafficPolicy: Local", LB.STRICT, [LB.NODE], LB.ONLY_HEALTHY),
        ("trafficDistribution: PreferClose", LB.FAILOVER, CLOSE, LB.ONLY_HEALTHY),
        ("trafficDistribution: PreferSameZone", LB.FAILOVER, CLOSE, LB.ONLY_HEALTHY),
        ("trafficDistribution: PreferSameNode", LB.FAILOVER, [*CLOSE, LB.SUBZONE, LB.NODE], LB.ONLY_HEALTHY),
        ("publishNotReadyAddresses: true", LB.UNSPECIFIED_MODE, [], LB.ALLOW_ALL),
        (
            "trafficDistribution: PreferClose\n  publishNotReadyAddresses: true",
            LB.FAILOVER,
            CLOSE,
            LB.ALLOW_ALL,
        ),
    ],
)
def test_load_balancing(spec: str, mode: int, scopes: list[int], health: int) -> None:
    balancing = Mesh(WEB_SERVICE.replace("spec:", f"spec:\n  {spec}")).services[WEB_HOST].load_balancing
    assert (balancing.mode, list(balancing.routing_preference), balancing.health_policy) == (
        mode,
        scopes,
        health,
    )


def test_no_traffic_distribution_means_no_load_balancing_message() -> None:
    for text in (WEB_SERVICE, WEB_SERVICE.replace("spec:", "spec:\n  trafficDistribution: Any")):
        assert not Mesh(text).services[WEB_HOST].HasField("load_balancing")


def test_the_health_policy_of_one_service_does_not_leak_into_another() -> None:
    close = WEB_SERVICE.replace("spec:", "spec:\n  trafficDistribution: PreferClose")
    other = close.replace("name: web,", "name: other,").replace("10.96.0.10", "10.96.0.11")
    mesh = Mesh(close.replace("spec:", "spec:\n  publishNotReadyAddresses: true"), other)
    balancing = mesh.services["shop/other.shop.svc.cluster.local"].load_balancing
    assert balancing.health_policy == LB.ONLY_HEALTHY


def test_the_annotation_of_the_service_beats_that_of_its_namespace() -> None:
    key = "networking.istio.io/traffic-distribution"
    namespace = f"kind: Namespace\nmetadata: {{name: shop, annotations: {{{key}: PreferSameNode}}}}"
    mesh = Mesh(WEB_SERVICE)
    assert mesh.apply(namespace) == {WEB_HOST}
    assert LB.NODE in mesh.services[WEB_HOST].load_balancing.routing_preference
    mesh.apply(WEB_SERVICE.replace("name: web,", f"name: web, annotations: {{{key}: PreferClose}},"))
    assert list(mesh.services[WEB_HOST].load_balancing.routing_preference) == CLOSE


def entry(spec: str, name: str = "ext", namespace: str = "shop", extra: str = "") -> str:
    return (
        f"kind: ServiceEntry\nmetadata: {{name: {name}, namespace: {namespace}{extra}}}\n"
        f"spec:\n  ports: [{{number: 443, name: tls, protocol: TLS}}]\n{spec}"
    )


def test_an_entry_is_one_service_a_host() -> None:
    mesh = Mesh(entry("  hosts: [a.example.com, b.example.com]\n  resolution: DNS\n"))
    assert set(mesh.services) == {"shop/a.example.com", "shop/b.example.com"}
    assert {one.hostname for one in mesh.workloads.values()} == {"a.example.com", "b.example.com"}
    uid = "Kubernetes/networking.istio.io/ServiceEntry/shop/ext/a.example.com"
    assert ports(mesh.workloads[uid], "shop/a.example.com") == [(443, 443)]


def test_an_entry_without_resolution_keeps_the_clients_destination() -> None:
    service = Mesh(entry("  hosts: [a.example.com]\n  addresses: [192.0.2.0/24]\n")).services[
        "shop/a.example.com"
    ]
    assert service.load_balancing == LB(mode=LB.PASSTHROUGH, health_policy=LB.ALLOW_ALL)
    assert service.ports[0] == pb.Port(service_port=443, target_port=443, app_protocol=pb.TLS)


def test_a_cidr_is_masked_and_has_its_length_and_a_full_length_one_is_an_address() -> None:
    text = "  hosts: [a.example.com]\n  addresses: [192.0.2.77/24, 198.51.100.1/32, 198.51.100.2]\n"
    mesh = Mesh(entry(text))
    addresses = mesh.services["shop/a.example.com"].addresses
    assert [(a.address, a.HasField("length"), a.length) for a in addresses] == [
        (bytes([192, 0, 2, 0]), True, 24),
        (bytes([198, 51, 100, 1]), False, 0),
        (bytes([198, 51, 100, 2]), False, 0),
    ]
    resource = next(one for one in mesh.registry.resources.values() if one.name == "shop/a.example.com")
    assert resource.aliases == ("/192.0.2.0/24", "/198.51.100.1", "/198.51.100.2")


def test_allocated_addresses_go_to_their_host_unless_the_user_gave_some() -> None:
    status = "status: {addresses: [{value: 240.240.0.1, host: a.example.com}, {value: 240.240.0.2, host: b.example.com}]}\n"
    hosts = "  hosts: [a.example.com, b.example.com]\n  resolution: DNS\n"
    services = Mesh(entry(hosts) + status).services
    assert services["shop/b.example.com"].addresses[0].address == bytes([240, 240, 0, 2])
    services = Mesh(entry(hosts + "  addresses: [192.0.2.1]\n") + status).services
    assert services["shop/b.example.com"].addresses[0].address == bytes([192, 0, 2, 1])
    services = Mesh(entry(hosts.replace("DNS", "NONE")) + status).services
    assert not services["shop/a.example.com"].addresses


def test_a_wildcard_that_only_a_waypoint_resolves_is_a_workload_by_its_name() -> None:
    mesh = Mesh(entry('  hosts: ["*.example.com"]\n  resolution: DYNAMIC_DNS\n'))
    assert set(mesh.services) == {"shop/*.example.com"}
    (workload,) = mesh.workloads.values()
    assert (workload.hostname, list(workload.addresses)) == ("*.example.com", [])


def test_a_wildcard_that_dns_could_not_resolve_has_no_workload() -> None:
    mesh = Mesh(entry('  hosts: ["*.example.com"]\n  resolution: STATIC\n'))
    assert set(mesh.services) == {"shop/*.example.com"}
    assert not mesh.workloads


def test_inline_endpoints_override_port_network_locality_weight_and_account() -> None:
    endpoint = (
        "{address: 192.0.2.9, ports: {tls: 8443}, network: n, locality: r/z, weight: 3, serviceAccount: x}"
    )
    mesh = Mesh(entry(f"  hosts: [a.example.com]\n  resolution: STATIC\n  endpoints: [{endpoint}]\n"))
    workload = mesh.workloads["Kubernetes/networking.istio.io/ServiceEntry/shop/ext/192.0.2.9"]
    assert ports(workload, "shop/a.example.com") == [(443, 8443)]
    assert (workload.network, workload.capacity.value, workload.service_account) == ("n", 3, "x")
    assert workload.locality == pb.Locality(region="r", zone="z")


def test_an_entry_selects_pods_by_label_and_matches_ports_by_name() -> None:
    text = "  hosts: [a.example.com]\n  resolution: STATIC\n  workloadSelector: {labels: {app: web}}\n"
    named = entry(text).replace("name: tls", "name: http")
    assert ports(Mesh(WEB_POD, named).workloads[WEB_UID], "shop/a.example.com") == [(443, 8080)]
    numbered = entry(text).replace("protocol: TLS", "protocol: TLS, targetPort: 9")
    assert ports(Mesh(WEB_POD, numbered).workloads[WEB_UID], "shop/a.example.com") == [(443, 9)]
    assert ports(Mesh(WEB_POD, entry(text)).workloads[WEB_UID], "shop/a.example.com") == [(443, 443)]


def test_of_two_entries_with_a_host_in_one_namespace_the_oldest_defines_it() -> None:
    young = entry(
        "  hosts: [a.example.com]\n  resolution: DNS\n", "a-young", extra=", creationTimestamp: '2026'"
    )
    old = entry("  hosts: [a.example.com]\n  resolution: DNS\n", "z-old", extra=", creationTimestamp: '2025'")
    mesh = Mesh(young)
    assert mesh.services["shop/a.example.com"].name == "a-young"
    mesh.apply(old)
    assert mesh.services["shop/a.example.com"].name == "z-old"
    assert [uid.split("/")[-2] for uid in mesh.workloads] == ["z-old"]
    mesh.remove("ServiceEntry", "shop", "z-old")
    assert mesh.services["shop/a.example.com"].name == "a-young"


def test_the_same_host_in_two_namespaces_is_two_services_and_one_is_canonical() -> None:
    mesh = Mesh(
        entry("  hosts: [a.example.com]\n", namespace="one", extra=", creationTimestamp: '2026'"),
        entry("  hosts: [a.example.com]\n", namespace="two", extra=", creationTimestamp: '2025'"),
    )
    assert {name: one.canonical for name, one in mesh.services.items()} == {
        "one/a.example.com": False,
        "two/a.example.com": True,
    }


def test_a_kubernetes_service_beats_an_entry_of_its_host() -> None:
    same = entry("  hosts: [web.shop.svc.cluster.local]\n")
    elsewhere = entry("  hosts: [web.shop.svc.cluster.local]\n", namespace="other")
    mesh = Mesh(same, elsewhere)
    assert mesh.services[WEB_HOST].name == "ext"
    mesh.apply(WEB_SERVICE)
    assert mesh.services[WEB_HOST].name == "web"
    assert not mesh.services["other/web.shop.svc.cluster.local"].canonical


def test_subject_alt_names_are_copied() -> None:
    mesh = Mesh(entry("  hosts: [a.example.com]\n  subjectAltNames: [spiffe://x/ns/a/sa/b]\n"))
    assert list(mesh.services["shop/a.example.com"].subject_alt_names) == ["spiffe://x/ns/a/sa/b"]


def test_a_deleted_service_is_removed_and_its_pods_change() -> None:
    mesh = Mesh(WEB_POD, WEB_SERVICE)
    assert mesh.remove("Service", "shop", "web") == {f"-{WEB_HOST}", WEB_UID}
    assert not mesh.workloads[WEB_UID].services
