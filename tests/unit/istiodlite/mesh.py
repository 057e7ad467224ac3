"""Objects from short YAML, and the resources they become."""

from __future__ import annotations

import textwrap

from istiodlite.api import authorization_pb2, workload_pb2
from istiodlite.manifests import load_text
from istiodlite.objects import KubeObject, ObjectKey
from istiodlite.registry import ADDRESS_TYPE, MeshConfig, Registry

_VERSIONS = {
    "EndpointSlice": "discovery.k8s.io/v1",
    "Gateway": "gateway.networking.k8s.io/v1",
    "GatewayClass": "gateway.networking.k8s.io/v1",
    "ServiceEntry": "networking.istio.io/v1",
    "WorkloadEntry": "networking.istio.io/v1",
    "WorkloadGroup": "networking.istio.io/v1",
    "AuthorizationPolicy": "security.istio.io/v1",
    "PeerAuthentication": "security.istio.io/v1",
}

WEB_POD = """
kind: Pod
metadata:
  name: web-7d9c5b7f6-abcde
  namespace: shop
  uid: uid-web
  generateName: web-7d9c5b7f6-
  ownerReferences: [{kind: ReplicaSet, name: web-7d9c5b7f6, controller: true}]
  labels: {app: web, version: v2, pod-template-hash: 7d9c5b7f6}
  annotations: {ambient.istio.io/redirection: enabled}
spec:
  nodeName: n1
  serviceAccountName: web
  containers: [{name: web, ports: [{name: http, containerPort: 8080}]}]
status:
  phase: Running
  podIPs: [{ip: 10.1.0.5}]
  conditions: [{type: Ready, status: "True"}]
"""
WEB_SERVICE = """
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  ipFamilies: [IPv4]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
"""
NODE = """
kind: Node
metadata:
  name: n1
  labels: {topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z1}
"""
WEB_UID = "Kubernetes//Pod/shop/web-7d9c5b7f6-abcde"
WEB_HOST = "shop/web.shop.svc.cluster.local"


def documents(text: str) -> str:
    """Adds the apiVersion that each kind needs."""
    out = []
    for part in textwrap.dedent(text).split("\n---\n"):
        kind = next(line.split()[1] for line in part.splitlines() if line.startswith("kind:"))
        out.append(f"apiVersion: {_VERSIONS.get(kind, 'v1')}\n{part.strip()}\n")
    return "---\n".join(out)


def objects(*texts: str) -> dict[ObjectKey, KubeObject]:
    loaded, errors = load_text(documents("\n---\n".join(texts)), "test.yaml")
    assert not errors, "\n".join(map(str, errors))
    return {one.key: one.object for one in loaded}


class Mesh:
    """A registry fed with manifests."""

    def __init__(self, *texts: str, config: MeshConfig | None = None) -> None:
        self.registry = Registry(config or MeshConfig())
        self.apply(*texts)

    def apply(self, *texts: str) -> set[str]:
        """Puts the objects; names of the resources that changed, removed ones with a leading "-"."""
        changes = self.registry.apply(dict(objects(*texts)) if texts else {})
        return {one.name for one in changes.changed} | {f"-{name}" for _, name in changes.removed}

    def remove(self, kind: str, namespace: str, name: str) -> set[str]:
        changes = self.registry.apply({ObjectKey(kind, namespace, name): None})
        return {one.name for one in changes.changed} | {f"-{name}" for _, name in changes.removed}

    def _addresses(self) -> dict[str, workload_pb2.Address]:
        return {
            name: workload_pb2.Address.FromString(one.body)
            for (type_url, name), one in self.registry.resources.items()
            if type_url == ADDRESS_TYPE
        }

    @property
    def workloads(self) -> dict[str, workload_pb2.Workload]:
        return {n: a.workload for n, a in self._addresses().items() if a.HasField("workload")}

    @property
    def services(self) -> dict[str, workload_pb2.Service]:
        return {n: a.service for n, a in self._addresses().items() if a.HasField("service")}

    @property
    def policies(self) -> dict[str, authorization_pb2.Authorization]:
        return {
            name: authorization_pb2.Authorization.FromString(one.body)
            for (type_url, name), one in self.registry.resources.items()
            if type_url != ADDRESS_TYPE
        }

    def reasons(self, condition: str) -> dict[str, str]:
        """Object -> reason, of one type of condition."""
        return {str(one.key): one.reason for one in self.registry.conditions() if one.type == condition}


def ports(workload: workload_pb2.Workload, service: str) -> list[tuple[int, int]]:
    return [(port.service_port, port.target_port) for port in workload.services[service].ports]
