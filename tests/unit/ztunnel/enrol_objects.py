"""Pods and namespaces as an API server has them, for tests of enrolment."""

from __future__ import annotations

from typing import Any

from istiodlite.kube.key import ObjectKey
from ztunnel.enrol.nodepods import NodePod, pods_on, read_pod

Body = dict[str, Any]
UID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
KIND = pods_on("n1")


def pod_body(
    name: str = "web",
    *,
    uid: str = UID,
    mode: str = "",
    annotations: dict[str, str] | None = None,
    ip: str = "",
    phase: str = "Running",
    deleting: bool = False,
    **spec: Any,
) -> Body:
    """`mode` is the label of that name."""
    meta: Body = {"name": name, "namespace": "shop", "uid": uid, "annotations": annotations or {}}
    if mode:
        meta["labels"] = {"istio.io/dataplane-mode": mode}
    if deleting:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    status: Body = {"phase": phase}
    if ip:
        status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
    return {"metadata": meta, "spec": {"nodeName": "n1", **spec}, "status": status}


def pod(name: str = "web", **fields: Any) -> NodePod:
    found = read_pod(KIND, pod_body(name, **fields)).object
    assert found is not None
    return found


def key(name: str = "web") -> ObjectKey:
    return ObjectKey("Pod", "shop", name)
