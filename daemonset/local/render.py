"""The objects folder's contents: what a Kubernetes API would show of the mesh. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daemonset.local.desired import SYSTEM_NAMESPACE
from daemonset.local.template import PodTemplate
from ztunnel.enrol.membership import REDIRECTION

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PodStatus:
    """What the supervisor knows of a pod beyond its template."""

    uid: str
    created: str
    node: str
    addresses: tuple[str, ...]
    host_addresses: tuple[str, ...]
    phase: str
    ready: bool
    deleting: str = ""  # time of deletion, empty while it lives
    redirection: str = ""
    containers: tuple[Json, ...] = ()


def file_name(obj: Json) -> str:
    """Where the object is in the folder: kind.namespace.name.yaml."""
    meta = obj["metadata"]
    return f"{str(obj['kind']).lower()}.{meta.get('namespace', '')}.{meta['name']}.yaml"


def pod_object(template: PodTemplate, status: PodStatus) -> dict[str, Any]:
    """The Pod as its node's kubelet and CNI would have it."""
    annotations = dict(template.annotations)
    annotations.pop(REDIRECTION, None)  # a status: never the user's
    if status.redirection:
        annotations[REDIRECTION] = status.redirection
    metadata: dict[str, Any] = {
        "name": template.name,
        "namespace": template.namespace,
        "uid": status.uid,
        "creationTimestamp": status.created,
        "labels": dict(template.labels),
        "annotations": annotations,
    }
    if status.deleting:
        metadata["deletionTimestamp"] = status.deleting
    if template.deployment:
        replica_set = f"{template.deployment}-{template.template_hash}"
        metadata["generateName"] = f"{replica_set}-"
        metadata["ownerReferences"] = [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": replica_set, "controller": True}
        ]
    spec = {**template.spec, "nodeName": status.node, "serviceAccountName": template.service_account}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": _status(status)}


def _status(status: PodStatus) -> dict[str, Any]:
    ready = "True" if status.ready else "False"
    body: dict[str, Any] = {
        "phase": status.phase,
        "conditions": [{"type": kind, "status": ready} for kind in ("Ready", "ContainersReady")],
        "containerStatuses": [dict(c) for c in status.containers],
    }
    if status.host_addresses:
        body["hostIP"] = status.host_addresses[0]
    if status.addresses:
        body["podIP"] = status.addresses[0]
        body["podIPs"] = [{"ip": a} for a in status.addresses]
    return body


def node_object(
    name: str, labels: Mapping[str, str], addresses: Iterable[str], created: str
) -> dict[str, Any]:
    """A Node."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": dict(labels), "creationTimestamp": created},
        "status": {
            "addresses": [{"type": "InternalIP", "address": a} for a in addresses],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def agent_pod(
    name: str, uid: str, node: str, addresses: Sequence[str], created: str, *, ready: bool
) -> dict[str, Any]:
    """The Pod of a node's agent: what lets the control plane recognise the agent as the node's."""
    condition = "True" if ready else "False"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": SYSTEM_NAMESPACE,
            "uid": uid,
            "creationTimestamp": created,
            "labels": {"app": "ztunnel", "istio.io/dataplane-mode": "none"},
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "ztunnel",
            "hostNetwork": True,
            "containers": [{"name": "istio-proxy"}],
        },
        "status": {
            "phase": "Running",
            "hostIP": addresses[0],
            "podIP": addresses[0],
            "podIPs": [{"ip": a} for a in addresses],
            "conditions": [{"type": "Ready", "status": condition}],
        },
    }


def service_object(obj: Json, addresses: Sequence[str], families: Iterable[int]) -> dict[str, Any]:
    """The user's Service with the addresses it was given."""
    if not addresses:
        return dict(obj)
    spec = {
        **obj.get("spec", {}),
        "clusterIP": addresses[0],
        "clusterIPs": list(addresses),
        "ipFamilies": [f"IPv{f}" for f in families],
    }
    return {**obj, "spec": spec}


def aged(obj: Json, created: str) -> dict[str, Any]:
    """The object with its time of creation: order by age decides between conflicting objects."""
    metadata = {"creationTimestamp": created, **obj["metadata"]}
    return {**obj, "metadata": metadata}
