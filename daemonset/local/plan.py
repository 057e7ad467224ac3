"""The difference between what is and what should be, as ordered steps. Pure.

`plan` gives the steps that can be taken *now*; the supervisor takes them and asks again whenever
something has changed, until nothing is left. So a step that has to wait (old pods of a Deployment until
the new ones are ready; a pod's successor until the name is free) is simply not given yet.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from daemonset.local.desired import Desired, NodeSpec
from daemonset.local.schedule import place
from daemonset.local.template import Key, PodTemplate


class Phase(enum.Enum):
    """Where a pod is in its life, as far as planning cares."""

    STARTING = "starting"
    READY = "ready"
    FINISHED = "finished"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class CurrentPod:
    """A pod that exists."""

    template: PodTemplate
    node: str
    phase: Phase


@dataclass(frozen=True, slots=True)
class Current:
    """What exists."""

    nodes: Mapping[str, NodeSpec]
    pods: Mapping[Key, CurrentPod]


@dataclass(frozen=True, slots=True)
class AddNode:
    """Make the node's network and start its agent."""

    node: NodeSpec


@dataclass(frozen=True, slots=True)
class UpdateNode:
    """The node's labels changed."""

    node: NodeSpec


@dataclass(frozen=True, slots=True)
class RemoveNode:
    """Take the node away; it has no pods left."""

    name: str


@dataclass(frozen=True, slots=True)
class StartPod:
    """Make the pod on the node."""

    template: PodTemplate
    node: str


@dataclass(frozen=True, slots=True)
class UpdatePod:
    """Labels or annotations of a running pod changed."""

    template: PodTemplate


@dataclass(frozen=True, slots=True)
class StopPod:
    """End the pod; `why` is shown to the user."""

    key: Key
    why: str


Action = AddNode | UpdateNode | RemoveNode | StartPod | UpdatePod | StopPod


def plan(desired: Desired, current: Current) -> tuple[Action, ...]:
    """Steps that can be taken now, in order. Raises schedule.Unschedulable."""
    steps: list[Action] = []
    steps += [AddNode(n) for n in desired.nodes.values() if n.name not in current.nodes]
    steps += [UpdateNode(n) for n in desired.nodes.values() if current.nodes.get(n.name, n) != n]
    stops = _stops(desired, current)
    steps += [StopPod(key, why) for key, why in stops.items()]
    steps += _starts(desired, current)
    steps += _updates(desired, current, stops)
    occupied = {p.node for p in current.pods.values()}
    steps += [RemoveNode(n) for n in current.nodes if n not in desired.nodes and n not in occupied]
    return tuple(steps)


def converged(desired: Desired, current: Current) -> bool:
    """Whether all is as it should be, every pod ready or finished."""
    return (
        not plan(desired, current)
        and desired.pods.keys() == current.pods.keys()
        and all(p.phase in (Phase.READY, Phase.FINISHED) for p in current.pods.values())
    )


def _stops(desired: Desired, current: Current) -> dict[Key, str]:
    stops: dict[Key, str] = {}
    for key, pod in current.pods.items():
        if pod.phase is Phase.STOPPING:
            continue
        if why := _why_stop(desired, current, key, pod):
            stops[key] = why
    return stops


def _why_stop(desired: Desired, current: Current, key: Key, pod: CurrentPod) -> str:
    if pod.node not in desired.nodes:
        return f"node {pod.node} goes away"
    wanted = desired.pods.get(key)
    if wanted is None:
        return _why_surplus(desired, current, pod)
    if wanted.fingerprint != pod.template.fingerprint:
        return "its specification changed"
    if wanted.spec.get("nodeName") not in (None, "", pod.node):
        return f"it moves to node {wanted.spec['nodeName']}"
    return ""


def _why_surplus(desired: Desired, current: Current, pod: CurrentPod) -> str:
    """A pod no manifest asks for goes at once; one replaced by a roll-out when its successors are ready."""
    owner = (pod.template.namespace, pod.template.deployment)
    deployment = desired.deployments.get(owner) if pod.template.deployment else None
    if deployment is None:
        return "it is no longer declared"
    siblings = {desired.pods[k].template_hash for k in deployment.pods}
    if not siblings or pod.template.template_hash in siblings:
        return "scaled down"
    if deployment.recreate:
        return "its Deployment changed"
    ready = all(k in current.pods and current.pods[k].phase is Phase.READY for k in deployment.pods)
    return "its successors are ready" if ready else ""


def _starts(desired: Desired, current: Current) -> list[Action]:
    pending = [
        t for k, t in desired.pods.items() if k not in current.pods and not _held_back(desired, current, t)
    ]
    placed = {k: (p.node, p.template) for k, p in current.pods.items() if p.node in desired.nodes}
    nodes = place(pending, desired.nodes, placed)
    return [StartPod(t, nodes[t.key]) for t in pending]


def _held_back(desired: Desired, current: Current, template: PodTemplate) -> bool:
    """Whether the Deployment's strategy is Recreate and pods of the former template are still there."""
    deployment = desired.deployments.get((template.namespace, template.deployment))
    if not template.deployment or deployment is None or not deployment.recreate:
        return False
    return any(
        p.template.namespace == template.namespace
        and p.template.deployment == template.deployment
        and p.template.template_hash != template.template_hash
        for p in current.pods.values()
    )


def _updates(desired: Desired, current: Current, stops: Mapping[Key, str]) -> list[Action]:
    found: list[Action] = []
    for key, pod in current.pods.items():
        wanted = desired.pods.get(key)
        if wanted is None or key in stops or pod.phase is Phase.STOPPING:
            continue
        same = wanted.labels == pod.template.labels and wanted.annotations == pod.template.annotations
        if not same and wanted.fingerprint == pod.template.fingerprint:
            found.append(UpdatePod(wanted))
    return found
