"""What looking at one policy gave: the lines of an explanation."""

import enum
from dataclasses import dataclass

from ztunnel.state.policy import Action


class Outcome(enum.StrEnum):
    """What looking at one policy gave."""

    MATCHED = "matched"
    NOT_MATCHED = "not_matched"
    DRY_RUN_MATCHED = "dry_run_matched"
    DRY_RUN_NOT_MATCHED = "dry_run_not_matched"
    PENDING = "pending"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class PolicyStep:
    """One policy as it was considered.

    `path` names the part that decided, e.g. `rules[0].clauses[1].matches[0]`; for a policy that did not
    match, the first clause that failed in each rule, with the field, in `why`.
    """

    policy: str
    action: Action | None
    outcome: Outcome
    path: str
    why: str
