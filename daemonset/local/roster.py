"""The pods as the nodes' agents have them: which each is told of, and how far each pod is on its way in or out.

`ztunnel.enrol.steps` has the steps; this holds them against the clock, the labels and the agents' answers.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import trio

from daemonset.local import enrolment
from daemonset.local.node import Node
from daemonset.local.pods import Pod
from daemonset.local.template import Key
from daemonset.local.zds import Added, Event, PodIdentity, Removed
from ztunnel.enrol import steps
from ztunnel.enrol.steps import Step

_STEADY = (Step.IN, Step.OUT)
_TIMED = (Step.LEAVING, Step.FAILED)


class Roster:
    """See the module. `pods` is the mesh's own table, read whenever it is asked."""

    def __init__(
        self, pods: Mapping[Key, Pod], changed: Callable[[], None], announce: Callable[[str], None]
    ) -> None:
        self._pods, self._changed, self._announce = pods, changed, announce

    def advance(self, nodes: Mapping[str, Node], namespaces: Mapping[str, Mapping[str, str]] | None) -> None:
        """Every pod's next step. `namespaces`: labels by name; None where there is no mesh to enrol in."""
        now = trio.current_time()
        for pod in self._pods.values():
            pod.wants_enrolment = (
                namespaces is not None
                and enrolment.wanted(pod.template, namespaces.get(pod.template.namespace, {}))
                and not pod.finished
            )
            if pod.networked:
                self._advance(pod, nodes[pod.sandbox.node], now)

    def _advance(self, pod: Pod, node: Node, now: float) -> None:
        before = pod.enrolment
        state = steps.advance(before, pod.wants_enrolment, now, gone=pod.exited)
        if state.step is Step.REMOVING and (node.zds is None or not node.zds.concerns(pod.uid)):
            state = steps.removed(state)  # never told, or gone: the next snapshot will not have it
        pod.set_enrolment(state)
        if before.step is Step.FAILED and state.step is Step.ADDING and node.zds is not None:
            node.zds.repeat(pod.uid)

    def settled(self) -> bool:
        """Whether every pod is in or out, as it is asked for."""
        return all(
            p.enrolment.step in _STEADY and (p.finished or (p.enrolment.step is Step.IN) == p.wants_enrolment)
            for p in self._pods.values()
        )

    def next_deadline(self) -> float:
        """When `advance` has to be called again at the latest (seconds of trio's clock)."""
        states = (p.enrolment for p in self._pods.values())
        return min((each.until for each in states if each.step in _TIMED), default=float("inf"))

    def wanted_on(self, node: str) -> dict[str, PodIdentity]:
        """The pods that a node's agent is to have, by uid."""
        return {
            p.uid: PodIdentity(
                p.uid,
                p.template.name,
                p.template.namespace,
                p.template.service_account,
                enrolment.capture(p.template),
            )
            for p in self._pods.values()
            if p.sandbox.node == node and p.enrolment.told
        }

    def netns_of(self, uid: str) -> Path | None:
        """A pod's network namespace; None if there is no such pod."""
        pod = self._by_uid(uid)
        return None if pod is None else pod.sandbox.netns

    def heard(self, event: Event) -> None:
        """An agent's answer."""
        pod = self._by_uid(event.uid) if isinstance(event, Added | Removed) else None
        if pod is None:
            return
        name = f"{pod.template.namespace}/{pod.template.name}"
        if isinstance(event, Added):
            was_in = pod.enrolment.step is Step.IN
            pod.set_enrolment(steps.added(pod.enrolment, event.error, trio.current_time()))
            self._announce(f"pod {name}: {_answer(event.error, was_in=was_in)}")
        else:
            pod.set_enrolment(steps.removed(pod.enrolment))
            if not pod.deleting:
                self._announce(f"pod {name}: no longer enrolled")
        self._changed()

    def _by_uid(self, uid: str) -> Pod | None:
        return next((p for p in self._pods.values() if p.uid == uid), None)


def _answer(error: str, *, was_in: bool) -> str:
    if was_in:
        return f"capture settings not in effect: {error}" if error else "capture settings changed"
    return f"not enrolled: {error}" if error else "enrolled"
