"""Objects in several states each, to make histories of: related in every way the registry knows."""

from __future__ import annotations

from istiodlite.objects import KubeObject, ObjectKey
from tests.unit.istiodlite.mesh import NODE, WEB_POD, WEB_SERVICE, objects

KEY = "istio.io/use-waypoint"
VARIANTS: list[list[str]] = [
    [WEB_POD, WEB_POD.replace("app: web", "app: db"), WEB_POD.replace("n1", "n2")],
    [WEB_POD.replace("web-7d9c5b7f6-abcde", "second").replace("10.1.0.5", "10.1.0.6")],
    [
        WEB_SERVICE,
        WEB_SERVICE.replace("app: web", "app: db"),
        WEB_SERVICE.replace("  selector: {app: web}\n", ""),
    ],
    [NODE, NODE.replace("z1", "z2")],
    [
        "kind: Namespace\nmetadata: {name: shop}",
        f"kind: Namespace\nmetadata: {{name: shop, labels: {{{KEY}: wp}}}}",
    ],
    ["kind: Namespace\nmetadata: {name: istio-system, labels: {topology.istio.io/network: n}}"],
    [
        "kind: Gateway\nmetadata: {name: wp, namespace: shop, labels: {istio.io/waypoint-for: all}}\n"
        "spec: {gatewayClassName: istio-waypoint, listeners: [{name: m, port: 15008, protocol: HBONE}]}\n"
        "status: {addresses: [{value: 10.96.0.3}]}",
        "kind: Gateway\nmetadata: {name: wp, namespace: shop}\nspec: {gatewayClassName: istio-waypoint}",
    ],
    ["kind: GatewayClass\nmetadata: {name: istio-waypoint}\nspec: {controllerName: other}"],
    [
        "kind: ServiceEntry\nmetadata: {name: e1, namespace: shop, creationTimestamp: '2'}\n"
        "spec: {hosts: [a.example.com, web.shop.svc.cluster.local], resolution: DNS,"
        " ports: [{number: 80, name: http}]}",
        "kind: ServiceEntry\nmetadata: {name: e1, namespace: shop, creationTimestamp: '0'}\n"
        "spec: {hosts: [a.example.com], resolution: STATIC, workloadSelector: {labels: {app: web}},"
        " ports: [{number: 80, name: http}]}",
    ],
    [
        "kind: ServiceEntry\nmetadata: {name: e2, namespace: shop, creationTimestamp: '1'}\n"
        "spec: {hosts: [a.example.com], ports: [{number: 80, name: http}]}",
        "kind: ServiceEntry\nmetadata: {name: e2, namespace: shop, creationTimestamp: '1'}\n"
        "spec: {hosts: [b.example.com, b.example.com], ports: [{number: 80, name: http}]}",
    ],
    [
        "kind: WorkloadEntry\nmetadata: {name: vm, namespace: shop, labels: {app: web}}\nspec: {address: 10.9.9.9}"
    ],
    [
        "kind: WorkloadEntry\nmetadata: {name: far, namespace: shop}\nspec: {address: 10.9.9.8, network: east}",
        "kind: WorkloadEntry\nmetadata: {name: far, namespace: shop}\nspec: {address: 10.9.9.8, network: n}",
    ],
    [
        "kind: Gateway\nmetadata: {name: out, namespace: shop, labels: {topology.istio.io/network: east}}\n"
        "spec: {gatewayClassName: istio-remote, listeners: [{name: m, port: 15008, protocol: HBONE}]}\n"
        "status: {addresses: [{value: 192.0.2.3}]}",
        "kind: Gateway\nmetadata: {name: out, namespace: shop, labels: {topology.istio.io/network: n}}\n"
        "spec: {gatewayClassName: istio-remote, listeners: [{name: m, port: 15008, protocol: HBONE}]}\n"
        "status: {addresses: [{value: 192.0.2.3}]}",
    ],
    ["kind: WorkloadGroup\nmetadata: {name: vms, namespace: shop}\nspec: {template: {}}"],
    [
        "kind: EndpointSlice\nmetadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: web}}\n"
        "addressType: IPv4\nports: [{name: http, port: 1}]\nendpoints: [{addresses: [10.7.7.7]}]",
        "kind: EndpointSlice\nmetadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: web}}\n"
        "addressType: IPv4\nendpoints: [{addresses: [10.1.0.5], targetRef: {kind: Pod, name: second}},"
        " {addresses: [10.1.0.6], targetRef: {kind: Pod, name: second}}]",
    ],
    [
        "kind: AuthorizationPolicy\nmetadata: {name: p, namespace: istio-system}\n"
        "spec: {selector: {matchLabels: {app: web}}}",
        "kind: AuthorizationPolicy\nmetadata: {name: p, namespace: istio-system}\nspec: {action: AUDIT}",
    ],
    [
        "kind: PeerAuthentication\nmetadata: {name: d, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}",
        "kind: PeerAuthentication\nmetadata: {name: d, namespace: istio-system}\nspec: {}",
    ],
    [
        "kind: PeerAuthentication\nmetadata: {name: w, namespace: shop}\n"
        "spec: {selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: DISABLE}}}"
    ],
]
STATES: list[tuple[ObjectKey, list[KubeObject | None]]] = []
for variants in VARIANTS:
    parsed = [next(iter(objects(text).items())) for text in variants]
    STATES.append((parsed[0][0], [None, *(obj for _, obj in parsed)]))


def at(place: int, which: int) -> tuple[ObjectKey, KubeObject | None]:
    """The object of one place in one of its states (None: absent)."""
    key, states = STATES[place]
    return key, states[which % len(states)]
