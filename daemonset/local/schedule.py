"""Which node a pod runs on. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping

from daemonset.local.desired import NodeSpec
from daemonset.local.template import Key, PodTemplate


class Unschedulable(Exception):
    """No node fits; the text says why."""


# Ports of the agent and the name server in every node's own namespace.
RESERVED_PORTS: Mapping[int, str] = {
    53: "the name server",
    15000: "the node's agent",
    15020: "the node's agent",
    15021: "the node's agent",
}


def place(
    pending: Iterable[PodTemplate],
    nodes: Mapping[str, NodeSpec],
    placed: Mapping[Key, tuple[str, PodTemplate]],
) -> dict[Key, str]:
    """A node for each pending pod: named, or selected by labels, or the one with the fewest pods.

    Pods of one Deployment spread first. `placed`: pods that have their node already. Pods that share
    their node's network cannot share a port. Raises Unschedulable.
    """
    load = Counter(node for node, _ in placed.values())
    spread = Counter((node, pod.namespace, pod.deployment) for node, pod in placed.values())
    taken: dict[tuple[str, int], str] = {}
    for node, pod in placed.values():
        _take(taken, node, pod)
    result: dict[Key, str] = {}
    for pod in pending:
        fitting = [n for n in _candidates(pod, nodes) if not _conflict(taken, n, pod)]
        if not fitting:
            node = next(iter(_candidates(pod, nodes)))
            raise Unschedulable(
                f"pod {pod.namespace}/{pod.name} has hostNetwork, but {_conflict(taken, node, pod)} on node {node}"
            )
        node = min(
            fitting,
            key=lambda n: (spread[n, pod.namespace, pod.deployment] if pod.deployment else 0, load[n], n),
        )
        _take(taken, node, pod)
        load[node] += 1
        spread[node, pod.namespace, pod.deployment] += 1
        result[pod.key] = node
    return result


def _candidates(pod: PodTemplate, nodes: Mapping[str, NodeSpec]) -> list[str]:
    name = pod.spec.get("nodeName")
    if name:
        if name not in nodes:
            raise Unschedulable(_no_node(pod, f"is bound to node {name}, which does not exist", nodes))
        return [name]
    selector = dict(pod.spec.get("nodeSelector") or {})
    fitting = [n for n, node in nodes.items() if selector.items() <= node.labels.items()]
    if not fitting:
        wanted = ", ".join(f"{k}={v}" for k, v in selector.items())
        raise Unschedulable(_no_node(pod, f"wants a node labelled {wanted}, and no node is", nodes))
    return fitting


def _no_node(pod: PodTemplate, why: str, nodes: Mapping[str, NodeSpec]) -> str:
    return f"pod {pod.namespace}/{pod.name} {why} (nodes: {', '.join(nodes)})"


def _host_ports(pod: PodTemplate) -> Iterable[int]:
    return (p.number for c in pod.containers for p in c.ports) if pod.host_network else ()


def _take(taken: dict[tuple[str, int], str], node: str, pod: PodTemplate) -> None:
    for port in _host_ports(pod):
        taken[node, port] = f"pod {pod.namespace}/{pod.name}"


def _conflict(taken: Mapping[tuple[str, int], str], node: str, pod: PodTemplate) -> str:
    for port in _host_ports(pod):
        owner = RESERVED_PORTS.get(port) or taken.get((node, port))
        if owner:
            return f"port {port} is taken by {owner}"
    return ""
