"""Two agents for one pod: who of them gets its connections."""

from __future__ import annotations

from ebpf.capture.pod import EnrolledPod
from ebpf.capture.state import NodeState


def handed_over(node: NodeState) -> int:
    """See `Capture.handed_over`."""
    return sum(not _hands_over_to(node, pod) for pod in node.pods.values())


def served(node: NodeState) -> dict[int, list[int]]:
    """What clients wait at, by cookie, of the pods that are this process's: a successor's are not to be kept from it."""
    return {pod.cookie: pod.descriptors() for pod in node.pods.values() if _serves(node, pod)}


def reclaim(node: NodeState) -> int:
    """See `Capture.reclaim`; no other agent is there."""
    lost = [pod for pod in node.pods.values() if _is_lost(node, pod)]
    for pod in lost:
        node.ledger.set_listeners(pod.slot, pod.listeners)
        node.ledger.set_dns(pod.slot, pod.dns)
        if node.store:
            node.store.keep(pod.cookie, pod.descriptors())
    return len(lost)


def _hands_over_to(node: NodeState, pod: EnrolledPod) -> bool:
    record = node.ledger.records.get(pod.cookie)
    return record is not None and node.ledger.hands_over_to(record, pod.listeners)


def _serves(node: NodeState, pod: EnrolledPod) -> bool:
    record = node.ledger.records.get(pod.cookie)
    return record is not None and pod.listeners.are_open() and node.ledger.serves(record, pod.listeners)


def _is_lost(node: NodeState, pod: EnrolledPod) -> bool:
    """Whether the kernel gives the pod's connections to another agent's listeners, or to none."""
    record = node.ledger.records.get(pod.cookie)
    if record is None or not pod.listeners.are_open() or node.ledger.serves(record, pod.listeners):
        return False
    return node.ledger.is_current(record)
