"""Objects as an API server has them, with all that nobody needs."""

from __future__ import annotations

from typing import Any

from istiodlite.objects import ObjectKey

Body = dict[str, Any]


def pod(name: str, ip: str = "10.1.0.5", namespace: str = "shop", **meta: Any) -> Body:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "labels": {"app": name},
            "annotations": {"ambient.istio.io/redirection": "enabled"},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
            **meta,
        },
        "spec": {"nodeName": "n1", "serviceAccountName": name, "containers": [{"name": "c", "image": "i"}]},
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        },
    }


def namespace(name: str, **meta: Any) -> Body:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, **meta}}


def policy(name: str, action: str = "DENY", **spec: Any) -> Body:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"action": action, "rules": [{}], **spec},
    }


def key(kind: str, name: str, namespace: str = "shop") -> ObjectKey:
    return ObjectKey(kind, namespace, name)
