"""The pods of this node and where each is on its way into the mesh or out of it. Pure: time is an argument, and
what is to be done is asked for, done by others (`discovery`), and told.

A pod is looked for (`to_look`) while it is to be enrolled and has not been told of, when the process by which its
network was found has ended (the sandbox may have been made anew), and when its annotations ask for something else.
A pod whose object is gone but whose processes live (it was deleted by force) stays captured until they end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from istiodlite.kube.key import ObjectKey
from ztunnel.enrol import steps
from ztunnel.enrol.netchoice import NetnsKey
from ztunnel.enrol.nodepods import NodePod
from ztunnel.enrol.settings import CaptureSettings
from ztunnel.enrol.steps import OUT, RETRY_SECONDS, Enrolment, Step

__all__ = ["SETTLE", "Member", "Roster"]

SETTLE: Final = 10.0
"""Seconds that a list waits for pods which have an address and whose network is not found."""
_EAGER, _PATIENT, _EAGER_FOR = 0.02, 1.0, 60.0


@dataclass(slots=True, eq=False)
class Member:
    """One pod. `netns` and `told`: what the agent was told last; `witnessed`: a process known to be in `netns` lives.

    `reason`: why nothing is done, one line; `said` is the one that was logged. `look_at`, `since`: when to look next, and since when in vain.
    """

    pod: NodePod
    enrolment: Enrolment = OUT
    netns: NetnsKey | None = None
    told: CaptureSettings | None = None
    witnessed: bool = False
    gone: bool = False
    over: bool = False
    reason: str = ""
    said: str = ""
    look_at: float = 0.0
    since: float = 0.0

    @property
    def redirection(self) -> str | None:
        """What the pod's annotation of that name is to say (empty: nothing); None: leave it as it is.

        While a pod is being added it stays, so that a new agent that adopts pods unsettles nobody.
        """
        pod = self.pod
        if self.gone or pod.deleting or pod.ended or self.enrolment.step is Step.ADDING:
            return None
        wanted = self.enrolment.annotation
        return wanted if wanted or pod.redirection in (steps.ENABLED, steps.PENDING) else None


class Roster:
    """All pods of the node, by uid."""

    def __init__(self, excluded: Collection[str] = ()) -> None:
        """`excluded`: namespaces of which no pod is enrolled, whatever its labels."""
        self._excluded = frozenset(excluded)
        self._modes: dict[str, str] = {}
        self._members: dict[str, Member] = {}
        self._uids: dict[ObjectKey, str] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def __len__(self) -> int:
        return len(self._members)

    def get(self, uid: str) -> Member | None:
        """A pod by its uid."""
        return self._members.get(uid)

    # What the API server tells

    def namespace(self, name: str, mode: str | None) -> None:
        """A namespace's label; None: the namespace is gone."""
        if mode is None:
            self._modes.pop(name, None)
        else:
            self._modes[name] = mode

    def pod(self, key: ObjectKey, pod: NodePod | None) -> None:
        """A pod that is new or has changed; None: it is gone. One of the same name may be another one."""
        before = self._uids.pop(key, None)
        if before is not None and (pod is None or pod.uid != before):
            self._members[before].gone = True
        if pod is None:
            return
        self._uids[key] = pod.uid
        member = self._members.setdefault(pod.uid, Member(pod))
        member.pod, member.gone = pod, False

    def wants(self, pod: NodePod) -> bool:
        """Whether labels ask for its enrolment."""
        return pod.namespace not in self._excluded and pod.wanted(self._modes.get(pod.namespace, ""))

    # What is to be done

    def advance(self, now: float) -> None:
        """Take the steps that are due."""
        for member in self:
            before = member.enrolment
            if member.gone and not member.witnessed and before.step in (Step.ADDING, Step.FAILED):
                member.over = True  # nobody is left to be enrolled
            over = member.pod.ended or member.over
            want = self.wants(member.pod) and not over
            member.enrolment = steps.advance(before, want, now, gone=over)
            if member.enrolment.step is Step.ADDING and before.step is not Step.ADDING:
                member.look_at = member.since = now
            if member.enrolment.step is Step.OUT and member.gone:
                del self._members[member.pod.uid]

    def to_look(self, now: float) -> list[Member]:
        """Whose network is to be looked up."""
        return [member for member in self if self._looks(member) and now >= member.look_at]

    @staticmethod
    def _looks(member: Member) -> bool:
        step = member.enrolment.step
        if step is Step.IN:
            return not member.witnessed or (member.told != member.pod.settings and not member.gone)
        return step is Step.ADDING

    def to_remove(self) -> list[Member]:
        """Whom the agent is to let go."""
        return [member for member in self if member.enrolment.step is Step.REMOVING]

    def due(self, now: float) -> float:
        """When to come back at the latest; infinity if only news are of interest."""
        if self.to_remove():
            return now
        times = [member.look_at for member in self if self._looks(member)]
        timed = (Step.LEAVING, Step.FAILED)
        times += [member.enrolment.until for member in self if member.enrolment.step in timed]
        return min(times, default=float("inf"))

    def settled(self, now: float, since: float) -> bool:
        """Whether everybody who could be told of was. `since`: when all had been listed."""
        return now >= since + SETTLE or not any(
            member.enrolment.step is Step.ADDING and member.pod.addresses for member in self
        )

    # What has been done

    def lost(self, uid: str, now: float) -> None:
        """The process by which the pod's network was known has ended."""
        if (member := self._members.get(uid)) is not None:
            member.witnessed = False
            member.look_at = member.since = now

    def not_found(self, uid: str, reason: str, now: float) -> None:
        """Its network cannot be had now."""
        if (member := self._members.get(uid)) is None:
            return
        member.reason, member.over = reason, member.gone
        member.look_at = now + (_EAGER if now < member.since + _EAGER_FOR else _PATIENT)

    def found(self, uid: str, netns: NetnsKey, now: float) -> bool:
        """A process of the pod is in this network; whether the agent is to be told (again) of the pod."""
        member = self._members.get(uid)
        if member is None or not self._looks(member):
            return False
        other = next((one for one in self if one is not member and self._has(one, netns)), None)
        if other is not None:
            self.not_found(uid, f"its network is enrolled as that of {other.pod}", now)
            return False
        member.witnessed = True
        step = member.enrolment.step
        return step is Step.ADDING or netns != member.netns or member.told != member.pod.settings

    @staticmethod
    def _has(member: Member, netns: NetnsKey) -> bool:
        return member.enrolment.told and member.netns == netns

    def added(self, uid: str, netns: NetnsKey, settings: CaptureSettings, error: str, now: float) -> None:
        """The agent's answer when told of the pod: empty if it is captured."""
        if (member := self._members.get(uid)) is None:
            return
        member.netns, member.told, member.reason = netns, settings, error
        if member.enrolment.step is Step.IN and error:
            member.enrolment = Enrolment(Step.FAILED, now + RETRY_SECONDS, error)
        else:
            member.enrolment = steps.added(member.enrolment, error, now)

    def removed(self, uid: str) -> None:
        """The agent has let the pod go."""
        if (member := self._members.get(uid)) is not None:
            member.enrolment = steps.removed(member.enrolment)
            member.netns, member.told, member.witnessed, member.reason = None, None, False, ""

    # What people ask

    def waiting(self) -> dict[str, str]:
        """Pods that are to be in and are not: why."""
        steps_ = (Step.ADDING, Step.FAILED)
        return {
            str(member.pod): member.reason or "about to be looked for"
            for member in self
            if member.enrolment.step in steps_
        }
