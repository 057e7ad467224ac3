"""AuthorizationPolicy: what will not be enforced, never matches, or shuts everybody out."""

from collections.abc import Iterator

from istiodlite.analyze.findings import Finding, Severity
from istiodlite.analyze.mesh import Mesh, Workload
from istiodlite.analyze.rules import (
    is_exact,
    malformed,
    named_accounts,
    named_namespaces,
    never_matches,
    without_effect_at_l4,
)
from istiodlite.objects import AuthorizationPolicy, PolicyAction, Rule, Service
from istiodlite.registry.authorization import is_sent, needs_http
from istiodlite.registry.world import key_of, selects

_E, _W, _I = Severity.ERROR, Severity.WARNING, Severity.INFO


def check_policies(mesh: Mesh) -> Iterator[Finding]:
    """All that concerns a policy by itself and with what it names."""
    for policy in mesh.policies():
        yield from _scope(mesh, policy)
        yield from _action(policy)
        for index, rule in enumerate(policy.rules):
            yield from _rule(mesh, policy, rule, f"spec.rules[{index}]")
    yield from _unreachable(mesh)


def _scope(mesh: Mesh, policy: AuthorizationPolicy) -> Iterator[Finding]:
    key, namespace = key_of(policy), policy.meta.namespace
    if policy.selector and mesh.workloads:
        hit = mesh.selected(namespace, policy.selector)
        if not hit:
            where = "any namespace" if namespace == mesh.config.root_namespace else f"namespace {namespace}"
            text = (
                f"no workload of {where} has these labels, so the policy protects nothing; correct the labels"
            )
            yield Finding(_W, "selector-hits-nothing", key, "spec.selector", text)
        elif policy.action is PolicyAction.ALLOW:
            yield from _waypoint_not_named(mesh, policy, hit)
    for index, target in enumerate(policy.targets):
        field = f"spec.targetRefs[{index}]"
        found = next(
            (
                k
                for k in mesh.objects
                if (k.kind, k.name) == (target.kind, target.name) and k.namespace in ("", namespace)
            ),
            None,
        )
        if found is None and (target.kind, target.name) != ("GatewayClass", "istio-waypoint"):
            text = f"there is no {target.kind} {target.name} in {namespace}; the policy is enforced nowhere"
            yield Finding(_E, "target-not-found", key, field, text)
        service = mesh.objects[found] if found is not None else None
        if isinstance(service, Service) and mesh.waypoint_of(service) is None:
            text = (
                f"Service {target.name} uses no waypoint, and only a waypoint enforces a policy with "
                "targetRefs; add the label istio.io/use-waypoint"
            )
            yield Finding(_E, "target-without-waypoint", key, field, text)


def _waypoint_not_named(mesh: Mesh, policy: AuthorizationPolicy, hit: list[Workload]) -> Iterator[Finding]:
    """Behind a waypoint the caller is the waypoint."""
    named = {(ns, sa) for rule in policy.rules for _, ns, sa in named_accounts(rule, policy.meta.namespace)}
    open_to_others = any(
        not rule.sources
        or any(not (s.principals or s.service_accounts) for s in rule.sources)
        or any(not is_exact(text) for s in rule.sources for text in s.principals)
        for rule in policy.rules
    )
    if not named or open_to_others:
        return
    for workload in hit:
        for service in mesh.services_of(workload):
            waypoint = mesh.waypoint_of(service)
            if waypoint is not None and waypoint not in named:
                text = (
                    f"what comes to {workload} through Service {service.meta.name} has the identity of its "
                    f"waypoint {'/'.join(waypoint)}, which no rule names; add it, or use targetRefs"
                )
                yield Finding(_W, "waypoint-not-allowed", key_of(policy), "spec.rules", text)
                return


def _action(policy: AuthorizationPolicy) -> Iterator[Finding]:
    key = key_of(policy)
    if policy.dry_run:
        text = "annotated as a dry run: it is not enforced; remove the annotation when it may take effect"
        yield Finding(_I, "dry-run", key, "metadata.annotations", text)
    elif policy.action not in (PolicyAction.ALLOW, PolicyAction.DENY) and not policy.targets:
        text = (
            f"node agents do not know action {policy.action}; attach the policy to a waypoint with targetRefs"
        )
        yield Finding(_E, "action-needs-waypoint", key, "spec.action", text)


def _rule(mesh: Mesh, policy: AuthorizationPolicy, rule: Rule, field: str) -> Iterator[Finding]:
    key = key_of(policy)
    why = never_matches(rule)
    if why is not None:
        yield Finding(
            _W, "rule-never-matches", key, f"{field}.{why[0]}", f"{why[1]}; correct or remove the rule"
        )
    for index, source in enumerate(rule.sources):
        for text in source.principals:
            if is_exact(text) and malformed(text) and why is None:
                message = f'"{text}" is no principal; write TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT'
                yield Finding(
                    _E, "malformed-principal", key, f"{field}.from[{index}].source.principals", message
                )
    if is_sent(policy) and needs_http(rule):
        yield from _http(policy, rule, field)
    if mesh.workloads:
        yield from _unknown(mesh, policy, rule, field)
        yield from _ports(mesh, policy, rule, field)


def _http(policy: AuthorizationPolicy, rule: Rule, field: str) -> Iterator[Finding]:
    key = key_of(policy)
    if policy.action is PolicyAction.ALLOW:
        text = "node agents see no HTTP attributes, so they leave this rule out and deny; use targetRefs and a waypoint"
        yield Finding(_E, "allow-needs-waypoint", key, field, text)
    elif without_effect_at_l4(rule):
        text = (
            "node agents see no HTTP attributes, so this DENY denies nothing there; attach it to a waypoint "
            "with targetRefs"
        )
        yield Finding(_E, "deny-only-http", key, field, text)
    else:
        text = "node agents see no HTTP attributes, so this DENY denies more than it says; use targetRefs and a waypoint"
        yield Finding(_W, "deny-wider", key, field, text)


def _unknown(mesh: Mesh, policy: AuthorizationPolicy, rule: Rule, field: str) -> Iterator[Finding]:
    key = key_of(policy)
    for place, namespace, account in named_accounts(rule, policy.meta.namespace):
        if (namespace, account) not in mesh.accounts:
            text = f"nothing runs as {namespace}/{account} here; correct the name, or add the workload"
            yield Finding(_W, "unknown-identity", key, f"{field}.{place}", text)
    for place, namespace in named_namespaces(rule):
        if namespace not in mesh.namespaces:
            text = f"there is no namespace {namespace} here; correct the name"
            yield Finding(_W, "unknown-namespace", key, f"{field}.{place}", text)


def _ports(mesh: Mesh, policy: AuthorizationPolicy, rule: Rule, field: str) -> Iterator[Finding]:
    """Policies for agents count pod ports."""
    if policy.targets:
        return
    hit = mesh.selected(policy.meta.namespace, policy.selector)
    own = {number for workload in hit for number in workload.numbers}
    for index, operation in enumerate(rule.operations):
        for text in operation.ports:
            number = int(text)
            if not own or number in own:
                continue
            for workload in hit:
                for service in mesh.services_of(workload):
                    if any(port.port == number for port in service.ports):
                        message = (
                            f"{number} is a port of Service {service.meta.name}; policies count the pod's "
                            "port, which is another one: write that"
                        )
                        yield Finding(
                            _W,
                            "service-port",
                            key_of(policy),
                            f"{field}.to[{index}].operation.ports",
                            message,
                        )
                        return


def _unreachable(mesh: Mesh) -> Iterator[Finding]:
    """Workloads that ALLOW policies are meant to open to somebody, and that nobody can reach."""
    allows = [one for one in mesh.policies() if one.action is PolicyAction.ALLOW and is_sent(one)]
    for workload in mesh.workloads:
        if not workload.enrolled:
            continue
        places = (workload.namespace, mesh.config.root_namespace)
        applied = [p for p in allows if p.meta.namespace in places and selects(p.selector, workload.labels)]
        # Without a rule anywhere, shutting everybody out is what was meant.
        if any(p.rules for p in applied) and all(_dead(mesh, p, rule) for p in applied for rule in p.rules):
            names = ", ".join(str(key_of(p)) for p in applied)
            text = f"no rule of {names} can let anybody in, so nothing reaches it; correct the rules"
            yield Finding(_E, "nothing-allowed", workload.key, "", text)


def _dead(mesh: Mesh, policy: AuthorizationPolicy, rule: Rule) -> bool:
    if needs_http(rule) or never_matches(rule) is not None:
        return True
    if not rule.sources:
        return False
    return all(
        source.principals or source.service_accounts or source.namespaces for source in rule.sources
    ) and not _somebody(mesh, policy, rule)


def _somebody(mesh: Mesh, policy: AuthorizationPolicy, rule: Rule) -> bool:
    """Whether an identity that a rule names may exist; patterns are given the benefit of the doubt."""
    for source in rule.sources:
        if any(not is_exact(text) for text in (*source.principals, *source.namespaces)):
            return True
    accounts = [(ns, sa) for _, ns, sa in named_accounts(rule, policy.meta.namespace)]
    return any(one in mesh.accounts for one in accounts) or any(
        place in mesh.namespaces for _, place in named_namespaces(rule)
    )
