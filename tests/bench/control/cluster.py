"""The large mesh in a Kubernetes API server, for control planes that take it from there.

Run as `python -m tests.bench.control.cluster`: puts it into the cluster that KUBECONFIG names, which takes minutes
and is done once: a ConfigMap written last says that all is there. Nothing else may run in that cluster: no kubelets, and
no controllers that would find fifty thousand pods to look after. Services get addresses from the cluster.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from istiodlite.kube import Access, AccessError, find_access
from istiodlite.objects import AuthorizationPolicy, KubeObject, Meta, Namespace, Node, Pod, Service
from tests.bench.control.objects import PODS, SERVICES, mesh
from tests.bench.native import BuildError

Body = dict[str, Any]
_MARK = "/api/v1/namespaces/istio-system/configmaps/bench-control"
_CONTENT = f"{SERVICES} services, {PODS} pods, 1"
_AT_ONCE = 6
_MERGE = "application/merge-patch+json"


def access() -> Access:
    """Of the cluster that KUBECONFIG names. Raises BuildError."""
    try:
        return find_access(None, "", {**os.environ, "KUBERNETES_SERVICE_HOST": ""})
    except AccessError as error:
        raise BuildError(str(error)) from None


class Connection:
    """One connection to the API server, for one thread."""

    def __init__(self, where: Access) -> None:
        place = urlsplit(where.server)
        self._http = http.client.HTTPSConnection(
            place.hostname or "", place.port, context=where.tls(), timeout=60
        )
        token = where.bearer()
        self._headers = {"authorization": f"Bearer {token}"} if token else {}

    def ask(
        self, method: str, path: str, body: Body | None = None, kind: str = "application/json"
    ) -> tuple[int, Any]:
        """(status, JSON of the answer)"""
        data = None if body is None else json.dumps(body)
        headers = {**self._headers, "content-type": kind}
        try:
            self._http.request(method, path, data, headers)
            answer = self._http.getresponse()
        except (http.client.RemoteDisconnected, ConnectionError):
            # Left idle for too long, while a control plane started: the next request opens another one.
            self._http.close()
            self._http.request(method, path, data, headers)
            answer = self._http.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text.startswith(b"{") else text

    def make(self, path: str, body: Body) -> None:
        """What is there already stays. Raises BuildError."""
        status, answer = self.ask("POST", path, body)
        if status not in (201, 409):
            raise BuildError(f"POST {path}: {status} {answer}")

    def status(self, path: str, status: Body) -> None:
        code, answer = self.ask("PATCH", f"{path}/status", {"status": status}, _MERGE)
        if code != 200:
            raise BuildError(f"PATCH {path}/status: {code} {answer}")


def _metadata(meta: Meta) -> Body:
    out: Body = {"name": meta.name, "labels": dict(meta.labels), "annotations": dict(meta.annotations)}
    if meta.generate_name:
        out["generateName"] = meta.generate_name
    if meta.owners:
        out["ownerReferences"] = [
            {"apiVersion": "apps/v1", "kind": one.kind, "name": one.name, "uid": one.name, "controller": True}
            for one in meta.owners
        ]
    return out


def status_of(pod: Pod) -> Body:
    """What a kubelet would say of it."""
    return {
        "phase": pod.phase,
        "podIP": pod.addresses[0],
        "podIPs": [{"ip": one} for one in pod.addresses],
        "conditions": [{"type": "Ready", "status": str(pod.ready)}],
    }


def path_of(pod: Pod) -> str:
    return f"/api/v1/namespaces/{pod.meta.namespace}/pods/{pod.meta.name}"


def _pod(pod: Pod) -> Body:
    ports = [{"containerPort": one.number, "name": one.name} for one in pod.containers[0].ports]
    spec = {
        "nodeName": pod.node,
        "serviceAccountName": pod.service_account,
        "automountServiceAccountToken": False,
        "containers": [{"name": "main", "image": "app:1", "ports": ports}],
    }
    return {"metadata": _metadata(pod.meta), "spec": spec}


def _service(service: Service) -> Body:
    ports = [
        {"port": one.port, "name": one.name, "targetPort": one.target or one.port} for one in service.ports
    ]
    return {"metadata": _metadata(service.meta), "spec": {"ports": ports, "selector": dict(service.selector)}}


def _policy(policy: AuthorizationPolicy) -> Body:
    rules = [
        {"from": [{"source": {"principals": list(source.principals)}} for source in rule.sources]}
        for rule in policy.rules
    ]
    spec = {"selector": {"matchLabels": dict(policy.selector)}, "rules": rules}
    kind = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy"}
    return {**kind, "metadata": _metadata(policy.meta), "spec": spec}


def _requests(obj: KubeObject) -> Iterator[tuple[str, Body]]:
    """(path, body) to be posted"""
    meta = obj.meta
    place = f"/api/v1/namespaces/{meta.namespace}"
    if isinstance(obj, Namespace | Node):
        yield f"/api/v1/{obj.kind.lower()}s", {"metadata": _metadata(meta)}
    elif isinstance(obj, Service):
        yield f"{place}/serviceaccounts", {"metadata": {"name": meta.name}}
        yield f"{place}/services", _service(obj)
    elif isinstance(obj, AuthorizationPolicy):
        yield f"/apis/security.istio.io/v1/namespaces/{meta.namespace}/authorizationpolicies", _policy(obj)
    elif isinstance(obj, Pod):
        yield f"{place}/pods", _pod(obj)


def _load(where: Access, objects: Iterable[KubeObject]) -> None:
    connection = Connection(where)
    for obj in objects:
        for path, body in _requests(obj):
            connection.make(path, body)
        if isinstance(obj, Pod):
            connection.status(path_of(obj), status_of(obj))


def token(connection: Connection) -> str:
    """Of the account that agents have."""
    place = "/api/v1/namespaces/istio-system/serviceaccounts"
    connection.make(place, {"metadata": {"name": "ztunnel"}})
    spec = {"audiences": ["istio-ca"], "expirationSeconds": 7200}
    status, answer = connection.ask("POST", f"{place}/ztunnel/token", {"spec": spec})
    if status != 201:
        raise BuildError(f"no token for istio-system/ztunnel: {status} {answer}")
    return str(answer["status"]["token"])


def root(connection: Connection) -> bytes:
    """The mesh's root certificate; empty while no control plane has made one."""
    status, answer = connection.ask("GET", "/api/v1/namespaces/istio-system/secrets/istio-ca-secret")
    return base64.b64decode(answer["data"]["ca-cert.pem"]) if status == 200 else b""


def loaded(where: Access) -> bool:
    """The mesh is there, all of it."""
    status, answer = Connection(where).ask("GET", _MARK)
    return status == 200 and answer["data"]["content"] == _CONTENT


def load(where: Access, nodes: int) -> None:
    """Puts it there; what a run that was cut off left is kept."""
    objects = list(mesh(nodes).values())
    pods = [one for one in objects if isinstance(one, Pod)]
    for kinds in ((Namespace, Node), (Service, AuthorizationPolicy), (Pod,)):
        wanted = [one for one in objects if isinstance(one, kinds)]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(_load, [where] * _AT_ONCE, [wanted[n::_AT_ONCE] for n in range(_AT_ONCE)]))
    mark = {"metadata": {"name": "bench-control"}, "data": {"content": _CONTENT}}
    Connection(where).make(_MARK.rpartition("/")[0], mark)
    print(f"{len(pods)} pods", file=sys.stderr)


if __name__ == "__main__":
    load(access(), 500)
