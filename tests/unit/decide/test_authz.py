"""L4 authorization: matching, order, fail-closed, the trace, and agreement with a slow reference."""

import dataclasses
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hbone.connect import SocketAddress
from hbone.reasons import Reason
from hbone.spiffe import SpiffeId
from istiodlite.api.authorization_pb2 import Authorization as WireAuthorization
from istiodlite.api.authorization_pb2 import Match
from tests.unit.decide import reference
from tests.unit.state.builders import authorization, match, policy, snapshot, workload
from ztunnel.decide.authz import Authorization, authorize, facts_of
from ztunnel.decide.trace import Outcome
from ztunnel.state import convert
from ztunnel.state.changes import Key, Kind
from ztunnel.state.policy import Action, Policy, PolicyScope

CLIENT = SpiffeId("td", "client-ns", "client")
SOURCE = "10.0.0.1"
DESTINATION = SocketAddress.of("10.0.0.2", 8080)
SERVER = workload("server", "10.0.0.2")


def ask(
    *policies: Policy,
    identity: SpiffeId | None = CLIENT,
    source: str = SOURCE,
    destination: SocketAddress = DESTINATION,
    listed: tuple[str, ...] = (),
) -> Authorization:
    server = dataclasses.replace(SERVER, authorization_policies=listed)
    return authorize(identity, ip_address(source), destination, server, snapshot(*policies))


def matches(one: Match, **connection: Any) -> bool:
    """Whether an ALLOW policy of this one match lets the connection in."""
    return ask(policy("p", [[[one]]]), **connection).allowed


class TestFields:
    @pytest.mark.parametrize(
        ("field", "hit", "miss"),
        [
            ("namespaces", "client-ns", "other"),
            ("principals", "td/ns/client-ns/sa/client", "td/ns/client-ns/sa/other"),
            ("source_ips", "10.0.0.1/32", "10.0.0.3/32"),
            ("source_ips", "10.0.0.0/24", "10.0.1.0/24"),
            ("source_ips", "0.0.0.0/0", "::/0"),
            ("destination_ips", "10.0.0.2/32", "10.0.0.1/32"),
            ("destination_ips", "10.0.0.0/8", "2001:db8::/32"),
            ("destination_ports", 8080, 80),
            ("service_accounts", ("client-ns", "client"), ("client-ns", "other")),
            ("service_accounts", ("client-ns", "client"), ("other", "client")),
        ],
    )
    def test_a_field_holds_when_one_value_does_and_its_negation_when_none_does(
        self, field: str, hit: Any, miss: Any
    ) -> None:
        assert matches(match(**{field: [hit]}))
        assert matches(match(**{field: [miss, hit]}))
        assert not matches(match(**{field: [miss]}))
        assert matches(match(**{f"not_{field}": [miss]}))
        assert not matches(match(**{f"not_{field}": [hit]}))
        assert not matches(match(**{f"not_{field}": [miss, hit]}))
        assert not matches(match(**{field: [hit], f"not_{field}": [hit]}))
        assert matches(match(**{field: [hit], f"not_{field}": [miss]}))

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("client-ns", True),
            ("client", False),
            ("Client-ns", False),
            ("client*", True),
            ("client-ns*", True),
            ("client-nsx*", False),
            ("*-ns", True),
            ("*client-ns", True),
            ("*xclient-ns", False),
            ("lient-n*", False),
            ("*", True),
        ],
    )
    def test_strings_match_exactly_by_prefix_by_suffix_or_by_presence(
        self, pattern: str, expected: bool
    ) -> None:
        assert matches(match(namespaces=[pattern])) is expected
        assert matches(match(not_namespaces=[pattern])) is not expected

    @pytest.mark.parametrize("pattern", ["*", "td*", "*client", "td/ns/client-ns/sa/client"])
    def test_without_an_identity_no_positive_principal_holds_and_every_negative_does(
        self, pattern: str
    ) -> None:
        assert not matches(match(principals=[pattern]), identity=None)
        assert matches(match(not_principals=[pattern]), identity=None)

    def test_without_an_identity_there_is_no_namespace_and_no_service_account(self) -> None:
        assert not matches(match(namespaces=["*"]), identity=None)
        assert matches(match(not_namespaces=["*"]), identity=None)
        assert not matches(match(service_accounts=[("client-ns", "client")]), identity=None)
        assert matches(match(not_service_accounts=[("client-ns", "client")]), identity=None)

    def test_a_principal_written_with_its_scheme_never_matches(self) -> None:
        assert not matches(match(principals=[str(CLIENT)]))

    def test_a_service_account_is_the_same_in_every_trust_domain(self) -> None:
        elsewhere = SpiffeId("elsewhere", "client-ns", "client")
        assert matches(match(service_accounts=[("client-ns", "client")]), identity=elsewhere)

    def test_fields_of_a_match_are_anded(self) -> None:
        assert matches(match(namespaces=["client-ns"], destination_ports=[8080]))
        assert not matches(match(namespaces=["client-ns"], destination_ports=[80]))
        assert not matches(match(namespaces=["other"], destination_ports=[8080]))


YES, NO = match(destination_ports=[8080]), match(destination_ports=[1])


class TestNesting:
    @pytest.mark.parametrize(
        ("rules", "expected"),
        [
            ([], False),
            ([[]], True),
            ([[[]]], True),
            ([[[Match()]]], False),
            ([[[Match(), YES]]], True),
            ([[[YES], [Match()]]], False),
            ([[[YES, NO]]], True),
            ([[[NO, NO]]], False),
            ([[[YES], [YES]]], True),
            ([[[YES], [NO]]], False),
            ([[[YES], []]], True),
            ([[[NO]], [[YES]]], True),
            ([[[NO]], [[NO]]], False),
            ([[[NO]], []], True),
        ],
    )
    def test_rules_are_ored_clauses_anded_matches_ored(self, rules: Any, expected: bool) -> None:
        assert ask(policy("p", rules)).allowed is expected
        denied = ask(policy("p", rules, action="DENY"))
        assert denied.allowed is not expected


class TestOrder:
    ALLOW_ALL = policy("allow", [[]])
    DENY_ALL = policy("deny", [[]], action="DENY")

    def test_without_policies_everything_is_allowed(self) -> None:
        assert (ask().reason, ask().policy) == (Reason.OK, "")

    def test_a_deny_that_matches_comes_before_any_allow(self) -> None:
        decision = ask(self.ALLOW_ALL, self.DENY_ALL)
        assert (decision.reason, decision.policy) == (Reason.POLICY_DENIED, "ns/deny")

    def test_a_deny_that_does_not_match_allows_the_rest(self) -> None:
        assert ask(policy("deny", [[[NO]]], action="DENY")).allowed

    def test_an_allow_that_does_not_match_denies_the_rest(self) -> None:
        decision = ask(policy("allow", [[[NO]]]))
        assert (decision.reason, decision.policy) == (Reason.POLICY_NO_MATCH, "")

    def test_an_allow_without_rules_denies_everything_and_a_deny_without_rules_nothing(self) -> None:
        assert ask(policy("allow")).reason is Reason.POLICY_NO_MATCH
        assert ask(policy("deny", action="DENY")).allowed

    def test_any_allow_is_enough(self) -> None:
        decision = ask(policy("a", [[[NO]]]), policy("b", [[[YES]]]))
        assert (decision.reason, decision.policy) == (Reason.OK, "ns/b")

    @pytest.mark.parametrize("action", ["ALLOW", "DENY"])
    @pytest.mark.parametrize("rules", [[], [[]], [[[NO]]]])
    def test_a_dry_run_never_decides(self, action: str, rules: Any) -> None:
        dry = policy("dry", rules, action=action, dry_run=True)
        assert ask(dry).reason is Reason.OK
        assert ask(dry, self.ALLOW_ALL).policy == "ns/allow"
        assert ask(dry, self.DENY_ALL).policy == "ns/deny"
        assert ask(dry, policy("allow", [[[NO]]])).reason is Reason.POLICY_NO_MATCH

    def test_policies_of_other_namespaces_and_unlisted_selectors_do_not_apply(self) -> None:
        other = policy("p", [[]], action="DENY", namespace="other")
        selector = policy("q", [[]], action="DENY", scope="WORKLOAD_SELECTOR")
        assert ask(other, selector).allowed
        assert ask(other, selector, listed=("ns/q",)).policy == "ns/q"

    def test_policies_of_the_mesh_apply_everywhere(self) -> None:
        mesh = policy("p", [[]], action="DENY", namespace="istio-system", scope="GLOBAL")
        assert ask(mesh).policy == "istio-system/p"


class TestFailClosed:
    def test_a_listed_policy_that_has_not_come_refuses(self) -> None:
        decision = ask(listed=("ns/later",))
        assert (decision.reason, decision.policy) == (Reason.POLICY_PENDING, "ns/later")
        assert Key(Kind.POLICY, "ns/later") in decision.depends

    def test_it_refuses_even_what_another_policy_allows(self) -> None:
        assert ask(policy("allow", [[]]), listed=("ns/later",)).reason is Reason.POLICY_PENDING

    def test_a_deny_that_matches_is_the_better_reason(self) -> None:
        decision = ask(policy("deny", [[]], action="DENY"), listed=("ns/later",))
        assert decision.reason is Reason.POLICY_DENIED

    @pytest.mark.parametrize("scope", PolicyScope)
    def test_a_policy_that_cannot_be_read_refuses_whoever_it_may_apply_to(self, scope: PolicyScope) -> None:
        broken = Policy("ns", "broken", scope, Action.DENY, unusable="action has the unsupported value 9")
        decision = ask(broken, policy("allow", [[]]), listed=("ns/broken",))
        assert (decision.reason, decision.policy) == (Reason.POLICY_UNUSABLE, "ns/broken")
        assert decision.trace()[-1].why == "action has the unsupported value 9"


class TestStrictMutualTls:
    """PeerAuthentication as istiod turns it into policies."""

    STRICT = policy(
        "istio_converted_static_strict",
        [[[match(not_principals=["*"])]]],
        namespace="istio-system",
        scope="WORKLOAD_SELECTOR",
        action="DENY",
    )
    PERMISSIVE_PORT = policy(
        "converted_peer_authentication_a",
        [[[match(not_principals=["*"])], [match(not_destination_ports=[8080])]]],
        scope="WORKLOAD_SELECTOR",
        action="DENY",
    )

    def test_plaintext_is_refused_and_mutual_tls_let_in(self) -> None:
        listed = (self.STRICT.key,)
        assert ask(self.STRICT, identity=None, listed=listed).policy == self.STRICT.key
        assert ask(self.STRICT, listed=listed).allowed

    def test_a_port_can_be_excepted(self) -> None:
        listed = (self.PERMISSIVE_PORT.key,)
        other = SocketAddress.of("10.0.0.2", 9090)
        assert ask(self.PERMISSIVE_PORT, identity=None, listed=listed).allowed
        assert not ask(self.PERMISSIVE_PORT, identity=None, destination=other, listed=listed).allowed
        assert ask(self.PERMISSIVE_PORT, destination=other, listed=listed).allowed


class TestTrace:
    def test_lists_every_policy_in_the_order_considered_up_to_the_one_that_decided(self) -> None:
        decision = ask(
            policy("allow-1", [[[NO]], [[YES], [NO]]]),
            policy("allow-2", [[[NO]], [[YES], [NO, YES]]]),
            policy("allow-3", [[]]),
            policy("deny", [[[NO]]], action="DENY"),
            policy("dry-allow", [[]], dry_run=True),
            policy("dry-deny", [[[YES]]], action="DENY", dry_run=True),
        )
        assert [(step.policy, step.outcome, step.path) for step in decision.trace()] == [
            ("ns/dry-deny", Outcome.DRY_RUN_MATCHED, "rules[0].clauses[0].matches[0]"),
            ("ns/deny", Outcome.NOT_MATCHED, "rules[0].clauses[0]"),
            ("ns/dry-allow", Outcome.DRY_RUN_MATCHED, "rules[0]"),
            ("ns/allow-1", Outcome.NOT_MATCHED, "rules[0].clauses[0]+rules[1].clauses[1]"),
            ("ns/allow-2", Outcome.MATCHED, "rules[1].clauses[0].matches[0]+clauses[1].matches[1]"),
        ]

    def test_ends_with_the_deny_that_matched(self) -> None:
        decision = ask(
            policy("a", [[[NO]]], action="DENY"),
            policy("b", [[]], action="DENY"),
            policy("c", [[]], action="DENY"),
        )
        assert [step.policy for step in decision.trace()] == ["ns/a", "ns/b"]

    def test_ends_with_the_policy_that_is_missing(self) -> None:
        decision = ask(policy("allow", [[]]), listed=("ns/x", "ns/y"))
        assert [(s.policy, s.outcome) for s in decision.trace()] == [("ns/x", Outcome.PENDING)]

    def test_says_which_field_failed_and_that_an_empty_match_never_matches(self) -> None:
        decision = ask(
            policy("a", [[[match(namespaces=["other"]), NO]]]), policy("b", [[[Match()]]]), policy("c")
        )
        assert [step.why for step in decision.trace()] == [
            "does not hold: namespaces, destination_ports",
            "no L4 condition, so it never matches",
            "the policy has no rules, so it never matches",
        ]


def test_the_decision_depends_on_the_workload_the_sets_of_policies_and_those_it_lists() -> None:
    listed = policy("p", scope="WORKLOAD_SELECTOR", action="DENY")
    assert ask(listed, listed=("ns/p", "ns/q")).depends == {
        Key(Kind.WORKLOAD, SERVER.uid),
        Key(Kind.POLICIES, ""),
        Key(Kind.POLICIES, "ns"),
        Key(Kind.POLICY, "ns/p"),
        Key(Kind.POLICY, "ns/q"),
    }


def test_thousands_of_policies_that_cannot_match_are_not_evaluated() -> None:
    many = [
        policy(f"p{i}", [[[match(namespaces=[f"n{i}"], principals=[f"td/ns/a/sa/x{i}"])]]])
        for i in range(2000)
    ]
    s = snapshot(*many, policy("mine", [[[match(principals=[CLIENT.principal])]]]))
    facts = facts_of(CLIENT, ip_address(SOURCE), DESTINATION)
    assert [each.name for each in s.candidates("ns", facts)] == ["mine"]
    stranger = SpiffeId("td", "x", "y")
    decision = authorize(stranger, ip_address(SOURCE), DESTINATION, SERVER, s)
    assert decision.reason is Reason.POLICY_NO_MATCH
    assert len(decision.trace()) == 2001


# Agreement with the reference

_TEXTS = st.sampled_from(["a", "ab", "b*", "a*", "*b", "*", "td/ns/a/sa/b", "td*", "*sa/b", "other"])
_BLOCKS = st.sampled_from(
    ["10.0.0.1/32", "10.0.0.0/8", "0.0.0.0/0", "10.0.0.2/31", "::/0", "2001:db8::/32", "2001:db8::1/128"]
)
_PORTS = st.integers(1, 3)
_ACCOUNTS = st.tuples(st.sampled_from(["a", "ab"]), st.sampled_from(["b", "c"]))
_VALUES = {
    "namespaces": _TEXTS,
    "principals": _TEXTS,
    "source_ips": _BLOCKS,
    "destination_ips": _BLOCKS,
    "destination_ports": _PORTS,
    "service_accounts": _ACCOUNTS,
}
_FIELDS = st.sampled_from([prefix + name for name in _VALUES for prefix in ("", "not_")])


@st.composite
def _matches(draw: st.DrawFn) -> Match:
    return match(
        **{
            field: draw(st.lists(_VALUES[field.removeprefix("not_")], min_size=1, max_size=2))
            for field in draw(st.sets(_FIELDS, max_size=3))
        }
    )


_RULES = st.lists(st.lists(st.lists(_matches(), max_size=2), max_size=2), max_size=2)
_POLICIES = st.lists(
    st.builds(
        authorization,
        st.sampled_from("abcdef"),
        _RULES,
        action=st.sampled_from(["ALLOW", "DENY"]),
        dry_run=st.booleans(),
        scope=st.sampled_from(["GLOBAL", "NAMESPACE", "WORKLOAD_SELECTOR"]),
    ),
    max_size=4,
    unique_by=lambda each: each.name,
)
_ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.3", "192.0.2.1", "2001:db8::1", "::1"]).map(ip_address)
_PEERS = st.builds(
    reference.Peer,
    identity=st.none()
    | st.builds(SpiffeId, st.just("td"), st.sampled_from(["a", "ab", "x"]), st.sampled_from(["b", "c"])),
    source=_ADDRESSES,
    destination=_ADDRESSES,
    port=_PORTS,
)


@settings(max_examples=1000, deadline=None)
@given(_POLICIES, _PEERS, st.booleans())
def test_the_evaluator_agrees_with_the_reference(
    wire: list[WireAuthorization], peer: reference.Peer, missing: bool
) -> None:
    listed = tuple(f"ns/{each.name}" for each in wire) + (("ns/missing",) if missing else ())
    decision = ask(
        *map(convert.policy, wire),
        identity=peer.identity,
        source=str(peer.source),
        destination=SocketAddress(peer.destination, peer.port),
        listed=listed,
    )
    assert decision.reason == reference.decide(wire, missing, peer)
    _check_trace(decision, wire, peer)


def _check_trace(decision: Authorization, wire: list[WireAuthorization], peer: reference.Peer) -> None:
    """Each step says of its policy what the reference says, and the last one is the one that decided."""
    by_key = {f"ns/{each.name}": each for each in wire}
    steps = decision.trace()
    for step in steps:
        if step.outcome is not Outcome.PENDING:
            matched = step.outcome in (Outcome.MATCHED, Outcome.DRY_RUN_MATCHED)
            assert matched is reference.policy_matches(by_key[step.policy], peer)
    if decision.policy:
        assert steps[-1].policy == decision.policy
    else:
        assert {step.policy for step in steps} == set(by_key)
