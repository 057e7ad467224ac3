"""The objects folder as a function of the mesh's state."""

from collections.abc import Mapping
from typing import Any, Protocol

from daemonset.local.desired import Desired
from daemonset.local.node import Node
from daemonset.local.pods import ContainerState, Pod
from daemonset.local.render import (
    PodStatus,
    aged,
    agent_pod,
    file_name,
    node_object,
    pod_object,
    service_object,
)
from daemonset.local.template import Key

_RENDERED = ("Pod", "Node")  # these come from what runs, not from the manifests


class World(Protocol):
    """What the objects are made from. `addresses`: ClusterIPs by service; `ages`: creation by kind, namespace, name."""

    with_mesh: bool
    desired: Desired
    pods: dict[Key, Pod]
    addresses: dict[Key, tuple[str, ...]]
    ages: dict[tuple[str, str, str], str]

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The nodes that exist, by name."""


def all_objects(mesh: World) -> dict[str, Mapping[str, Any]]:
    """Every object by file name: the user's, the nodes, the pods, the agents' pods, their account."""
    found = [_user_object(mesh, obj) for obj in mesh.desired.objects if obj["kind"] not in _RENDERED]
    for node in mesh.nodes.values():
        addresses = tuple(map(str, node.addresses))
        found.append(node_object(node.name, node.spec.labels, addresses, node.created))
        if mesh.with_mesh:
            identity = node.agent_identity
            found.append(
                agent_pod(
                    identity.pod, identity.uid, node.name, addresses, node.created, ready=node.agent_connected
                )
            )
    found += [pod_object(p.template, pod_status(p)) for p in mesh.pods.values() if not p.exited]
    return {file_name(obj): obj for obj in found}


def _user_object(mesh: World, obj: Mapping[str, Any]) -> dict[str, Any]:
    meta = obj["metadata"]
    key = (str(obj["kind"]), str(meta.get("namespace", "")), str(meta["name"]))
    full = aged(obj, mesh.ages.get(key, ""))
    if obj["kind"] == "Service":
        spec = mesh.desired.services[meta["namespace"], meta["name"]]
        return service_object(full, mesh.addresses.get(spec.key, ()), spec.families)
    return full


def pod_status(pod: Pod) -> PodStatus:
    """What a pod's object says of it."""
    return PodStatus(
        uid=pod.uid,
        created=pod.created,
        node=pod.sandbox.node,
        addresses=pod.sandbox.addresses if pod.networked else (),
        host_addresses=pod.sandbox.node_addresses,
        phase=pod.phase,
        ready=pod.ready,
        deleting=pod.created if pod.deleting else "",
        redirection=pod.enrolment.annotation,
        containers=tuple(_container_status(pod, name) for name in pod.statuses),
    )


def _container_status(pod: Pod, name: str) -> dict[str, Any]:
    status = pod.statuses[name]
    detail: dict[str, Any] = {}
    if status.state is not ContainerState.RUNNING and status.reason:
        detail["reason"] = status.reason
    if status.state is ContainerState.TERMINATED:
        detail["exitCode"] = status.exit_code
    return {
        "name": name,
        "ready": status.ready,
        "restartCount": status.restarts,
        "state": {status.state.value: detail},
    }
