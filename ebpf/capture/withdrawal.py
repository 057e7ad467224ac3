"""A pod is let out: nothing new is captured, and when nothing is relayed any more its network is as it was."""

from __future__ import annotations

import os
from collections.abc import Collection

from ebpf import netns
from ebpf.capture import namespace
from ebpf.capture.pod import EnrolledPod
from ebpf.capture.state import NodeState
from ebpf.maps import PodRecord
from ebpf.variants import Variant


def withdraw(node: NodeState, pod: EnrolledPod) -> bool:
    """See `Capture.withdraw`."""
    mine = node.pods.get(pod.cookie)
    if mine is None or mine.slot != pod.slot:
        return release(node, pod)
    del node.pods[pod.cookie]
    node.leaving[pod.cookie] = mine
    node.direct.expel(mine.slot)
    try:
        node.ledger.leave(node.ledger.records[pod.cookie])
        namespace.spare_dns(mine.network)
        if node.variant is Variant.C:
            namespace.narrow(mine.network)
        mine.listeners.await_accepted()
    finally:
        if node.store:
            node.store.forget(pod.cookie)
        mine.close()
    return release(node, pod)


def release(node: NodeState, pod: EnrolledPod) -> bool:
    """See `Capture.release`."""
    mine = node.leaving.get(pod.cookie)
    if mine is None or mine.network.netns_fd != pod.network.netns_fd:
        return True
    if namespace.relays(mine.network):
        return False
    finish(node, mine)
    return True


def finish(node: NodeState, pod: EnrolledPod) -> None:
    """The second half of a withdrawal, unless another agent has taken the pod over meanwhile."""
    del node.leaving[pod.cookie]
    record = node.ledger.records.get(pod.cookie)
    try:
        if record and node.ledger.is_leaving(record):
            forget(node, record, pod.network.netns_fd)
    finally:
        os.close(pod.network.netns_fd)


def let_go(node: NodeState, pod: EnrolledPod) -> None:
    """See `Capture.let_go`."""
    mine = node.pods.pop(pod.cookie, None)
    if mine is not None:
        mine.close()
        os.close(mine.network.netns_fd)


def forget(node: NodeState, record: PodRecord, netns_fd: int | None) -> None:
    """Undo an enrolment: what marks before what steers. `netns_fd` None if it is gone."""
    node.ledger.spare_connections(record)
    if netns_fd is not None:
        namespace.restore(netns_fd, record)
    node.kernel.detach_pod(record.slot)
    node.ledger.erase(record)


def prune(node: NodeState, keep: Collection[EnrolledPod]) -> list[int]:
    """See `Capture.prune`."""
    kept = {pod.cookie for pod in keep}
    slots: list[int] = []
    for cookie, record in list(node.ledger.records.items()):
        if cookie in kept:
            continue
        mine = node.pods.get(cookie) or node.leaving.get(cookie)
        if mine and not withdraw(node, mine):
            continue
        slots.append(record.slot)
        if not mine:
            _forget_lost(node, record)
    if node.variant is Variant.C:
        node.kernel.detach_cgroup()  # not before: until now it may have held pods
    for record in node.others.records:
        if record.cookie not in kept:
            _forget_other(node, record)
    node.others.remove()
    return slots


def _forget_lost(node: NodeState, record: PodRecord) -> None:
    """Forget a pod this process never enrolled; its namespace has to be found again."""
    netns_fd = netns.find(record.netns, record.cookie)
    try:
        forget(node, record, netns_fd)
    finally:
        if netns_fd is not None:
            os.close(netns_fd)


def _forget_other(node: NodeState, record: PodRecord) -> None:
    """Forget a pod that an agent of another layout left and nobody named."""
    node.others.spare(record.cookie)
    netns_fd = netns.find(record.netns, record.cookie)
    if netns_fd is not None:
        namespace.restore(netns_fd, record)
        os.close(netns_fd)
    node.others.hand_over(record.cookie)
