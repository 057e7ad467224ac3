"""AuthorizationPolicy to what the node agents evaluate at L4.

What an agent cannot see (HTTP attributes) must not make a policy wider:
* an ALLOW rule that needs it is dropped whole; a policy left without groups denies its whole scope;
* a DENY rule keeps what remains. A clause with nothing left is an empty match, which never matches, so
  such a rule has no effect at the agent and has to be enforced by a waypoint.
"""

import ipaddress
from collections.abc import Callable

from istiodlite.api import authorization_pb2 as pb
from istiodlite.objects import AuthorizationPolicy, Condition, Operation, PolicyAction, Rule, Source
from istiodlite.registry import resource
from istiodlite.registry.config import MeshConfig
from istiodlite.registry.resource import Resource, authorization_resource
from istiodlite.registry.trust_domains import under_all_names
from istiodlite.registry.world import View, key_of

ACCEPTED = "ZtunnelAccepted"
_L4_CONDITIONS = frozenset(
    {"source.ip", "source.namespace", "source.principal", "destination.ip", "destination.port"}
)


def is_sent(policy: AuthorizationPolicy) -> bool:
    """Policies for waypoints, dry runs and actions unknown to agents are not sent to them."""
    return (
        policy.action in (PolicyAction.ALLOW, PolicyAction.DENY) and not policy.targets and not policy.dry_run
    )


def convert(view: View, policy: AuthorizationPolicy) -> tuple[Resource | None, resource.Condition | None]:
    """The resource (None: not sent) and the status to show (None: the policy is not for agents)."""
    key = key_of(policy)
    if policy.targets:
        return None, None
    if not is_sent(policy):
        what = "dry-run" if policy.dry_run else f"action {policy.action}"
        message = f"ztunnel does not support {what}; the policy is not enforced there"
        return None, resource.Condition(key, ACCEPTED, False, "UnsupportedValue", message)
    sent = pb.Authorization(
        name=policy.meta.name,
        namespace=policy.meta.namespace,
        scope=_scope(view, policy),
        action=pb.ALLOW if policy.action is PolicyAction.ALLOW else pb.DENY,
        groups=_groups(policy, view.config),
    )
    return authorization_resource(sent), _status(policy)


def _scope(view: View, policy: AuthorizationPolicy) -> pb.Scope:
    if policy.selector:
        return pb.WORKLOAD_SELECTOR
    return pb.GLOBAL if policy.meta.namespace == view.config.root_namespace else pb.NAMESPACE


def _groups(policy: AuthorizationPolicy, config: MeshConfig) -> list[pb.Group]:
    allow = policy.action is PolicyAction.ALLOW
    rules = (rule for rule in policy.rules if not (allow and needs_http(rule)))
    return [_group(rule, policy.meta.namespace, config) for rule in rules]


def _group(rule: Rule, namespace: str, config: MeshConfig) -> pb.Group:
    group = pb.Group()
    if rule.operations:
        group.rules.add(matches=[_operation_match(one) for one in rule.operations])
    if rule.sources:
        group.rules.add(matches=[_source_match(one, namespace, config) for one in rule.sources])
    for condition in rule.conditions:
        group.rules.add(matches=[_condition_match(condition, config)])
    return group


def _source_needs_http(source: Source) -> bool:
    # Agents are told no trust domain; as an ignored field it would widen an ALLOW.
    return bool(
        source.request_principals
        or source.not_request_principals
        or source.remote_ip_blocks
        or source.not_remote_ip_blocks
        or source.trust_domains
        or source.not_trust_domains
    )


def _operation_needs_http(operation: Operation) -> bool:
    return bool(
        operation.hosts
        or operation.not_hosts
        or operation.methods
        or operation.not_methods
        or operation.paths
        or operation.not_paths
    )


def needs_http(rule: Rule) -> bool:
    """True if any part of the rule is beyond L4."""
    return (
        any(_source_needs_http(source) for source in rule.sources)
        or any(_operation_needs_http(operation) for operation in rule.operations)
        or any(condition.key not in _L4_CONDITIONS for condition in rule.conditions)
    )


def string_match(text: str) -> pb.StringMatch:
    """`*` presence, `*x` suffix, `x*` prefix, else exact."""
    if text == "*":
        match = pb.StringMatch()
        match.presence.SetInParent()
        return match
    if text.startswith("*"):
        return pb.StringMatch(suffix=text[1:])
    if text.endswith("*"):
        return pb.StringMatch(prefix=text[:-1])
    return pb.StringMatch(exact=text)


def _address(text: str) -> pb.Address:
    # Bits behind the prefix stay as they were written: agents ignore them, and Istio's answers have them too.
    block = ipaddress.ip_interface(text)
    return pb.Address(address=block.ip.packed, length=block.network.prefixlen)


def _account(text: str, namespace: str) -> pb.ServiceAccountMatch:
    place, slash, name = text.partition("/")
    return pb.ServiceAccountMatch(
        namespace=place if slash else namespace, serviceAccount=name if slash else text
    )


def _source_match(source: Source, namespace: str, config: MeshConfig) -> pb.Match:
    return pb.Match(
        namespaces=map(string_match, source.namespaces),
        not_namespaces=map(string_match, source.not_namespaces),
        principals=map(string_match, under_all_names(source.principals, config)),
        not_principals=map(string_match, under_all_names(source.not_principals, config)),
        source_ips=map(_address, source.ip_blocks),
        not_source_ips=map(_address, source.not_ip_blocks),
        service_accounts=[_account(text, namespace) for text in source.service_accounts],
        not_service_accounts=[_account(text, namespace) for text in source.not_service_accounts],
    )


def _operation_match(operation: Operation) -> pb.Match:
    return pb.Match(
        destination_ports=map(int, operation.ports), not_destination_ports=map(int, operation.not_ports)
    )


def _condition_match(condition: Condition, config: MeshConfig) -> pb.Match:
    if condition.key == "source.principal":
        return pb.Match(
            principals=map(string_match, under_all_names(condition.values, config)),
            not_principals=map(string_match, under_all_names(condition.not_values, config)),
        )
    build = _CONDITIONS.get(condition.key)
    return build(condition) if build is not None else pb.Match()


_CONDITIONS: dict[str, Callable[[Condition], pb.Match]] = {
    "source.ip": lambda c: pb.Match(
        source_ips=map(_address, c.values), not_source_ips=map(_address, c.not_values)
    ),
    "source.namespace": lambda c: pb.Match(
        namespaces=map(string_match, c.values), not_namespaces=map(string_match, c.not_values)
    ),
    "destination.ip": lambda c: pb.Match(
        destination_ips=map(_address, c.values), not_destination_ips=map(_address, c.not_values)
    ),
    "destination.port": lambda c: pb.Match(
        destination_ports=map(int, c.values), not_destination_ports=map(int, c.not_values)
    ),
}


def _status(policy: AuthorizationPolicy) -> resource.Condition:
    key = key_of(policy)
    http = [rule for rule in policy.rules if needs_http(rule)]
    if not http:
        return resource.Condition(key, ACCEPTED, True, "Accepted", "attached to ztunnel")
    if policy.action is PolicyAction.ALLOW:
        text = "ztunnel cannot see HTTP attributes: ALLOW rules that use them are left out (more is denied)"
    elif any(group_never_fires(rule) for rule in http):
        text = (
            "ztunnel cannot see HTTP attributes: a DENY rule with a clause of nothing else has no effect "
            "there; attach the policy to a waypoint with targetRefs"
        )
    else:
        text = "ztunnel cannot see HTTP attributes: DENY rules that use them match more than they say"
    return resource.Condition(key, ACCEPTED, True, "UnsupportedValue", text)


def group_never_fires(rule: Rule) -> bool:
    """An AND-ed clause of empty matches only: the group can never fire."""
    clauses = _group(rule, "", MeshConfig()).rules
    return any(all(match.ByteSize() == 0 for match in clause.matches) for clause in clauses)
