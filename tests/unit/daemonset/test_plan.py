"""Steps from what is to what should be."""

from collections.abc import Mapping
from dataclasses import replace

from daemonset.local.desired import EMPTY, DeploymentSpec, Desired, NodeSpec
from daemonset.local.plan import (
    Action,
    AddNode,
    Current,
    CurrentPod,
    Phase,
    RemoveNode,
    StartPod,
    StopPod,
    UpdateNode,
    UpdatePod,
    converged,
    plan,
)
from daemonset.local.template import Key, PodTemplate, make_template

A, B = NodeSpec("a"), NodeSpec("b")


def template(
    name: str, command: str = "x", labels: Mapping[str, str] | None = None, pod_hash: str = ""
) -> PodTemplate:
    spec = {"containers": [{"name": "c", "command": [command]}]}
    return make_template("ns", name, labels or {}, {}, spec, "web" if pod_hash else "", pod_hash)


def desired(*pods: PodTemplate, nodes: tuple[NodeSpec, ...] = (A,), recreate: bool = False) -> Desired:
    owned = tuple(p.key for p in pods if p.deployment)
    deployments = {("ns", "web"): DeploymentSpec(("ns", "web"), owned, recreate)} if owned else {}
    return replace(
        EMPTY, nodes={n.name: n for n in nodes}, pods={p.key: p for p in pods}, deployments=deployments
    )


def current(*pods: tuple[PodTemplate, Phase], nodes: tuple[NodeSpec, ...] = (A,), node: str = "a") -> Current:
    return Current({n.name: n for n in nodes}, {t.key: CurrentPod(t, node, phase) for t, phase in pods})


def stopped(steps: tuple[Action, ...]) -> set[Key]:
    return {s.key for s in steps if isinstance(s, StopPod)}


def started(steps: tuple[Action, ...]) -> set[str]:
    return {s.template.name for s in steps if isinstance(s, StartPod)}


def test_nodes_are_made_before_the_pods_on_them() -> None:
    steps = plan(desired(template("p")), Current({}, {}))
    assert [type(s) for s in steps] == [AddNode, StartPod]


def test_nothing_to_do_when_all_is_as_asked() -> None:
    p = template("p")
    assert plan(desired(p), current((p, Phase.READY))) == ()
    assert converged(desired(p), current((p, Phase.READY)))
    assert converged(desired(p), current((p, Phase.FINISHED)))
    assert not converged(desired(p), current((p, Phase.STARTING)))


def test_changed_specification_stops_first_and_starts_when_the_name_is_free() -> None:
    old, new = template("p", "old"), template("p", "new")
    steps = plan(desired(new), current((old, Phase.READY)))
    assert (stopped(steps), started(steps)) == ({("ns", "p")}, set())
    assert plan(desired(new), current((old, Phase.STOPPING))) == ()
    assert started(plan(desired(new), current())) == {"p"}


def test_changed_labels_only_update() -> None:
    old, new = template("p"), template("p", labels={"a": "b"})
    assert plan(desired(new), current((old, Phase.READY))) == (UpdatePod(new),)


def test_rollout_stops_old_pods_only_when_all_new_ones_are_ready() -> None:
    old, new1, new2 = (
        template("o", pod_hash="h1"),
        template("n1", "y", pod_hash="h2"),
        template("n2", "y", pod_hash="h2"),
    )
    want = desired(new1, new2)
    first = plan(want, current((old, Phase.READY)))
    assert (stopped(first), started(first)) == (set(), {"n1", "n2"})
    assert (
        stopped(plan(want, current((old, Phase.READY), (new1, Phase.READY), (new2, Phase.STARTING)))) == set()
    )
    assert stopped(plan(want, current((old, Phase.READY), (new1, Phase.READY), (new2, Phase.READY)))) == {
        ("ns", "o")
    }


def test_recreate_stops_old_pods_first() -> None:
    old, new = template("o", pod_hash="h1"), template("n", "y", pod_hash="h2")
    want = desired(new, recreate=True)
    steps = plan(want, current((old, Phase.READY)))
    assert (stopped(steps), started(steps)) == ({("ns", "o")}, set())
    assert started(plan(want, current((old, Phase.STOPPING)))) == set()
    assert started(plan(want, current())) == {"n"}


def test_scaling_down_stops_at_once() -> None:
    one, two = template("n1", pod_hash="h"), template("n2", pod_hash="h")
    assert stopped(plan(desired(one), current((one, Phase.STARTING), (two, Phase.READY)))) == {("ns", "n2")}


def test_node_goes_after_its_pods_and_they_start_elsewhere() -> None:
    p = template("p")
    want = desired(p, nodes=(B,))
    steps = plan(want, current((p, Phase.READY)))
    assert stopped(steps) == {("ns", "p")}
    assert not any(isinstance(s, RemoveNode) for s in steps)
    final = plan(want, Current({"a": A, "b": B}, {}))
    assert RemoveNode("a") in final
    assert StartPod(p, "b") in final


def test_node_labels_are_updated_in_place() -> None:
    labelled = NodeSpec("a", {"zone": "z"})
    assert plan(desired(nodes=(labelled,)), current()) == (UpdateNode(labelled),)
