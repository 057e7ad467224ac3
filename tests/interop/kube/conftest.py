"""Tests marked `kube` run against the cluster that $KUBECONFIG names, as its administrator; without one they
are left out, and the run says so. They install the CRDs, namespace and roles of daemonset/kubernetes (not the
workloads), and what they make besides is in namespaces of their own, which they remove."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from istiodlite.kube import find_access
from tests.interop.control.agent import Agent
from tests.support.serving import ROOT, Serving, wait_until

MANIFESTS = ROOT / "daemonset" / "kubernetes"
Body = dict[str, Any]

_CLUSTER_SCOPED = {
    "Namespace": "namespaces",
    "Node": "nodes",
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "CustomResourceDefinition": "customresourcedefinitions",
    "ValidatingWebhookConfiguration": "validatingwebhookconfigurations",
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
}
_PLURALS = {
    "AuthorizationPolicy": "authorizationpolicies",
    "PeerAuthentication": "peerauthentications",
    "ServiceEntry": "serviceentries",
    "WorkloadEntry": "workloadentries",
    "WorkloadGroup": "workloadgroups",
}


class Cluster:
    """The API server as its administrator sees it."""

    def __init__(self) -> None:
        self.access = find_access(None, "", {**os.environ, "KUBERNETES_SERVICE_HOST": ""})
        token = self.access.bearer()
        self.http = httpx2.Client(
            base_url=self.access.server,
            verify=self.access.tls(),
            trust_env=False,
            timeout=30,
            headers={"authorization": f"Bearer {token}"} if token else {},
        )
        self.namespaces: list[str] = []

    @staticmethod
    def path(body: Body) -> str:
        version, kind, meta = body["apiVersion"], body["kind"], body["metadata"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if kind in _CLUSTER_SCOPED:
            return f"{root}/{_CLUSTER_SCOPED[kind]}"
        return (
            f"{root}/namespaces/{meta.get('namespace', 'default')}/{_PLURALS.get(kind, kind.lower() + 's')}"
        )

    def apply(self, body: Body, *, dry_run: bool = False) -> httpx2.Response:
        """Server-side apply; unknown fields are errors."""
        parameters = {"fieldManager": "tests", "force": "true", "fieldValidation": "Strict"}
        return self.http.patch(
            f"{self.path(body)}/{body['metadata']['name']}",
            params={**parameters, "dryRun": "All"} if dry_run else parameters,
            content=json.dumps(body),
            headers={"content-type": "application/apply-patch+yaml"},
        )

    def put(self, body: Body) -> Body:
        answer = self.apply(body)
        assert answer.is_success, answer.text
        if "status" in body:
            answer = self.http.patch(
                f"{self.path(body)}/{body['metadata']['name']}/status",
                content=json.dumps({"status": body["status"]}),
                headers={"content-type": "application/merge-patch+json"},
            )
            assert answer.is_success, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def get(self, path: str) -> Any:
        answer = self.http.get(path)
        return answer.json() if answer.is_success else None

    def delete(self, body: Body) -> None:
        answer = self.http.delete(
            f"{self.path(body)}/{body['metadata']['name']}", params={"gracePeriodSeconds": "0"}
        )
        assert answer.is_success, answer.text

    def namespace(self) -> str:
        """A fresh one."""
        name = f"al-test-{secrets.token_hex(4)}"
        self.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        self.namespaces.append(name)
        return name

    def token(self, namespace: str, account: str, audience: str = "", pod: Body | None = None) -> str:
        spec: Body = {"expirationSeconds": 3600, "audiences": [audience] if audience else []}
        if pod is not None:
            meta = pod["metadata"]
            spec["boundObjectRef"] = {
                "kind": "Pod",
                "apiVersion": "v1",
                "name": meta["name"],
                "uid": meta["uid"],
            }
        answer = self.http.post(
            f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token",
            json={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        )
        assert answer.is_success, answer.text
        return str(answer.json()["status"]["token"])

    def may(
        self, account: str, verb: str, group: str, resource: str, namespace: str = "", name: str = ""
    ) -> bool:
        """Whether a service account of istio-system may do something; `resource` as in a role (`pods/status`)."""
        plural, _, subresource = resource.partition("/")
        attributes = {
            "verb": verb,
            "group": group,
            "resource": plural,
            "subresource": subresource,
            "namespace": namespace,
            "name": name,
        }
        user = f"system:serviceaccount:istio-system:{account}"
        answer = self.http.post(
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            json={
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {
                    "user": user,
                    "groups": ["system:serviceaccounts"],
                    "resourceAttributes": attributes,
                },
            },
        )
        return bool(answer.json()["status"]["allowed"])


def manifests(part: str) -> list[Body]:
    """The objects of the files that a kustomization lists."""
    folder = MANIFESTS / part
    files = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    return [body for file in files for body in yaml.safe_load_all((folder / file).read_text())]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """With CRDs, namespace and roles installed."""
    one = Cluster()
    for body in [*manifests("crds"), *manifests("base")]:
        if body["kind"] not in ("Deployment", "DaemonSet"):
            one.put(body)
    for body in manifests("crds"):
        wait_until(lambda body=body: established(one, body), f"{body['metadata']['name']} established")
    yield one
    for name in one.namespaces:
        one.http.delete(f"/api/v1/namespaces/{name}")


def established(cluster: Cluster, body: Body) -> bool:
    found = cluster.get(f"{cluster.path(body)}/{body['metadata']['name']}")
    conditions = {one["type"]: one["status"] for one in found.get("status", {}).get("conditions", [])}
    return conditions.get("Established") == "True" and conditions.get("NonStructuralSchema") != "True"


class KubeServing(Serving):
    """`istiodlite serve --kube` as a process, with the rights of its service account and no more."""

    def __init__(self, cluster: Cluster, folder: Path, *arguments: str) -> None:
        super().__init__(folder / "log")
        self.cluster, self.folder, self.arguments = cluster, folder, arguments
        self.kubeconfig = folder / "kubeconfig"
        access = cluster.access
        (folder / "ca.crt").write_bytes(access.authority.read() if access.authority else b"")
        (folder / "account-token").write_text(cluster.token("istio-system", "istiodlite"))
        where: Body = {"server": access.server, "tls-server-name": access.tls_name}
        if access.authority is not None:
            where["certificate-authority"] = "ca.crt"
        config = {
            "current-context": "x",
            "clusters": [{"name": "x", "cluster": where}],
            "users": [{"name": "x", "user": {"tokenFile": "account-token"}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def start(self) -> KubeServing:
        own = ("--kube", "--kubeconfig", str(self.kubeconfig), "--webhook-port", "0")
        self.launch(*own, *self.arguments)
        return self

    def resources(self, part: str) -> set[str]:
        return {one["name"] for one in json.loads(self.get("/debug/resources")[1])[part]}

    def root(self) -> bytes:
        found = self.cluster.get("/api/v1/namespaces/istio-system/configmaps/istio-ca-root-cert")
        return str(found["data"]["root-cert.pem"]).encode()

    def agent(self, token: str, **fields: Any) -> Agent:
        return Agent(f"127.0.0.1:{self.port}", self.root(), token, **fields)


@pytest.fixture
def serving(cluster: Cluster, tmp_path: Path) -> Iterator[KubeServing]:
    one = KubeServing(cluster, tmp_path).start()
    yield one
    assert one.stop() == 0, one.log
    assert "Traceback" not in one.log, one.log
