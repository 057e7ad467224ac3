"""May this peer reach this workload: L4 authorization as Istio's node proxy does it, but fail closed.

Which policies: those of the whole mesh, those of the destination's namespace, and those the destination
lists by name. In this order:

1. a DENY that matches denies;
2. a listed policy that has not been delivered, or one that could not be read, denies: nobody can know
   what it says;
3. without an ALLOW everything else is allowed;
4. an ALLOW that matches allows;
5. else denied.

Dry-run policies are evaluated for the trace and never decide.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from hbone.connect import SocketAddress
from hbone.reasons import Reason
from hbone.spiffe import SpiffeId
from ztunnel.decide.trace import Outcome, PolicyStep
from ztunnel.state.changes import Key, Kind
from ztunnel.state.model import IPAddress, Workload
from ztunnel.state.policy import Action, Clause, Facts, Policy, PolicyScope
from ztunnel.state.snapshot import Snapshot

__all__ = ["Authorization", "authorize", "facts_of"]

_NOBODY: Final = ("", "")


@dataclass(frozen=True, slots=True)
class Authorization:
    """The answer with all it rests on. `policy`: the one that decided, or "" when none did.

    `scopes`: the policies that apply, of the mesh, of the namespace, and those listed. `trace()` evaluates
    every one of them, which the decision did not have to do.
    """

    reason: Reason
    policy: str
    facts: Facts
    scopes: tuple[tuple[Policy, ...], ...]
    missing: tuple[str, ...]
    depends: frozenset[Key]

    @property
    def allowed(self) -> bool:
        return self.reason is Reason.OK

    def trace(self) -> tuple[PolicyStep, ...]:
        """Every policy considered, in order, up to the one that decided."""
        steps = []
        for step in self._steps():
            steps.append(step)
            if not self.allowed and step.policy == self.policy and step.outcome is not Outcome.NOT_MATCHED:
                break
        return tuple(steps)

    def _steps(self) -> Iterator[PolicyStep]:
        yield from self._of(Action.DENY, dry_run=True)
        yield from self._of(Action.DENY, dry_run=False)
        for key in self.missing:
            yield PolicyStep(key, None, Outcome.PENDING, "", "not delivered yet")
        for policy in chain.from_iterable(self.scopes):
            if policy.unusable:
                yield PolicyStep(policy.key, policy.action, Outcome.UNUSABLE, "", policy.unusable)
        yield from self._of(Action.ALLOW, dry_run=True)
        for step in self._of(Action.ALLOW, dry_run=False):
            yield step
            if step.outcome is Outcome.MATCHED:
                return

    def _of(self, action: Action, *, dry_run: bool) -> Iterator[PolicyStep]:
        for policy in chain.from_iterable(self.scopes):
            if policy.action is action and policy.dry_run is dry_run and not policy.unusable:
                yield _step(policy, self.facts)


def authorize(
    identity: SpiffeId | None,
    source: IPAddress,
    destination: SocketAddress,
    workload: Workload,
    snapshot: Snapshot,
) -> Authorization:
    """Decide about one connection to `workload`.

    `identity` is what TLS proved, None in the clear; `source` the peer's address; `destination` the
    address and the port of the application, after every mapping.
    """
    facts = facts_of(identity, source, destination)
    listed, missing = _listed(workload, snapshot)
    candidates = chain(snapshot.candidates("", facts), snapshot.candidates(workload.namespace, facts), listed)
    guarded = snapshot.has_allow("") or snapshot.has_allow(workload.namespace)
    reason, policy = _decide(facts, candidates, missing, guarded=guarded)
    scopes = (snapshot.scoped_policies(""), snapshot.scoped_policies(workload.namespace), listed)
    return Authorization(reason, policy, facts, scopes, missing, _depends(workload))


def facts_of(identity: SpiffeId | None, source: IPAddress, destination: SocketAddress) -> Facts:
    """What policies see of a connection. Nothing a peer merely claims is in it."""
    if identity is None:
        return Facts("", "", _NOBODY, source, destination.ip, destination.port)
    account = (identity.namespace, identity.service_account)
    return Facts(identity.namespace, identity.principal, account, source, destination.ip, destination.port)


def _listed(workload: Workload, snapshot: Snapshot) -> tuple[tuple[Policy, ...], tuple[str, ...]]:
    """The policies a workload lists that do not apply anyway, and the names of those not known."""
    missing: list[str] = []
    listed: dict[str, Policy] = {}
    for key in workload.authorization_policies:
        policy = snapshot.policy(key)
        if policy is None:
            missing.append(key)
        elif not _applies_anyway(policy, workload):
            listed[key] = policy
    return tuple(listed.values()), tuple(missing)


def _applies_anyway(policy: Policy, workload: Workload) -> bool:
    return policy.scope is PolicyScope.GLOBAL or (
        policy.scope is PolicyScope.NAMESPACE and policy.namespace == workload.namespace
    )


def _depends(workload: Workload) -> frozenset[Key]:
    keys = {Key(Kind.WORKLOAD, workload.uid), Key(Kind.POLICIES, ""), Key(Kind.POLICIES, workload.namespace)}
    keys.update(Key(Kind.POLICY, key) for key in workload.authorization_policies)
    return frozenset(keys)


def _decide(
    facts: Facts, candidates: Iterable[Policy], missing: tuple[str, ...], *, guarded: bool
) -> tuple[Reason, str]:
    """`guarded`: an ALLOW applies that may not be among the candidates."""
    allows: list[Policy] = []
    unusable = ""
    for policy in candidates:
        if policy.unusable:
            unusable = unusable or policy.key
        elif policy.dry_run:
            continue
        elif policy.action is Action.ALLOW:
            allows.append(policy)
        elif policy.matching_rule(facts) is not None:
            return Reason.POLICY_DENIED, policy.key
    if missing:
        return Reason.POLICY_PENDING, missing[0]
    if unusable:
        return Reason.POLICY_UNUSABLE, unusable
    for policy in allows:
        if policy.matching_rule(facts) is not None:
            return Reason.OK, policy.key
    return (Reason.POLICY_NO_MATCH, "") if allows or guarded else (Reason.OK, "")


def _step(policy: Policy, facts: Facts) -> PolicyStep:
    rule = policy.matching_rule(facts)
    if rule is not None:
        outcome = Outcome.DRY_RUN_MATCHED if policy.dry_run else Outcome.MATCHED
        path, why = _why_matched(policy, rule, facts)
    else:
        outcome = Outcome.DRY_RUN_NOT_MATCHED if policy.dry_run else Outcome.NOT_MATCHED
        path, why = _why_not(policy, facts)
    return PolicyStep(policy.key, policy.action, outcome, path, why)


def _why_matched(policy: Policy, rule: int, facts: Facts) -> tuple[str, str]:
    """The rule, and for each of its clauses the match that held."""
    paths: list[str] = []
    fields: list[str] = []
    for index, clause in enumerate(policy.rules[rule].clauses):
        for number, match in enumerate(clause.matches):
            if match.failing(facts) is None:
                paths.append(f"clauses[{index}].matches[{number}]")
                fields.extend(condition.field for condition in match.conditions)
                break
    if not paths:
        return f"rules[{rule}]", "the rule has no conditions"
    return f"rules[{rule}]." + "+".join(paths), "all hold: " + ", ".join(fields)


def _why_not(policy: Policy, facts: Facts) -> tuple[str, str]:
    """For each rule the first clause that failed, with the field that failed in each of its matches."""
    if not policy.rules:
        return "", "the policy has no rules, so it never matches"
    paths: list[str] = []
    reasons: list[str] = []
    for index, rule in enumerate(policy.rules):
        number, clause = next(
            (number, clause) for number, clause in enumerate(rule.clauses) if not clause.holds(facts)
        )
        paths.append(f"rules[{index}].clauses[{number}]")
        reasons.append(_fields_failing(clause, facts))
    return "+".join(paths), "; ".join(reasons)


def _fields_failing(clause: Clause, facts: Facts) -> str:
    failing = [match.failing(facts) for match in clause.matches]
    if all(field == "conditions" for field in failing):
        return "no L4 condition, so it never matches"
    return "does not hold: " + ", ".join(dict.fromkeys(field for field in failing if field))
