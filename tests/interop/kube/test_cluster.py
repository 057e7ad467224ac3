"""Against a real API server: manifests are accepted, objects become resources, tokens become certificates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from hbone.spiffe import SpiffeId
from hbone.svid import make_csr
from istiodlite.manifests import load_text
from tests.interop.kube.conftest import Cluster, KubeServing, established, manifests
from tests.support.serving import wait_until

pytestmark = pytest.mark.kube
Body = dict[str, Any]
SECURITY, NETWORKING = "security.istio.io/v1", "networking.istio.io/v1"


def body(version: str, kind: str, namespace: str, name: str, **parts: Any) -> Body:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **parts}


def account(namespace: str, name: str) -> Body:
    return body("v1", "ServiceAccount", namespace, name)


def pod(namespace: str, name: str, ip: str, node: str, owner: str) -> Body:
    made = body("v1", "Pod", namespace, name)
    made["metadata"]["labels"] = {"app": name}
    made["metadata"]["annotations"] = {"ambient.istio.io/redirection": "enabled"}
    ports = [{"name": "http", "containerPort": 8080}]
    containers = [{"name": "c", "image": "none", "ports": ports}]
    made["spec"] = {"nodeName": node, "serviceAccountName": owner, "containers": containers}
    ready = [{"type": "Ready", "status": "True"}]
    made["status"] = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": ready}
    return made


@pytest.fixture
def shop(cluster: Cluster) -> str:
    """A namespace with a node, accounts, a running pod and its service."""
    name = cluster.namespace()
    cluster.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"{name}-node"}})
    cluster.put(account(name, "web"))
    cluster.put(pod(name, "web", "10.244.0.5", f"{name}-node", "web"))
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    cluster.put(body("v1", "Service", name, "web", spec={"selector": {"app": "web"}, "ports": ports}))
    return name


@pytest.mark.parametrize(
    "document",
    [*manifests("crds"), *manifests("base")],
    ids=lambda one: f"{one['kind']}-{one['metadata']['name']}",
)
def test_every_manifest_is_accepted_without_an_unknown_field(cluster: Cluster, document: Body) -> None:
    answer = cluster.apply(document, dry_run=True)
    assert answer.is_success, answer.text
    assert "warning" not in answer.headers, answer.headers["warning"]


@pytest.mark.parametrize("document", manifests("crds"), ids=lambda one: one["metadata"]["name"])
def test_crds_are_structural_and_served(cluster: Cluster, document: Body) -> None:
    assert established(cluster, document)


GOOD: list[tuple[str, str, Body]] = [
    (SECURITY, "AuthorizationPolicy", {}),
    (SECURITY, "AuthorizationPolicy", {"action": "DENY", "rules": [{}]}),
    (
        SECURITY,
        "AuthorizationPolicy",
        {
            "selector": {"matchLabels": {"app": "web"}},
            "rules": [
                {
                    "from": [
                        {
                            "source": {
                                "principals": ["cluster.local/ns/shop/sa/web"],
                                "notIpBlocks": ["10.0.0.0/8"],
                            }
                        }
                    ],
                    "to": [{"operation": {"ports": ["8080"], "methods": ["GET"]}}],
                    "when": [{"key": "source.ip", "values": ["10.1.0.0/16"]}],
                }
            ],
        },
    ),
    (
        SECURITY,
        "AuthorizationPolicy",
        {"targetRefs": [{"group": "", "kind": "Service", "name": "web"}], "rules": [{}]},
    ),
    (SECURITY, "AuthorizationPolicy", {"action": "CUSTOM", "provider": {"name": "p"}, "rules": [{}]}),
    (SECURITY, "PeerAuthentication", {"mtls": {"mode": "STRICT"}}),
    (
        SECURITY,
        "PeerAuthentication",
        {"selector": {"matchLabels": {"app": "web"}}, "portLevelMtls": {"8080": {"mode": "DISABLE"}}},
    ),
    (
        NETWORKING,
        "ServiceEntry",
        {
            "hosts": ["*.example.com"],
            "addresses": ["240.0.0.0/24"],
            "ports": [{"number": 443, "name": "tls", "protocol": "TLS", "targetPort": 8443}],
            "resolution": "STATIC",
            "location": "MESH_EXTERNAL",
            "endpoints": [{"address": "10.9.9.9", "ports": {"tls": 9443}, "weight": 3, "locality": "a/b/c"}],
        },
    ),
    (NETWORKING, "ServiceEntry", {"hosts": ["a.example.com"]}),
    (NETWORKING, "WorkloadEntry", {"address": "10.9.9.9", "labels": {"app": "vm"}, "serviceAccount": "vm"}),
    (NETWORKING, "WorkloadEntry", {"network": "other"}),
    (NETWORKING, "WorkloadGroup", {"template": {}}),
    (
        NETWORKING,
        "WorkloadGroup",
        {
            "metadata": {"labels": {"app": "vm"}, "annotations": {"a": "b"}},
            "template": {"serviceAccount": "vm", "ports": {"http": 8080}, "weight": 2},
            "probe": {
                "periodSeconds": 5,
                "httpGet": {"port": 80, "scheme": "HTTPS", "httpHeaders": [{"name": "x-a", "value": "b"}]},
            },
        },
    ),
]
BAD: list[tuple[str, str, Body, str]] = [
    (SECURITY, "AuthorizationPolicy", {"action": "MAYBE"}, "spec.action"),
    (SECURITY, "AuthorizationPolicy", {"action": "DENY"}, "without rules never matches"),
    (SECURITY, "AuthorizationPolicy", {"provider": {"name": "p"}}, "provider belongs to action CUSTOM"),
    (SECURITY, "AuthorizationPolicy", {"rules": [{"form": []}]}, "form"),
    (SECURITY, "AuthorizationPolicy", {"rules": [{"from": []}]}, "spec.rules[0].from"),
    (SECURITY, "AuthorizationPolicy", {"rules": [{"from": [{"source": {}}]}]}, "source"),
    (SECURITY, "AuthorizationPolicy", {"rules": [{"to": [{"operation": {"ports": ["http"]}}]}]}, "ports"),
    (
        SECURITY,
        "AuthorizationPolicy",
        {"rules": [{"when": [{"key": "source.ip"}]}]},
        "give values or notValues",
    ),
    (
        SECURITY,
        "AuthorizationPolicy",
        {"selector": {"matchLabels": {"a": "b"}}, "targetRefs": [{"kind": "Service", "name": "x"}]},
        "give only one of",
    ),
    (SECURITY, "AuthorizationPolicy", {"selector": {"matchLabels": {"a": "*"}}}, "wildcards are not allowed"),
    (SECURITY, "PeerAuthentication", {"mtls": {"mode": "ON"}}, "spec.mtls.mode"),
    (SECURITY, "PeerAuthentication", {"portLevelMtls": {"80": {"mode": "STRICT"}}}, "needs a selector"),
    (
        SECURITY,
        "PeerAuthentication",
        {"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"http": {"mode": "STRICT"}}},
        "keys are port numbers",
    ),
    (NETWORKING, "ServiceEntry", {}, "spec.hosts"),
    (NETWORKING, "ServiceEntry", {"hosts": ["*"]}, "too wide"),
    (
        NETWORKING,
        "ServiceEntry",
        {"hosts": ["a.com"], "endpoints": [{"address": "10.0.0.1"}]},
        "takes no endpoints",
    ),
    (
        NETWORKING,
        "ServiceEntry",
        {"hosts": ["a.com"], "ports": [{"number": 1, "name": "a"}, {"number": 1, "name": "b"}]},
        "listed twice",
    ),
    (
        NETWORKING,
        "ServiceEntry",
        {"hosts": ["a.com"], "resolution": "DNS", "addresses": ["10.0.0.0/8"]},
        "a CIDR needs",
    ),
    (NETWORKING, "WorkloadEntry", {"labels": {"a": "b"}}, "give an address"),
    (NETWORKING, "WorkloadEntry", {"address": "10.0.0.1", "ports": {"http": 70000}}, "ports"),
    (NETWORKING, "WorkloadGroup", {}, "spec.template"),
    (NETWORKING, "WorkloadGroup", {"template": {"ports": {"http": 70000}}}, "ports"),
    (NETWORKING, "WorkloadGroup", {"template": {}, "probe": {"periodSeconds": 5}}, "give one of httpGet"),
    (
        NETWORKING,
        "WorkloadGroup",
        {"template": {}, "probe": {"tcpSocket": {"port": 1}, "exec": {"command": ["x"]}}},
        "give one of httpGet",
    ),
    (NETWORKING, "WorkloadGroup", {"template": {}, "probe": {"tcpSocket": {"port": 0}}}, "port"),
]


@pytest.mark.parametrize(("version", "kind", "spec"), GOOD)
def test_good_objects_pass_schema_and_reader(cluster: Cluster, version: str, kind: str, spec: Body) -> None:
    document = body(version, kind, "default", "schema-check", spec=spec)
    answer = cluster.apply(document, dry_run=True)
    assert answer.is_success, answer.text
    loaded, errors = load_text(json.dumps(answer.json()), "x.json")
    assert errors == []
    assert len(loaded) == 1


@pytest.mark.parametrize(("version", "kind", "spec", "message"), BAD)
def test_bad_objects_are_refused_by_schema_and_reader(
    cluster: Cluster, version: str, kind: str, spec: Body, message: str
) -> None:
    document = body(version, kind, "default", "schema-check", spec=spec)
    answer = cluster.apply(document, dry_run=True)
    assert not answer.is_success
    assert message in answer.json()["message"]
    assert load_text(json.dumps(document), "x.json")[1]


@pytest.mark.parametrize(
    ("verb", "group", "resource", "namespace", "name"),
    [
        ("get", "", "secrets", "istio-system", ""),
        ("list", "", "secrets", "", ""),
        ("get", "", "secrets", "default", "istio-ca-secret"),
        ("delete", "", "secrets", "istio-system", "istio-ca-secret"),
        ("list", "", "configmaps", "", ""),
        ("update", "", "configmaps", "kube-system", "coredns"),
        ("delete", "", "configmaps", "default", "istio-ca-root-cert"),
        ("create", "", "pods", "default", ""),
        ("update", "", "pods", "default", ""),
        ("create", "", "serviceaccounts/token", "istio-system", ""),
        ("get", "", "nodes/proxy", "", ""),
        ("update", "security.istio.io", "authorizationpolicies", "default", ""),
        ("create", "networking.istio.io", "workloadentries", "default", ""),
        ("patch", "networking.istio.io", "workloadentries", "default", ""),
        ("delete", "networking.istio.io", "workloadentries", "default", ""),
        ("list", "apiextensions.k8s.io", "customresourcedefinitions", "", ""),
        ("*", "*", "*", "", ""),
    ],
)
def test_istiodlite_may_do_nothing_that_it_does_not_need(
    cluster: Cluster, verb: str, group: str, resource: str, namespace: str, name: str
) -> None:
    assert not cluster.may("istiodlite", verb, group, resource, namespace, name)


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("list", "pods"),
        ("watch", "pods"),
        ("list", "namespaces"),
        ("watch", "namespaces"),
        ("patch", "pods/status"),
    ],
)
def test_ztunnel_may_look_which_pods_to_enrol_and_say_that_they_are(
    cluster: Cluster, verb: str, resource: str
) -> None:
    assert cluster.may("ztunnel", verb, "", resource)


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        *((verb, "pods") for verb in ("get", "create", "update", "patch", "delete")),
        ("update", "pods/status"),
        ("create", "pods/exec"),
        ("patch", "namespaces"),
        *(("list", plural) for plural in ("nodes", "secrets", "configmaps", "serviceaccounts", "services")),
        ("create", "serviceaccounts/token"),
        ("*", "*"),
    ],
)
def test_ztunnel_may_do_nothing_that_it_does_not_need(cluster: Cluster, verb: str, resource: str) -> None:
    assert not cluster.may("ztunnel", verb, "", resource)


def test_the_fd_store_may_do_nothing_at_all(cluster: Cluster) -> None:
    assert not cluster.may("ztunnel-fdstore", "list", "", "pods")


REDIRECTION = "ambient.istio.io/redirection"


def test_an_agent_may_change_one_annotation_of_its_own_nodes_pods_and_nothing_else(
    cluster: Cluster, shop: str
) -> None:
    ztunnel = agent_pod(cluster, shop)
    cluster.put(pod(shop, "elsewhere", "10.244.0.6", f"{shop}-other", "web"))
    token = cluster.token("istio-system", "ztunnel", pod=ztunnel)
    unbound = cluster.token("istio-system", "ztunnel")

    def patch(name: str, change: Body, bearer: str = token) -> int:
        headers = {
            "content-type": "application/merge-patch+json",
            "authorization": f"Bearer {bearer}",
        }
        path = f"/api/v1/namespaces/{shop}/pods/{name}/status"
        return cluster.http.patch(path, content=json.dumps(change), headers=headers).status_code

    def annotate(value: str | None, **more: str) -> Body:
        return {"metadata": {"annotations": {REDIRECTION: value, **more}}}

    # A new admission policy takes some seconds to count.
    wait_until(lambda: patch("elsewhere", annotate("pending")) == 422, "the policy counts")
    for value in ("pending", None, "enabled"):
        assert patch("web", annotate(value)) == 200
    assert patch("web", annotate("pending"), unbound) == 422, "a token that names no node"
    assert patch("web", annotate("enabled", other="x")) == 422
    assert patch("web", {"metadata": {"labels": {"app": "x"}}}) == 422
    assert patch("web", {"status": {"podIP": "10.9.9.9", "podIPs": [{"ip": "10.9.9.9"}]}}) == 422
    cluster.delete(ztunnel)


def test_objects_become_resources_and_changes_follow(
    cluster: Cluster, serving: KubeServing, shop: str
) -> None:
    uid = f"Kubernetes//Pod/{shop}/web"
    host = f"{shop}/web.{shop}.svc.cluster.local"
    wait_until(lambda: uid in serving.resources("workloads"), "the pod is served")
    wait_until(lambda: host in serving.resources("services"), "the service is served")
    (workload,) = [
        one["workload"]
        for one in json.loads(serving.get("/debug/resources")[1])["workloads"]
        if one["name"] == uid
    ]
    assert workload["addresses"] == ["10.244.0.5"]
    assert workload["tunnel_protocol"] == "HBONE"
    assert list(workload["services"]) == [host]

    deny = body(SECURITY, "AuthorizationPolicy", shop, "deny", spec={"action": "DENY", "rules": [{}]})
    cluster.put(deny)
    wait_until(lambda: f"{shop}/deny" in serving.resources("authorizations"), "the policy is served")
    cluster.delete(deny)
    wait_until(lambda: f"{shop}/deny" not in serving.resources("authorizations"), "the policy is gone")
    cluster.delete(pod(shop, "web", "", "", ""))
    wait_until(lambda: uid not in serving.resources("workloads"), "the pod is gone")
    assert "istiodlite_source_age_seconds 0.0" in serving.get("/metrics")[1]


def test_the_root_is_in_every_namespace_and_is_put_back(cluster: Cluster, serving: KubeServing) -> None:
    name = cluster.namespace()
    path = f"/api/v1/namespaces/{name}/configmaps/istio-ca-root-cert"
    found = wait_until(lambda: cluster.get(path), "the root is there")
    assert found["metadata"]["labels"] == {"istio.io/config": "true"}
    assert found["data"]["root-cert.pem"].encode() == serving.root()
    cluster.http.delete(path)
    wait_until(lambda: cluster.get(path), "the root is back")
    for left_out in ("kube-public", "kube-node-lease"):
        assert cluster.get(f"/api/v1/namespaces/{left_out}/configmaps/istio-ca-root-cert") is None


def agent_pod(cluster: Cluster, shop: str) -> Body:
    """A ztunnel on the node of the shop's pods; returned as the server has it."""
    name = f"ztunnel-{shop}"
    cluster.put(pod("istio-system", name, "10.244.0.2", f"{shop}-node", "ztunnel"))
    return cluster.get(f"/api/v1/namespaces/istio-system/pods/{name}")  # type: ignore[no-any-return]


def test_a_node_agent_gets_certificates_of_its_pods_with_a_bound_token(
    cluster: Cluster, serving: KubeServing, shop: str
) -> None:
    ztunnel = agent_pod(cluster, shop)
    identity = SpiffeId("cluster.local", shop, "web")
    csr, _ = make_csr(identity)
    text = csr.decode() if isinstance(csr, bytes) else csr
    agent = serving.agent(cluster.token("istio-system", "ztunnel", "istio-ca", ztunnel))
    wait_until(lambda: f"Kubernetes//Pod/{shop}/web" in serving.resources("workloads"), "the pod is known")
    answer = agent.create_certificate(text, str(identity))
    assert len(answer.cert_chain) == 2
    assert answer.cert_chain[-1].encode() == serving.root()

    with pytest.raises(grpc.RpcError) as caught:
        agent.create_certificate(text, str(SpiffeId("cluster.local", "kube-system", "default")))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    cluster.delete(ztunnel)


def test_the_same_token_opens_the_discovery_stream(cluster: Cluster, serving: KubeServing, shop: str) -> None:
    ztunnel = agent_pod(cluster, shop)
    agent = serving.agent(
        cluster.token("istio-system", "ztunnel", "istio-ca", ztunnel),
        node=f"{shop}-node",
        pod=ztunnel["metadata"]["name"],
    )
    with agent.stream() as stream:
        stream.start()
        stream.until(lambda s: f"Kubernetes//Pod/{shop}/web" in s.workloads)
    cluster.delete(ztunnel)


@pytest.mark.parametrize("audience", ["", "vault"])
def test_a_token_for_another_audience_is_refused(
    cluster: Cluster, serving: KubeServing, shop: str, audience: str
) -> None:
    ztunnel = agent_pod(cluster, shop)
    agent = serving.agent(cluster.token("istio-system", "ztunnel", audience, ztunnel))
    csr, _ = make_csr(SpiffeId("cluster.local", shop, "web"))
    with pytest.raises(grpc.RpcError) as caught:
        agent.create_certificate(csr.decode() if isinstance(csr, bytes) else csr)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "not for audience istio-ca" in serving.log
    cluster.delete(ztunnel)


def test_a_token_whose_pod_is_gone_is_refused(cluster: Cluster, serving: KubeServing, shop: str) -> None:
    ztunnel = agent_pod(cluster, shop)
    token = cluster.token("istio-system", "ztunnel", "istio-ca", ztunnel)
    cluster.delete(ztunnel)
    csr, _ = make_csr(SpiffeId("cluster.local", shop, "web"))
    with pytest.raises(grpc.RpcError) as caught:
        serving.agent(token).create_certificate(csr.decode() if isinstance(csr, bytes) else csr)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "token refused by the API server" in serving.log


def test_a_restart_signs_with_the_same_root(cluster: Cluster, tmp_path: Path) -> None:
    roots = []
    for _ in range(2):
        one = KubeServing(cluster, tmp_path).start()
        wait_until(
            lambda: cluster.get("/api/v1/namespaces/istio-system/configmaps/istio-ca-root-cert"), "root"
        )
        roots.append(one.root())
        assert one.stop() == 0, one.log
    assert roots[0] == roots[1]
    secret = cluster.get("/api/v1/namespaces/istio-system/secrets/istio-ca-secret")
    assert secret["type"] == "istio.io/ca-root"


def gateway_crd(kind: str, plural: str, scope: str) -> Body:
    """Just enough of a Gateway API kind; the annotation is what a *.k8s.io group demands."""
    group = "gateway.networking.k8s.io"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"kind": kind, "plural": plural},
            "versions": [version | {"subresources": {"status": {}}}],
        },
    }


def test_a_crd_that_is_installed_while_serving_is_picked_up_and_its_removal_followed(
    cluster: Cluster, serving: KubeServing, shop: str
) -> None:
    crds = [
        gateway_crd("Gateway", "gateways", "Namespaced"),
        gateway_crd("GatewayClass", "gatewayclasses", "Cluster"),
    ]
    if cluster.get("/apis/gateway.networking.k8s.io/v1"):
        pytest.skip("the cluster has the Gateway API's own CRDs, which a test must not remove")

    def state() -> str:
        parts = json.loads(serving.get("/debug/source")[1])["parts"]
        return next(one["state"] for one in parts if one["resource"].startswith("gateways."))

    assert state() == "absent"
    try:
        for crd in crds:
            cluster.put(crd)
        for crd in crds:
            wait_until(lambda crd=crd: established(cluster, crd), "established")
        wait_until(lambda: state() == "current", lambda: f"watched; log: {serving.log}")
        gateway = body("gateway.networking.k8s.io/v1", "Gateway", shop, "waypoint")
        gateway["spec"] = {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        }
        assert cluster.http.post(cluster.path(gateway), json=gateway).is_success
        wait_until(
            lambda: 'istiodlite_objects{kind="Gateway"} 1.0' in serving.get("/metrics")[1], "the gateway"
        )
    finally:
        for crd in crds:
            cluster.delete(crd)
    wait_until(lambda: 'kind="Gateway"' not in serving.get("/metrics")[1], "the gateway is gone")
    wait_until(lambda: state() == "absent", lambda: f"absent again; log: {serving.log}")


def test_lists_longer_than_a_page_are_read_whole(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.namespace()
    for number in range(520):
        answer = cluster.http.post(
            f"/api/v1/namespaces/{name}/serviceaccounts", json=account(name, f"sa-{number}")
        )
        assert answer.is_success, answer.text
    one = KubeServing(cluster, tmp_path).start()
    counted = [
        line for line in one.get("/metrics")[1].splitlines() if 'objects{kind="ServiceAccount"}' in line
    ]
    assert one.stop() == 0, one.log
    total = len(cluster.get("/api/v1/serviceaccounts")["items"])
    assert total > 500
    assert [float(line.split()[-1]) for line in counted] == [float(total)]
