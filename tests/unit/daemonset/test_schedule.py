"""Which node a pod runs on."""

from collections import Counter

import pytest

from daemonset.local.desired import NodeSpec
from daemonset.local.schedule import Unschedulable, place
from daemonset.local.template import PodTemplate, make_template

NODES = {
    n: NodeSpec(n, {"kubernetes.io/hostname": n, "disk": d})
    for n, d in (("a", "ssd"), ("b", "hdd"), ("c", "hdd"))
}


def pod(name: str, deployment: str = "", port: int = 80, **spec: object) -> PodTemplate:
    containers = [{"name": "c", "command": ["x"], "ports": [{"containerPort": port}]}]
    return make_template("ns", name, {}, {}, {"containers": containers, **spec}, deployment)


def test_pods_go_where_fewest_are() -> None:
    placed = place([pod(f"p{i}") for i in range(6)], NODES, {})
    assert Counter(placed.values()) == {"a": 2, "b": 2, "c": 2}


def test_named_node_and_selector_are_obeyed() -> None:
    placed = place([pod("p", nodeName="b"), pod("q", nodeSelector={"disk": "ssd"})], NODES, {})
    assert placed == {("ns", "p"): "b", ("ns", "q"): "a"}


def test_replicas_spread_before_load_counts() -> None:
    busy = {("ns", f"x{i}"): ("c", pod(f"x{i}")) for i in range(5)}
    placed = place([pod(f"web{i}", "web") for i in range(3)], NODES, busy)
    assert set(placed.values()) == {"a", "b", "c"}


def test_host_network_pods_do_not_share_a_port_on_a_node() -> None:
    placed = place([pod(f"p{i}", hostNetwork=True) for i in range(3)], NODES, {})
    assert set(placed.values()) == {"a", "b", "c"}
    with pytest.raises(Unschedulable, match="port 80 is taken by pod ns/p0"):
        place([pod(f"p{i}", hostNetwork=True, nodeName="a") for i in range(2)], NODES, {})


@pytest.mark.parametrize("port", [53, 15000, 15020, 15021])
def test_ports_of_the_nodes_own_programs_are_taken(port: int) -> None:
    with pytest.raises(Unschedulable, match=f"port {port} is taken by the n"):
        place([pod("p", port=port, hostNetwork=True)], NODES, {})


def test_no_fitting_node_is_told_with_the_nodes_there_are() -> None:
    with pytest.raises(Unschedulable, match=r"node z, which does not exist \(nodes: a, b, c\)"):
        place([pod("p", nodeName="z")], NODES, {})
    with pytest.raises(Unschedulable, match="disk=tape"):
        place([pod("p", nodeSelector={"disk": "tape"})], NODES, {})
