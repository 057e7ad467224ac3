"""The small mesh of which a row changes one field."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from istiodlite.manifests import load_text
from istiodlite.registry import MeshConfig, Registry
from tests.unit.istiodlite.mesh import documents

MANIFESTS = documents("""
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z1}}
---
kind: GatewayClass
metadata: {name: istio-waypoint}
spec: {controllerName: istio.io/mesh-controller}
---
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
status: {addresses: [{type: IPAddress, value: 10.96.0.50}]}
---
kind: Gateway
metadata: {name: workloads, namespace: shop, labels: {istio.io/waypoint-for: workload}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
status: {addresses: [{type: IPAddress, value: 10.96.0.51}]}
---
kind: Service
metadata: {name: through, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {clusterIP: 10.96.0.60, ports: [{name: http, port: 80}]}
---
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  ipFamilies: [IPv4]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
kind: Service
metadata: {name: outside, namespace: shop}
spec: {clusterIP: 10.96.0.70, ports: [{name: http, port: 80}]}
---
kind: EndpointSlice
metadata: {name: outside-1, namespace: shop, labels: {kubernetes.io/service-name: outside}}
addressType: IPv4
endpoints: [{addresses: [203.0.113.7], conditions: {ready: true}}]
ports: [{name: http, port: 9000}]
---
kind: Pod
metadata:
  name: web
  namespace: shop
  labels: {app: web}
  annotations: {ambient.istio.io/redirection: enabled}
spec:
  nodeName: n1
  serviceAccountName: web
  containers: [{name: web, ports: [{name: http, containerPort: 8080}]}]
status:
  phase: Running
  podIPs: [{ip: 10.1.0.5}]
  conditions: [{type: Ready, status: "True"}]
---
kind: ServiceEntry
metadata: {name: ext, namespace: shop}
spec:
  hosts: [a.example.com]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 203.0.113.5}]
---
kind: WorkloadEntry
metadata: {name: vm, namespace: shop}
spec: {address: 203.0.113.6, serviceAccount: vm}
---
kind: WorkloadGroup
metadata: {name: machines, namespace: shop}
spec: {template: {serviceAccount: vm}}
---
kind: Gateway
metadata: {name: east, namespace: shop, labels: {topology.istio.io/network: other}}
spec:
  gatewayClassName: istio-remote
  listeners: [{name: cross, port: 15008, protocol: HBONE}]
status: {addresses: [{type: IPAddress, value: 192.0.2.50}]}
---
kind: AuthorizationPolicy
metadata: {name: policy, namespace: shop}
spec:
  action: ALLOW
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
      to: [{operation: {ports: ["8080"]}}]
---
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}
""")
_STEP = re.compile(r"\[([^\]]+)\]|([^.\[\]]+)")
# The one object of each kind that rows change; else the last of its kind.
_NAMES = {"Gateway": "waypoint", "Service": "web"}


class Refused(Exception):
    """The reader refused the mesh; the text names the field."""


def changed(kind: str, field: str, value: Any) -> list[dict[str, Any]]:
    """The mesh with one field of one object set."""
    bodies: list[dict[str, Any]] = copy.deepcopy(list(yaml.safe_load_all(MANIFESTS)))
    (body,) = _changeable(bodies, kind)
    _put(body, [one or other for one, other in _STEP.findall(field)], value)
    return bodies


def name_of(kind: str) -> str:
    """The object of a kind that rows change."""
    (body,) = _changeable(yaml.safe_load_all(MANIFESTS), kind)
    return str(body["metadata"]["name"])


def _changeable(bodies: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    wanted = _NAMES.get(kind)
    return [one for one in bodies if one["kind"] == kind and wanted in (None, one["metadata"]["name"])]


def _put(body: Any, steps: list[str], value: Any) -> None:
    for step, following in itertools.pairwise(steps):
        body = body[int(step)] if step.isdigit() else body.setdefault(step, [] if following.isdigit() else {})
    last = steps[-1]
    if isinstance(body, list):
        body[int(last) :] = [value]
    else:
        body[last] = value


def resources(bodies: list[dict[str, Any]]) -> Mapping[tuple[str, str], bytes]:
    """(type, name) -> what agents are told. Raises Refused."""
    loaded, errors = load_text(yaml.safe_dump_all(bodies), "mesh.yaml")
    if errors:
        raise Refused("; ".join(map(str, errors)))
    registry = Registry(MeshConfig())
    registry.apply({one.key: one.object for one in loaded})
    return {key: one.body for key, one in registry.resources.items()}
