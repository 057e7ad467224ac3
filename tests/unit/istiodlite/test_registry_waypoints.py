"""Attachment to waypoints: precedence, refusals, traffic types, canaries."""

from __future__ import annotations

import pytest

from tests.unit.istiodlite.mesh import WEB_HOST, WEB_POD, WEB_SERVICE, WEB_UID, Mesh

BOUND = "istio.io/WaypointBound"


def gateway(
    name: str = "wp",
    namespace: str = "shop",
    *,
    labels: str = "",
    routes: str = "",
    addresses: str = "[{type: Hostname, value: HOST}]",
    class_name: str = "istio-waypoint",
) -> str:
    addresses = addresses.replace("HOST", f"{name}.{namespace}.svc.cluster.local")
    return f"""
kind: Gateway
metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}
spec:
  gatewayClassName: {class_name}
  listeners: [{{name: mesh, port: 15008, protocol: HBONE{routes}}}]
status: {{addresses: {addresses}}}
"""


def labelled(text: str, labels: str) -> str:
    if "labels: {" in text:
        return text.replace("labels: {", f"labels: {{{labels}, ", 1)
    return text.replace("metadata: {", f"metadata: {{labels: {{{labels}}}, ", 1)


def namespace(labels: str, name: str = "shop", annotations: str = "") -> str:
    return (
        f"kind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}, annotations: {{{annotations}}}}}"
    )


def of_service(mesh: Mesh) -> str:
    return mesh.services[WEB_HOST].waypoint.hostname.hostname.partition(".")[0]


def of_pod(mesh: Mesh) -> str:
    return mesh.workloads[WEB_UID].waypoint.hostname.hostname.partition(".")[0]


def test_a_label_of_the_namespace_attaches_services_and_not_workloads() -> None:
    mesh = Mesh(WEB_POD, WEB_SERVICE, gateway())
    assert mesh.apply(namespace("istio.io/use-waypoint: wp")) == {WEB_HOST}
    assert (of_service(mesh), of_pod(mesh)) == ("wp", "")
    assert mesh.reasons(BOUND) == {"Service shop/web": "WaypointAccepted"}


def test_none_on_the_object_beats_the_namespace() -> None:
    mesh = Mesh(
        namespace("istio.io/use-waypoint: wp"),
        gateway(),
        labelled(WEB_SERVICE, "istio.io/use-waypoint: none"),
    )
    assert of_service(mesh) == ""
    assert not mesh.reasons(BOUND)


def test_a_label_on_the_object_beats_the_namespace() -> None:
    mesh = Mesh(
        namespace("istio.io/use-waypoint: wp"),
        gateway(),
        gateway("other"),
        labelled(WEB_SERVICE, "istio.io/use-waypoint: other"),
    )
    assert of_service(mesh) == "other"


@pytest.mark.parametrize(
    ("handled", "service", "pod", "reasons"),
    [
        ("service", "wp", "", {"Service shop/web": "WaypointAccepted"}),
        ("workload", "", "wp", {"Service shop/web": "UnsupportedTrafficType"}),
        ("all", "wp", "wp", {"Service shop/web": "WaypointAccepted"}),
        ("none", "", "", {"Service shop/web": "UnsupportedTrafficType"}),
    ],
)
def test_a_waypoint_takes_only_its_kind_of_traffic(
    handled: str, service: str, pod: str, reasons: dict[str, str]
) -> None:
    mesh = Mesh(
        WEB_POD,
        WEB_SERVICE,
        namespace("istio.io/use-waypoint: wp"),
        gateway(labels=f"istio.io/waypoint-for: {handled}"),
    )
    assert (of_service(mesh), of_pod(mesh)) == (service, pod)
    assert {k: v for k, v in mesh.reasons(BOUND).items() if k.startswith("Service")} == reasons


def test_a_pods_own_label_to_a_service_waypoint_is_told_as_unsupported() -> None:
    mesh = Mesh(labelled(WEB_POD, "istio.io/use-waypoint: wp"), gateway())
    assert of_pod(mesh) == ""
    assert list(mesh.reasons(BOUND).values()) == ["UnsupportedTrafficType"]


def test_the_traffic_type_of_the_class_counts_where_the_gateway_has_none() -> None:
    cls = """
kind: GatewayClass
metadata: {name: istio-waypoint, labels: {istio.io/waypoint-for: workload}}
spec: {controllerName: istio.io/mesh-controller}
"""
    mesh = Mesh(WEB_POD, namespace("istio.io/use-waypoint: wp"), gateway(), cls)
    assert of_pod(mesh) == "wp"
    mesh.apply(gateway(labels="istio.io/waypoint-for: service"))
    assert of_pod(mesh) == ""


@pytest.mark.parametrize(
    "broken",
    ["", gateway(addresses="[]")],
    ids=["missing", "no address"],
)
def test_a_waypoint_that_is_not_ready_leaves_traffic_direct_and_says_so(broken: str) -> None:
    texts = [WEB_SERVICE, namespace("istio.io/use-waypoint: wp")] + ([broken] if broken else [])
    mesh = Mesh(*texts)
    assert not mesh.services[WEB_HOST].HasField("waypoint")
    assert mesh.reasons(BOUND) == {"Service shop/web": "WaypointIsNotReady"}
    mesh.apply(gateway())
    assert of_service(mesh) == "wp"


@pytest.mark.parametrize(
    ("routes", "labels", "expected"),
    [
        ("", "a: b", "AttachmentDenied"),
        (", allowedRoutes: {namespaces: {from: All}}", "a: b", "WaypointAccepted"),
        (", allowedRoutes: {namespaces: {from: None}}", "a: b", "AttachmentDenied"),
        (
            ", allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {a: b}}}}",
            "a: b",
            "WaypointAccepted",
        ),
        (
            ", allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {a: b}}}}",
            "a: c",
            "AttachmentDenied",
        ),
        (
            ", allowedRoutes: {namespaces: {from: Selector, selector: "
            "{matchLabels: {kubernetes.io/metadata.name: shop}}}}",
            "a: c",
            "WaypointAccepted",
        ),
    ],
)
def test_a_waypoint_of_another_namespace_has_to_allow_it(routes: str, labels: str, expected: str) -> None:
    mesh = Mesh(
        WEB_SERVICE,
        gateway(namespace="infra", routes=routes),
        namespace(f"istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: infra, {labels}"),
    )
    assert mesh.reasons(BOUND) == {"Service shop/web": expected}
    assert mesh.services[WEB_HOST].HasField("waypoint") == (expected == "WaypointAccepted")


def test_the_namespace_label_is_read_only_beside_the_waypoint_label() -> None:
    mesh = Mesh(
        labelled(WEB_SERVICE, "istio.io/use-waypoint: wp"),
        gateway(),
        namespace("istio.io/use-waypoint-namespace: infra"),
    )
    assert of_service(mesh) == "wp"


def test_an_address_without_host_name_is_used_with_its_network() -> None:
    mesh = Mesh(
        WEB_SERVICE,
        namespace("istio.io/use-waypoint: wp"),
        gateway(addresses="[{type: IPAddress, value: 10.96.0.50}]"),
        namespace("topology.istio.io/network: n1", "istio-system"),
    )
    waypoint = mesh.services[WEB_HOST].waypoint
    assert (waypoint.address.network, waypoint.address.address) == ("n1", bytes([10, 96, 0, 50]))
    assert waypoint.hbone_mtls_port == 15008


def test_pods_and_services_of_a_waypoint_have_none_themselves() -> None:
    mesh = Mesh(
        labelled(WEB_POD, "gateway.networking.k8s.io/gateway-name: wp"),
        labelled(WEB_SERVICE, "gateway.istio.io/managed: istio.io-mesh-controller"),
        namespace("istio.io/use-waypoint: wp"),
        gateway(labels="istio.io/waypoint-for: all"),
    )
    assert (of_service(mesh), of_pod(mesh)) == ("", "")


CANARY = "istio.io/use-waypoint: wp, istio.io/use-waypoint-canary: next"


def canary(weight: str) -> str:
    return namespace(CANARY, annotations=f"istio.io/use-waypoint-canary-weight: '{weight}'")


def test_a_canary_takes_its_share_and_the_primary_stays_for_old_agents() -> None:
    mesh = Mesh(WEB_SERVICE, gateway(), gateway("next"), canary("20"))
    weighted = mesh.services[WEB_HOST].weighted_waypoints
    assert [(one.destination.hostname.hostname[:2], one.weight) for one in weighted] == [
        ("wp", 80),
        ("ne", 20),
    ]
    assert of_service(mesh) == "wp"


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([canary("20")], "WaypointAccepted"),
        ([gateway("next"), canary("200")], "CanaryInvalidWeight"),
        ([namespace(CANARY.replace("next", "wp"))], "CanarySameAsPrimary"),
    ],
    ids=["unresolved", "weight", "same"],
)
def test_a_bad_canary_leaves_everything_to_the_primary(texts: list[str], reason: str) -> None:
    mesh = Mesh(WEB_SERVICE, gateway(), *texts)
    assert not mesh.services[WEB_HOST].weighted_waypoints
    assert of_service(mesh) == "wp"
    assert mesh.reasons(BOUND) == {"Service shop/web": reason}


def test_ingress_use_waypoint_of_the_object_beats_the_namespace() -> None:
    mesh = Mesh(WEB_SERVICE, namespace("istio.io/ingress-use-waypoint: 'true', istio.io/use-waypoint: wp"))
    assert not mesh.services[WEB_HOST].ingress_use_waypoint, "there is no waypoint yet"
    mesh.apply(gateway())
    assert mesh.services[WEB_HOST].ingress_use_waypoint
    mesh.apply(labelled(WEB_SERVICE, "istio.io/ingress-use-waypoint: 'false'"))
    assert not mesh.services[WEB_HOST].ingress_use_waypoint


def test_a_waypoint_of_another_implementation_is_one() -> None:
    mesh = Mesh(WEB_SERVICE, namespace("istio.io/use-waypoint: wp"), gateway(class_name="somebody-elses"))
    assert of_service(mesh) == "wp"


@pytest.mark.parametrize(
    ("hosts", "annotations", "labels", "reason"),
    [
        ("'*.example.com'", "{}", "{}", "NoWaypointForWildcardService"),
        ("a.example.com, '*.example.com'", "{}", "{}", "NoWaypointForWildcardService"),
        (
            "a.example.com",
            "{istio.io/connect-strategy: RACE_FIRST_TCP_CONNECT}",
            "{}",
            "NoWaypointForRacingConnectStrategy",
        ),
        ("a.example.com", "{istio.io/connect-strategy: DEFAULT}", "{}", None),
        ("a.example.com", "{}", "{}", None),
        ("'*.example.com'", "{}", "{istio.io/use-waypoint: wp}", None),
    ],
)
def test_an_entry_that_needs_a_waypoint_says_that_it_has_none(
    hosts: str, annotations: str, labels: str, reason: str | None
) -> None:
    entry = (
        f"kind: ServiceEntry\nmetadata: {{name: e, namespace: shop, annotations: {annotations}, labels: {labels}}}\n"
        f"spec: {{hosts: [{hosts}], resolution: STATIC, ports: [{{number: 80, name: http}}]}}"
    )
    waypoint = (
        "kind: Gateway\nmetadata: {name: wp, namespace: shop}\n"
        "spec: {gatewayClassName: istio-waypoint, listeners: [{name: m, port: 15008, protocol: HBONE}]}\n"
        "status: {addresses: [{value: 10.96.0.3}]}"
    )
    told = Mesh(entry, waypoint).reasons("istio.io/WaypointMissing")
    assert list(told.values()) == ([reason] if reason else [])


@pytest.mark.parametrize(
    ("expression", "admitted"),
    [
        ("{key: team, operator: In, values: [a, b]}", True),
        ("{key: team, operator: In, values: [b]}", False),
        ("{key: team, operator: NotIn, values: [b]}", True),
        ("{key: team, operator: NotIn, values: [a]}", False),
        ("{key: other, operator: NotIn, values: [a]}", True),
        ("{key: team, operator: Exists}", True),
        ("{key: other, operator: Exists}", False),
        ("{key: team, operator: DoesNotExist}", False),
        ("{key: other, operator: DoesNotExist}", True),
    ],
)
def test_expressions_of_the_listener_choose_namespaces(expression: str, admitted: bool) -> None:
    text = f"""
kind: Gateway
metadata: {{name: wp, namespace: elsewhere}}
spec:
  gatewayClassName: istio-waypoint
  listeners:
    - name: mesh
      port: 15008
      protocol: HBONE
      allowedRoutes: {{namespaces: {{from: Selector, selector: {{matchExpressions: [{expression}]}}}}}}
status: {{addresses: [{{type: Hostname, value: wp.shop.svc.cluster.local}}]}}
"""
    labels = "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: elsewhere, team: a"
    mesh = Mesh(WEB_SERVICE, namespace(labels), text)
    assert mesh.services[WEB_HOST].HasField("waypoint") is admitted
