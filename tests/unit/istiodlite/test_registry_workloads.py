"""Pods and other endpoints as workloads: Istio's rules, one case each."""

from __future__ import annotations

import pytest

from istiodlite.api import workload_pb2 as pb
from istiodlite.registry import MeshConfig
from tests.unit.istiodlite.mesh import NODE, WEB_HOST, WEB_POD, WEB_SERVICE, WEB_UID, Mesh, ports


def test_the_worked_example_of_a_pod() -> None:
    mesh = Mesh(WEB_POD, WEB_SERVICE, NODE)
    expected = pb.Workload(
        uid=WEB_UID,
        name="web-7d9c5b7f6-abcde",
        namespace="shop",
        addresses=[bytes([10, 1, 0, 5])],
        tunnel_protocol=pb.HBONE,
        service_account="web",
        node="n1",
        canonical_name="web",
        canonical_revision="v2",
        workload_type=pb.POD,
        workload_name="web",
        status=pb.HEALTHY,
        cluster_id="Kubernetes",
        locality=pb.Locality(region="r1", zone="z1"),
    )
    expected.services[WEB_HOST].ports.add(service_port=80, target_port=8080)
    assert mesh.workloads == {WEB_UID: expected}


def web(mesh: Mesh) -> pb.Workload:
    return mesh.workloads[WEB_UID]


def test_a_dual_stack_pod_has_both_addresses_and_both_aliases() -> None:
    mesh = Mesh(WEB_POD.replace("[{ip: 10.1.0.5}]", "[{ip: 10.1.0.5}, {ip: 'fd00::5'}]"))
    assert [len(address) for address in web(mesh).addresses] == [4, 16]
    resource = next(one for one in mesh.registry.resources.values() if one.name == WEB_UID)
    assert resource.aliases == ("/10.1.0.5", "/fd00::5")


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_is_over_is_not_sent(phase: str) -> None:
    mesh = Mesh(WEB_POD)
    assert mesh.apply(WEB_POD.replace("phase: Running", f"phase: {phase}")) == {f"-{WEB_UID}"}


def test_a_pod_without_address_is_not_sent_and_a_pending_one_with_address_is() -> None:
    assert not Mesh(WEB_POD.replace("[{ip: 10.1.0.5}]", "[]")).workloads
    assert WEB_UID in Mesh(WEB_POD.replace("phase: Running", "phase: Pending")).workloads


def test_a_pod_that_is_deleted_becomes_unhealthy_at_once() -> None:
    mesh = Mesh(WEB_POD)
    mesh.apply(WEB_POD.replace("  uid:", "  deletionTimestamp: 2026-01-01T00:00:00Z\n  uid:"))
    assert web(mesh).status == pb.UNHEALTHY


def test_a_pod_that_is_not_ready_is_unhealthy() -> None:
    assert web(Mesh(WEB_POD.replace('status: "True"', 'status: "False"'))).status == pb.UNHEALTHY


def test_a_pod_without_the_redirection_annotation_is_reached_in_plain_text() -> None:
    mesh = Mesh(WEB_POD.replace("redirection: enabled", "redirection: pending"))
    assert web(mesh).tunnel_protocol == pb.NONE


def test_the_tunnel_label_makes_a_pod_native() -> None:
    pod = WEB_POD.replace("redirection: enabled", "redirection: pending")
    mesh = Mesh(pod.replace("app: web", "app: web, networking.istio.io/tunnel: http"))
    assert web(mesh).tunnel_protocol == pb.HBONE
    assert web(mesh).native_tunnel


def test_a_host_network_pod_is_sent_but_has_no_alias() -> None:
    mesh = Mesh(WEB_POD.replace("nodeName: n1", "nodeName: n1\n  hostNetwork: true"))
    assert web(mesh).network_mode == pb.HOST_NETWORK
    assert all(not one.aliases for one in mesh.registry.resources.values())


def test_another_trust_domain_is_named_and_the_default_is_not() -> None:
    assert web(Mesh(WEB_POD)).trust_domain == ""
    assert web(Mesh(WEB_POD, config=MeshConfig(trust_domain="corp"))).trust_domain == "corp"


def test_the_network_is_the_label_of_the_root_namespace() -> None:
    root = "kind: Namespace\nmetadata: {name: istio-system, labels: {topology.istio.io/network: net1}}"
    mesh = Mesh(WEB_POD, WEB_SERVICE)
    assert mesh.apply(root) == {WEB_UID, WEB_HOST}
    assert web(mesh).network == "net1"
    assert mesh.services[WEB_HOST].addresses[0].network == "net1"


@pytest.mark.parametrize(
    ("owner", "labels", "generate", "expected"),
    [
        ("ReplicaSet, name: web-77", "pod-template-hash: '77'", "g-", "web"),
        ("ReplicaSet, name: web-77", "rollouts-pod-template-hash: '77'", "g-", "web"),
        ("ReplicaSet, name: web-77", "pod-template-hash: '78'", "g-", "web-77"),
        ("Job, name: nightly-28412345", "a: b", "g-", "nightly"),
        ("Job, name: once", "a: b", "g-", "once"),
        ("ReplicationController, name: web-3", "deploymentconfig: web", "g-", "web"),
        ("StatefulSet, name: db", "a: b", "g-", "db"),
        ("ReplicaSet, name: web-77", "pod-template-hash: '77'", "", "p"),
        ("ReplicaSet, name: web-77", "service.istio.io/workload-name: mine", "g-", "mine"),
    ],
)
def test_the_workload_name_follows_the_owner(owner: str, labels: str, generate: str, expected: str) -> None:
    mesh = Mesh(f"""
kind: Pod
metadata:
  name: p
  generateName: "{generate}"
  labels: {{{labels}}}
  ownerReferences: [{{kind: {owner}, controller: true}}]
spec: {{containers: [{{name: c}}]}}
status: {{podIP: 10.0.0.1}}
""")
    assert mesh.workloads["Kubernetes//Pod/default/p"].workload_name == expected


@pytest.mark.parametrize(
    ("labels", "name", "revision"),
    [
        ("a: b", "p", "latest"),
        ("app: x, version: v1", "x", "v1"),
        ("app: x, app.kubernetes.io/name: y, app.kubernetes.io/version: '2', version: v1", "y", "2"),
        ("app.kubernetes.io/name: y, service.istio.io/canonical-name: z", "z", "latest"),
        ("service.istio.io/canonical-revision: r, app.kubernetes.io/version: '2'", "p", "r"),
    ],
)
def test_canonical_identity_prefers_the_most_specific_label(labels: str, name: str, revision: str) -> None:
    mesh = Mesh(f"""
kind: Pod
metadata: {{name: p, labels: {{{labels}}}}}
spec: {{containers: [{{name: c}}]}}
status: {{podIP: 10.0.0.1}}
""")
    workload = mesh.workloads["Kubernetes//Pod/default/p"]
    assert (workload.canonical_name, workload.canonical_revision) == (name, revision)


def test_a_named_port_that_a_pod_lacks_is_left_out_for_that_pod() -> None:
    service = WEB_SERVICE.replace(
        "targetPort: http}", "targetPort: http}, {name: admin, port: 81, targetPort: admin}"
    )
    assert ports(web(Mesh(WEB_POD, service)), WEB_HOST) == [(80, 8080)]


def test_a_port_of_a_native_sidecar_counts_and_one_of_an_init_container_does_not() -> None:
    sidecar = WEB_POD.replace(
        "  containers: [{name: web, ports: [{name: http, containerPort: 8080}]}]",
        "  containers: [{name: web}]\n"
        "  initContainers: [{name: s, restartPolicy: Always, ports: [{name: http, containerPort: 9}]}]",
    )
    assert ports(web(Mesh(sidecar, WEB_SERVICE)), WEB_HOST) == [(80, 9)]
    assert ports(web(Mesh(sidecar.replace("restartPolicy: Always, ", ""), WEB_SERVICE)), WEB_HOST) == []


@pytest.mark.parametrize(("target", "expected"), [("", (80, 80)), (", targetPort: 9090", (80, 9090))])
def test_numeric_target_ports(target: str, expected: tuple[int, int]) -> None:
    service = WEB_SERVICE.replace(", targetPort: http", target)
    assert ports(web(Mesh(WEB_POD, service)), WEB_HOST) == [expected]


SLICE = """
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- addresses: [10.1.0.5]
"""
SELECTORLESS = WEB_SERVICE.replace("  selector: {app: web}\n", "")


def test_a_slice_makes_a_pod_a_member_of_a_service_without_selector() -> None:
    target = SLICE + "  targetRef: {kind: Pod, name: web-7d9c5b7f6-abcde, namespace: shop, uid: uid-web}\n"
    mesh = Mesh(WEB_POD, SELECTORLESS)
    assert not web(mesh).services
    assert mesh.apply(target) == {WEB_UID}
    assert ports(web(mesh), WEB_HOST) == [(80, 8080)]
    assert len(mesh.workloads) == 1


def test_a_slice_that_names_an_earlier_pod_of_that_name_counts_for_nothing() -> None:
    target = SLICE + "  targetRef: {kind: Pod, name: web-7d9c5b7f6-abcde, namespace: shop, uid: old}\n"
    mesh = Mesh(WEB_POD, SELECTORLESS, target)
    assert not web(mesh).services


def test_a_slice_endpoint_that_is_no_pod_is_a_workload_of_its_own() -> None:
    mesh = Mesh(SELECTORLESS, SLICE)
    workload = mesh.workloads["Kubernetes/discovery.k8s.io/EndpointSlice/shop/web-1/10.1.0.5"]
    assert workload.network_mode == pb.HOST_NETWORK
    assert workload.status == pb.HEALTHY
    assert not workload.service_account
    assert ports(workload, WEB_HOST) == [(80, 8080)]


def test_a_slice_endpoint_that_is_not_ready_is_unhealthy() -> None:
    mesh = Mesh(SELECTORLESS, SLICE + "  conditions: {ready: false}\n")
    assert next(iter(mesh.workloads.values())).status == pb.UNHEALTHY


def test_a_slice_without_its_service_is_nothing() -> None:
    mesh = Mesh(SLICE)
    assert not mesh.workloads
    mesh.apply(SELECTORLESS)
    assert len(mesh.workloads) == 1


WE = """
kind: WorkloadEntry
metadata: {name: vm, namespace: shop}
spec:
  address: 192.0.2.7
  labels: {app: web}
  serviceAccount: vm
  weight: 7
  locality: r1/z2/s3
  ports: {http: 8888}
"""
WE_UID = "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"


def test_a_workload_entry_is_selected_by_services_and_maps_named_ports() -> None:
    workload = Mesh(WE, WEB_SERVICE).workloads[WE_UID]
    assert workload.addresses == [bytes([192, 0, 2, 7])]
    assert workload.capacity.value == 7
    assert workload.locality == pb.Locality(region="r1", zone="z2", subzone="s3")
    assert workload.service_account == "vm"
    assert workload.status == pb.HEALTHY
    assert ports(workload, WEB_HOST) == [(80, 8888)]


def test_a_workload_entry_with_a_host_name_and_a_foreign_network() -> None:
    text = WE.replace("192.0.2.7", "vm.example.com\n  network: other")
    workload = Mesh(text).workloads[WE_UID]
    assert workload.hostname == "vm.example.com"
    assert not workload.addresses
    assert workload.network == "other"


def test_the_binding_annotation_of_a_gateway_sets_the_application_tunnel() -> None:
    gateway = """
kind: Gateway
metadata:
  name: gw
  namespace: shop
  annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}
spec: {gatewayClassName: other, listeners: []}
status: {addresses: [{value: 10.96.0.9}]}
"""
    pod = WEB_POD.replace("app: web", "app: web, gateway.networking.k8s.io/gateway-name: gw")
    tunnel = web(Mesh(pod, gateway)).application_tunnel
    assert (tunnel.protocol, tunnel.port) == (pb.ApplicationTunnel.PROXY, 15088)


@pytest.mark.parametrize(
    ("more", "healthy"),
    [
        ("", True),
        ("status: {conditions: [{type: Healthy, status: 'True'}]}", True),
        ("status: {conditions: [{type: Healthy, status: 'False'}]}", False),
        ("status: {conditions: [{type: Other, status: 'False'}]}", True),
    ],
)
def test_a_workload_entry_is_as_healthy_as_its_status_says(more: str, healthy: bool) -> None:
    text = (
        f"kind: WorkloadEntry\nmetadata: {{name: vm, namespace: shop}}\nspec: {{address: 10.9.9.9}}\n{more}"
    )
    (workload,) = Mesh(text).workloads.values()
    assert (workload.status == pb.HEALTHY) is healthy


def test_a_workload_entry_whose_check_was_never_answered_is_not_healthy() -> None:
    annotations = "{proxy.istio.io/health-checks-enabled: 'true', istio.io/autoRegistrationGroup: vms}"
    text = f"kind: WorkloadEntry\nmetadata: {{name: vm, namespace: shop, annotations: {annotations}}}\n"
    (workload,) = Mesh(text + "spec: {address: 10.9.9.9}").workloads.values()
    assert workload.status == pb.UNHEALTHY
    assert workload.workload_name == "vms", "telemetry names what registered it"
