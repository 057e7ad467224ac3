"""A pod's way into the mesh and out of it: which step it is at, what it waits for. Pure; of the local mesh and of
Kubernetes alike.

    OUT -> ADDING -> IN -> LEAVING -> REMOVING -> OUT
             |  ^
             v  |
            FAILED

The annotation that tells other nodes to use HBONE exists in IN only: it is written after the agent has
acknowledged capture, and taken away a while before the agent is told to let go, so that peers have
heard of it by then.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ztunnel.enrol.membership import ENABLED, PENDING

__all__ = [
    "ENABLED",
    "LEAVE_SECONDS",
    "OUT",
    "PENDING",
    "RETRY_SECONDS",
    "Enrolment",
    "Step",
    "added",
    "advance",
    "removed",
]

LEAVE_SECONDS = 1.0
RETRY_SECONDS = 5.0


class Step(enum.Enum):
    """Where the pod is on its way."""

    OUT = "out"
    ADDING = "adding"
    FAILED = "failed"
    IN = "in"
    LEAVING = "leaving"
    REMOVING = "removing"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """`until`: when LEAVING or FAILED ends (seconds of the clock that `advance` is given)."""

    step: Step = Step.OUT
    until: float = 0.0
    error: str = ""

    @property
    def told(self) -> bool:
        """Whether the agent is to have the pod."""
        return self.step not in (Step.OUT, Step.REMOVING)

    @property
    def annotation(self) -> str:
        """Value of the redirection annotation; empty: none."""
        return {Step.IN: ENABLED, Step.FAILED: PENDING}.get(self.step, "")


OUT = Enrolment()


def advance(state: Enrolment, want: bool, now: float, *, gone: bool = False) -> Enrolment:
    """The state after a look at what is wanted and at the clock. `gone`: the pod has ended, nobody waits."""
    step = state.step
    if gone:
        return Enrolment(Step.REMOVING) if state.told else state
    if want:
        if step in (Step.OUT, Step.REMOVING) or (step is Step.FAILED and now >= state.until):
            return Enrolment(Step.ADDING, error=state.error)
        return Enrolment(Step.IN) if step is Step.LEAVING else state
    if step is Step.IN:
        return Enrolment(Step.LEAVING, now + LEAVE_SECONDS)
    if step in (Step.ADDING, Step.FAILED) or (step is Step.LEAVING and now >= state.until):
        return Enrolment(Step.REMOVING)
    return state


def added(state: Enrolment, error: str, now: float) -> Enrolment:
    """The state after the agent's answer to an Add."""
    if state.step not in (Step.ADDING, Step.FAILED):
        return state
    return Enrolment(Step.FAILED, now + RETRY_SECONDS, error) if error else Enrolment(Step.IN)


def removed(state: Enrolment) -> Enrolment:
    """The state after the agent's answer to a Del, or when there is no agent to ask."""
    return OUT if state.step is Step.REMOVING else state
