"""Pods on their way in and out, under own discovery: what is to be done when. Time is a number."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.ztunnel.enrol_objects import UID, key, pod
from ztunnel.enrol.membership import REDIRECTION
from ztunnel.enrol.roster import SETTLE, Roster
from ztunnel.enrol.settings import EXCLUDE_INBOUND, CaptureSettings
from ztunnel.enrol.steps import LEAVE_SECONDS, RETRY_SECONDS, Step

NETNS, OTHER = (4, 100), (4, 200)
UID2 = UID.replace("0", "9")


class Node:
    """A roster, and somebody who does what it says."""

    def __init__(self, *excluded: str) -> None:
        self.roster = Roster(excluded)
        self.now = 100.0
        self.roster.namespace("shop", "ambient")

    def put(self, name: str = "web", **fields: Any) -> None:
        self.roster.pod(key(name), pod(name, **fields))

    def look(self) -> set[str]:
        """Whose network is to be looked up now."""
        self.roster.advance(self.now)
        return {member.pod.uid for member in self.roster.to_look(self.now)}

    def enrol(self, uid: str = UID, netns: tuple[int, int] = NETNS, error: str = "") -> bool:
        """Found, and told if it has to be; whether it was told."""
        assert uid in self.look()
        tell = self.roster.found(uid, netns, self.now)
        if tell:
            member = self.roster.get(uid)
            assert member is not None
            self.roster.added(uid, netns, member.pod.settings, error, self.now)
        return tell

    def step(self, uid: str = UID) -> Step | None:
        self.roster.advance(self.now)
        member = self.roster.get(uid)
        return None if member is None else member.enrolment.step

    def redirection(self, uid: str = UID) -> str | None:
        member = self.roster.get(uid)
        assert member is not None
        return member.redirection

    def remove(self) -> list[str]:
        """Let go whom the roster names."""
        self.roster.advance(self.now)
        uids = [member.pod.uid for member in self.roster.to_remove()]
        for uid in uids:
            self.roster.removed(uid)
        self.roster.advance(self.now)
        return uids


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def enrolled(node: Node) -> Node:
    node.put(ip="10.0.0.1")
    assert node.enrol()
    assert node.step() is Step.IN
    return node


def test_a_pod_without_network_is_looked_for_again_soon_and_after_a_minute_less_often(node: Node) -> None:
    node.put()
    assert node.look() == {UID}
    node.roster.not_found(UID, "it has no cgroup yet", node.now)
    assert node.look() == set()
    assert node.roster.due(node.now) == pytest.approx(node.now + 0.02)
    assert node.roster.waiting() == {"shop/web": "it has no cgroup yet"}
    node.now += 61
    assert node.look() == {UID}
    node.roster.not_found(UID, "it has no cgroup yet", node.now)
    assert node.roster.due(node.now) == pytest.approx(node.now + 1)


def test_an_enrolled_pod_says_so_and_needs_nothing_more(enrolled: Node) -> None:
    assert enrolled.redirection() == "enabled"
    assert enrolled.look() == set()
    assert enrolled.roster.due(enrolled.now) == float("inf")
    assert enrolled.roster.waiting() == {}


def test_labels_count_live_and_peers_hear_before_the_pod_leaves(enrolled: Node) -> None:
    enrolled.roster.pod(key(), pod(ip="10.0.0.1", annotations={REDIRECTION: "enabled"}))
    enrolled.roster.namespace("shop", "")
    assert enrolled.step() is Step.LEAVING
    assert enrolled.redirection() == ""
    assert enrolled.remove() == []
    enrolled.now += LEAVE_SECONDS
    assert enrolled.remove() == [UID]
    assert enrolled.step() is Step.OUT
    enrolled.roster.namespace("shop", "ambient")
    assert enrolled.enrol()


def test_a_namespace_that_is_gone_or_excluded_enrols_nobody(node: Node) -> None:
    node.roster.namespace("shop", None)
    node.put()
    assert node.look() == set()
    other = Node("shop")
    other.put(mode="ambient")
    assert other.look() == set()


def test_other_annotations_are_told_in_place(enrolled: Node) -> None:
    enrolled.put(ip="10.0.0.1", annotations={EXCLUDE_INBOUND: "80"})
    assert enrolled.enrol()
    member = enrolled.roster.get(UID)
    assert member is not None
    assert member.told == CaptureSettings(exclude_inbound=frozenset({80}))
    assert enrolled.look() == set()


def test_the_same_network_by_another_process_is_not_told_again(enrolled: Node) -> None:
    enrolled.roster.lost(UID, enrolled.now)
    assert not enrolled.enrol()
    assert enrolled.look() == set()


def test_a_sandbox_made_anew_is_told_with_its_network(enrolled: Node) -> None:
    enrolled.roster.lost(UID, enrolled.now)
    enrolled.look()
    enrolled.roster.not_found(UID, "none", enrolled.now)
    assert enrolled.step() is Step.IN, "what was captured stays so"
    enrolled.now += 1
    assert enrolled.enrol(netns=OTHER)


def test_a_pod_that_ends_is_let_go_whatever_its_labels(enrolled: Node) -> None:
    enrolled.put(ip="10.0.0.1", phase="Succeeded")
    assert enrolled.redirection() is None
    assert enrolled.remove() == [UID]


def test_a_deleted_pod_stays_captured_until_its_processes_have_ended(enrolled: Node) -> None:
    enrolled.roster.pod(key(), None)
    assert enrolled.step() is Step.IN
    assert enrolled.redirection() is None
    assert enrolled.remove() == []
    enrolled.roster.lost(UID, enrolled.now)
    assert enrolled.look() == {UID}
    enrolled.roster.not_found(UID, "it has no cgroup yet", enrolled.now)
    assert enrolled.remove() == [UID]
    assert len(enrolled.roster) == 0


def test_a_deleted_pod_that_never_was_in_is_forgotten(node: Node) -> None:
    node.put()
    node.look()
    node.roster.pod(key(), None)
    node.remove()
    assert len(node.roster) == 0


def test_the_same_name_with_another_uid_is_another_pod(enrolled: Node) -> None:
    enrolled.put(uid=UID2)
    assert enrolled.look() == {UID2}
    assert enrolled.enrol(UID2, OTHER)
    assert enrolled.step() is Step.IN
    enrolled.roster.lost(UID, enrolled.now)
    enrolled.look()
    enrolled.roster.not_found(UID, "none", enrolled.now)
    assert enrolled.remove() == [UID]
    assert enrolled.step(UID2) is Step.IN


def test_a_network_is_enrolled_for_one_pod_only(enrolled: Node) -> None:
    enrolled.put("late", uid=UID2)
    assert not enrolled.enrol(UID2, NETNS)
    assert enrolled.roster.waiting() == {"shop/late": "its network is enrolled as that of shop/web"}


def test_a_failure_is_said_and_tried_again(node: Node) -> None:
    node.put()
    assert node.enrol(error="no free slot")
    assert node.step() is Step.FAILED
    assert node.redirection() == "pending"
    assert node.roster.waiting() == {"shop/web": "no free slot"}
    node.now += RETRY_SECONDS
    assert node.enrol()
    assert node.redirection() == "enabled"


def test_a_move_that_fails_is_a_failure(enrolled: Node) -> None:
    enrolled.roster.lost(UID, enrolled.now)
    assert enrolled.enrol(netns=OTHER, error="no")
    assert enrolled.step() is Step.FAILED


def test_what_a_former_agent_wrote_stays_while_its_pods_are_adopted(node: Node) -> None:
    node.put(annotations={REDIRECTION: "enabled"})
    node.look()
    assert node.redirection() is None
    node.roster.namespace("shop", "")
    node.look()
    node.now += LEAVE_SECONDS
    node.remove()
    assert node.redirection() == "", "and goes where the pod is not to be in any more"


def test_an_annotation_of_somebody_else_is_left_alone(node: Node) -> None:
    node.roster.namespace("shop", "")
    node.put(annotations={REDIRECTION: "mine"})
    node.look()
    assert node.redirection() is None


def test_the_list_waits_for_pods_that_run_but_not_for_ever(node: Node) -> None:
    node.put(ip="10.0.0.1")
    node.put("starting", uid=UID2)
    node.look()
    assert not node.roster.settled(node.now, node.now)
    assert node.roster.settled(node.now + SETTLE, node.now)
    node.enrol()
    assert node.roster.settled(node.now, node.now), "one without an address has nothing to lose yet"


EVENTS = st.lists(
    st.sampled_from(
        [
            "in",
            "out",
            "put",
            "annotate",
            "replace",
            "delete",
            "end",
            "find",
            "move",
            "fail",
            "lose",
            "miss",
            "wait",
        ]
    ),
    max_size=30,
)


@given(EVENTS)
def test_whatever_happens_the_node_comes_to_rest_as_labels_and_processes_have_it(events: list[str]) -> None:
    node = Node()
    roster = node.roster
    uid, netns, exists = UID, NETNS, False
    for event in events:
        node.look()
        match event:
            case "in" | "out":
                roster.namespace("shop", "ambient" if event == "in" else "")
            case "put" | "annotate" | "end":
                exists = True
                asked = {EXCLUDE_INBOUND: "80"} if event == "annotate" else {}
                node.put(uid=uid, annotations=asked, phase="Failed" if event == "end" else "Running")
            case "replace":
                uid, netns, exists = (UID2 if uid == UID else UID), (4, netns[1] + 1), True
                node.put(uid=uid)
            case "delete":
                exists = False
                roster.pod(key(), None)
            case "find" | "move" | "fail":
                netns = (4, netns[1] + 1) if event == "move" else netns
                for member in roster.to_look(node.now):
                    if roster.found(member.pod.uid, netns, node.now):
                        error = "no" if event == "fail" else ""
                        roster.added(member.pod.uid, netns, member.pod.settings, error, node.now)
            case "lose":
                roster.lost(uid, node.now)
            case "miss":
                for member in roster.to_look(node.now):
                    roster.not_found(member.pod.uid, "none", node.now)
            case "wait":
                node.now += 1
        node.remove()
    # Processes end; only those of the living pod are replaced.
    for member in roster:
        roster.lost(member.pod.uid, node.now)
    for _ in range(20):
        node.now += RETRY_SECONDS
        for seen in node.look():
            if seen == uid and exists and roster.found(seen, netns, node.now):
                roster.added(seen, netns, roster.get(seen).pod.settings, "", node.now)  # type: ignore[union-attr]
            elif seen != uid or not exists:
                roster.not_found(seen, "none", node.now)
        node.remove()
    living = roster.get(uid) if exists else None
    expected = living is not None and roster.wants(living.pod) and not living.pod.ended
    inside = [member for member in roster if member.enrolment.step is not Step.OUT]
    assert [member.pod.uid for member in inside] == ([uid] if expected else [])
    assert all(member.enrolment.step is Step.IN and member.netns == netns for member in inside)
    assert len(roster) == int(exists)
