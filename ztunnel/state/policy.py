"""Authorization policies, compiled for matching.

Structure and meaning are those of istio.security.Authorization (see istiodlite/api/authorization.proto):
the rules of a policy are OR-ed, the clauses of a rule AND-ed, the matches of a clause OR-ed, the fields
of a match AND-ed, the values of a field OR-ed; every `not_` value has to fail.
"""

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ztunnel.state.model import IPAddress, IPNetwork

__all__ = [
    "Action",
    "Clause",
    "Condition",
    "Facts",
    "Match",
    "Policy",
    "PolicyScope",
    "Rule",
    "StringMatcher",
]


class Action(enum.StrEnum):
    ALLOW = "ALLOW"
    DENY = "DENY"


class PolicyScope(enum.StrEnum):
    """To whom a policy applies: the mesh, its namespace, or the workloads that list it by name."""

    GLOBAL = "GLOBAL"
    NAMESPACE = "NAMESPACE"
    WORKLOAD_SELECTOR = "WORKLOAD_SELECTOR"


@dataclass(frozen=True, slots=True)
class StringMatcher:
    """A list of string matches, compiled: one set look-up for the exact ones. Case counts."""

    exact: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    presence: bool = False

    def __bool__(self) -> bool:
        return bool(self.exact or self.prefixes or self.suffixes or self.presence)

    def matches(self, value: str) -> bool:
        """Whether any of the values matches; presence means "not empty"."""
        return (
            value in self.exact
            or (bool(self.prefixes) and value.startswith(self.prefixes))
            or (bool(self.suffixes) and value.endswith(self.suffixes))
            or (self.presence and value != "")
        )


class Facts(NamedTuple):
    """What conditions are tested against. Without an identity the first three are empty."""

    namespace: str
    principal: str
    service_account: tuple[str, str]
    source_ip: IPAddress
    destination_ip: IPAddress
    destination_port: int


class Need(NamedTuple):
    """A fact that a connection has to have: the field of a match, and one value of it."""

    field: str
    value: object

    @classmethod
    def given_by(cls, facts: Facts) -> "tuple[Need, ...]":
        """All needs that a connection meets."""
        return (
            cls("principals", facts.principal),
            cls("namespaces", facts.namespace),
            cls("service_accounts", facts.service_account),
            cls("destination_ports", facts.destination_port),
        )


class Condition(NamedTuple):
    """One field of a match that cares: `test(facts[subject])` has to give `wanted`."""

    field: str
    subject: int
    wanted: bool
    test: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Match:
    """The conditions of one match; an empty field does not care.

    `conditions` is derived: the fields that do care, the cheap ones first. Without any, the match never
    matches (Istio's rule).
    """

    namespaces: StringMatcher = StringMatcher()
    not_namespaces: StringMatcher = StringMatcher()
    principals: StringMatcher = StringMatcher()
    not_principals: StringMatcher = StringMatcher()
    source_ips: tuple[IPNetwork, ...] = ()
    not_source_ips: tuple[IPNetwork, ...] = ()
    destination_ips: tuple[IPNetwork, ...] = ()
    not_destination_ips: tuple[IPNetwork, ...] = ()
    destination_ports: frozenset[int] = frozenset()
    not_destination_ports: frozenset[int] = frozenset()
    service_accounts: frozenset[tuple[str, str]] = frozenset()
    not_service_accounts: frozenset[tuple[str, str]] = frozenset()
    conditions: tuple[Condition, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", tuple(self._conditions()))

    def _conditions(self) -> Iterator[Condition]:
        for name, subject, compile_test in _FIELDS:
            for prefix, wanted in (("", True), ("not_", False)):
                values = getattr(self, prefix + name)
                if values:
                    yield Condition(prefix + name, subject, wanted, compile_test(values))

    def needs_any_of(self) -> frozenset[Need] | None:
        """As for a policy; a match without conditions needs what nobody has."""
        if not self.conditions:
            return frozenset()
        for name, strings in (("principals", self.principals), ("namespaces", self.namespaces)):
            if strings.exact and not (strings.prefixes or strings.suffixes or strings.presence):
                return frozenset(Need(name, value) for value in strings.exact)
        for name, values in (
            ("service_accounts", self.service_accounts),
            ("destination_ports", self.destination_ports),
        ):
            if values:
                return frozenset(Need(name, value) for value in values)
        return None

    def failing(self, facts: Facts) -> str | None:
        """The first field that does not hold, "conditions" for a match without any; None: it matches."""
        if not self.conditions:
            return "conditions"
        for name, subject, wanted, test in self.conditions:
            if test(facts[subject]) is not wanted:
                return name
        return None


def _within(blocks: tuple[IPNetwork, ...]) -> Callable[[IPAddress], bool]:
    """Whether an address lies in any of the blocks; an address of another family never does."""

    def test(ip: IPAddress) -> bool:
        return any(ip in block for block in blocks)

    return test


def _in_set(values: frozenset[Any]) -> Callable[[Any], bool]:
    return values.__contains__


def _matching(values: StringMatcher) -> Callable[[str], bool]:
    return values.matches


def _telling(needs: frozenset[Need]) -> tuple[bool, int]:
    """Sorts first what few connections meet: a port is met by many."""
    return any(need.field == "destination_ports" for need in needs), len(needs)


_FIELDS: Final[tuple[tuple[str, int, Callable[[Any], Callable[[Any], bool]]], ...]] = (
    ("destination_ports", Facts._fields.index("destination_port"), _in_set),
    ("service_accounts", Facts._fields.index("service_account"), _in_set),
    ("principals", Facts._fields.index("principal"), _matching),
    ("namespaces", Facts._fields.index("namespace"), _matching),
    ("source_ips", Facts._fields.index("source_ip"), _within),
    ("destination_ips", Facts._fields.index("destination_ip"), _within),
)


@dataclass(frozen=True, slots=True)
class Clause:
    matches: tuple[Match, ...] = ()

    def needs_any_of(self) -> frozenset[Need] | None:
        """As for a policy: every match that can match at all has to need something."""
        if not self.matches:
            return None
        needs: set[Need] = set()
        for match in self.matches:
            of_match = match.needs_any_of()
            if of_match is None:
                return None
            needs |= of_match
        return frozenset(needs)

    def holds(self, facts: Facts) -> bool:
        """Whether any of the matches matches; a clause without matches always holds."""
        return not self.matches or any(match.failing(facts) is None for match in self.matches)


@dataclass(frozen=True, slots=True)
class Rule:
    clauses: tuple[Clause, ...] = ()

    def needs_any_of(self) -> frozenset[Need] | None:
        """As for a policy: what the most telling of the clauses needs, since all of them have to hold."""
        needs = [of_clause for clause in self.clauses if (of_clause := clause.needs_any_of()) is not None]
        return min(needs, key=_telling, default=None)

    def holds(self, facts: Facts) -> bool:
        """Whether all the clauses hold; a rule without clauses always does."""
        return all(clause.holds(facts) for clause in self.clauses)


@dataclass(frozen=True, slots=True)
class Policy:
    """One authorization policy. With `unusable` set it could not be read and nothing may be let in by it."""

    namespace: str
    name: str
    scope: PolicyScope
    action: Action
    rules: tuple[Rule, ...] = ()
    dry_run: bool = False
    unusable: str = ""

    @property
    def key(self) -> str:
        """ "namespace/name": the resource name."""
        return f"{self.namespace}/{self.name}"

    def needs_any_of(self) -> frozenset[Need] | None:
        """Facts of which at least one has to be given for the policy to match; None: there are none such.

        An index over these leaves only a few policies to be evaluated out of thousands.
        """
        needs: set[Need] = set()
        for rule in self.rules:
            of_rule = rule.needs_any_of()
            if of_rule is None:
                return None
            needs |= of_rule
        return frozenset(needs)

    def matching_rule(self, facts: Facts) -> int | None:
        """The first rule that holds; a policy without rules never matches."""
        for index, rule in enumerate(self.rules):
            if rule.holds(facts):
                return index
        return None
