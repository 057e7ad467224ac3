"""AuthorizationPolicy and PeerAuthentication: plain values to objects, as strict as Istio's webhook."""

from istiodlite.manifests import policy_values as values
from istiodlite.manifests.fields import Field, shown
from istiodlite.objects import (
    AuthorizationPolicy,
    Condition,
    Meta,
    MtlsMode,
    Operation,
    PeerAuthentication,
    PolicyAction,
    PolicyTarget,
    Rule,
    Source,
)

_TARGETS = {
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
    ("", "Service"),
    ("core", "Service"),
    ("networking.istio.io", "ServiceEntry"),
}
_DRY_RUN = "istio.io/dry-run"
_SOURCE_FIELDS = (
    "principals",
    "notPrincipals",
    "requestPrincipals",
    "notRequestPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "trustDomains",
    "notTrustDomains",
    "ipBlocks",
    "notIpBlocks",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
)
_OPERATION_FIELDS = (
    "hosts",
    "notHosts",
    "ports",
    "notPorts",
    "methods",
    "notMethods",
    "paths",
    "notPaths",
)
# What an external authorizer is asked about cannot depend on an identity it would have to establish.
_CUSTOM_REFUSED = _SOURCE_FIELDS[:10]


def parse_selector(field: Field) -> dict[str, str]:
    """selector.matchLabels; empty where absent."""
    field.only("matchLabels")
    labels = field["matchLabels"]
    for key, value in labels.entries():
        if not key:
            labels.fail("has an empty key; name the label")
        if "*" in key or "*" in value.text(""):
            labels.fail("wildcards are not allowed in selectors; write the label out")
    return labels.labels()


def parse_authorization_policy(meta: Meta, body: Field) -> AuthorizationPolicy:
    spec = body["spec"].only("selector", "targetRef", "targetRefs", "rules", "action", "provider")
    # proto3 JSON: an explicit empty value is the default.
    action = spec["action"].choice(tuple(PolicyAction), PolicyAction.ALLOW)
    targets = _targets(spec, meta)
    rules = tuple(_rule(item, action) for item in spec["rules"].items())
    _check_action(spec, action, rules)
    return AuthorizationPolicy(
        meta=meta,
        action=action,
        selector=parse_selector(spec["selector"]),
        targets=targets,
        rules=rules,
        dry_run=_dry_run(meta, action),
    )


def _check_action(spec: Field, action: PolicyAction, rules: tuple[Rule, ...]) -> None:
    if action in (PolicyAction.DENY, PolicyAction.CUSTOM) and not rules:
        spec["rules"].fail(f"a {action} policy without rules never matches; add a rule ({{}} matches all)")
    if action is PolicyAction.CUSTOM:
        if not spec["provider"]["name"].text(""):
            spec["provider"]["name"].fail("is missing; name the extension provider")
    elif spec["provider"].present:
        spec["provider"].fail(f"belongs to action CUSTOM, not {action}; remove it")


def _dry_run(meta: Meta, action: PolicyAction) -> bool:
    text = meta.annotations.get(_DRY_RUN)
    if text is None:
        return False
    field = Field(text, f"metadata.annotations[{_DRY_RUN}]")
    if text not in ("true", "false"):
        field.fail('must be "true" or "false"')
    if action in (PolicyAction.AUDIT, PolicyAction.CUSTOM):
        field.fail(f"is not possible with action {action}; remove it")
    return text == "true"


def _targets(spec: Field, meta: Meta) -> tuple[PolicyTarget, ...]:
    if spec["targetRef"].present and spec["targetRefs"].present:
        spec["targetRef"].fail("cannot be given together with targetRefs; keep targetRefs")
    items = spec["targetRefs"].items() or ([spec["targetRef"]] if spec["targetRef"].present else [])
    if items and spec["selector"].present:
        spec["selector"].fail("cannot be given together with targetRefs; keep one of the two")
    if len(items) > 16:
        spec["targetRefs"].fail("lists more than 16 targets; split the policy")
    out = []
    for item in items:
        item.only("group", "kind", "name", "namespace")
        group, kind = item["group"].text(""), item["kind"].text()
        if (group, kind) not in _TARGETS:
            item.fail(f"cannot target {shown(f'{group}/{kind}')}; use a Gateway, Service or ServiceEntry")
        if item["namespace"].text(meta.namespace) not in ("", meta.namespace):
            item["namespace"].fail("another namespace cannot be targeted; move the policy there")
        name = item["name"].text("")
        if not name:
            item["name"].fail("is missing; name the target")
        out.append(PolicyTarget("" if group == "core" else group, kind, name))
    return tuple(out)


def _rule(item: Field, action: PolicyAction) -> Rule:
    if not item.present:
        item.fail("is null; write {} to match everything")
    item.only("from", "to", "when")
    for part in ("from", "to"):
        if item.has(part) and not item[part].items():
            item[part].fail("is empty; remove it or add an entry")
    sources = []
    for entry in item["from"].items():
        entry.only("source")
        sources.append(_source(entry["source"], action))
    operations = []
    for entry in item["to"].items():
        entry.only("operation")
        operations.append(_operation(entry["operation"]))
    conditions = tuple(_condition(entry, action) for entry in item["when"].items())
    return Rule(tuple(sources), tuple(operations), conditions)


def _demand_some(field: Field, known: tuple[str, ...]) -> None:
    field.only(*known)
    if not field.present:
        field.fail("is null; give at least one field")
    if not any(field[name].items() for name in known):
        field.fail("has no field; give at least one (an empty one would match nothing or everything)")


def _source(field: Field, action: PolicyAction) -> Source:
    _demand_some(field, _SOURCE_FIELDS)
    if action is PolicyAction.CUSTOM:
        for name in _CUSTOM_REFUSED:
            if field[name].items():
                field[name].fail("cannot be used with action CUSTOM; use ipBlocks or a condition")
    accounts = field["serviceAccounts"].items() or field["notServiceAccounts"].items()
    for other in ("principals", "notPrincipals", "namespaces", "notNamespaces"):
        if accounts and field[other].items():
            field[other].fail("cannot be combined with serviceAccounts in one source; use two sources")
    return Source(
        principals=field["principals"].texts(),
        not_principals=field["notPrincipals"].texts(),
        request_principals=field["requestPrincipals"].texts(),
        not_request_principals=field["notRequestPrincipals"].texts(),
        namespaces=field["namespaces"].texts(),
        not_namespaces=field["notNamespaces"].texts(),
        service_accounts=values.check_service_accounts(field["serviceAccounts"]),
        not_service_accounts=values.check_service_accounts(field["notServiceAccounts"]),
        trust_domains=values.check_trust_domains(field["trustDomains"]),
        not_trust_domains=values.check_trust_domains(field["notTrustDomains"]),
        ip_blocks=values.check_blocks(field["ipBlocks"]),
        not_ip_blocks=values.check_blocks(field["notIpBlocks"]),
        remote_ip_blocks=values.check_blocks(field["remoteIpBlocks"]),
        not_remote_ip_blocks=values.check_blocks(field["notRemoteIpBlocks"]),
    )


def _operation(field: Field) -> Operation:
    _demand_some(field, _OPERATION_FIELDS)
    return Operation(
        hosts=field["hosts"].texts(),
        not_hosts=field["notHosts"].texts(),
        ports=values.check_ports(field["ports"]),
        not_ports=values.check_ports(field["notPorts"]),
        methods=field["methods"].texts(),
        not_methods=field["notMethods"].texts(),
        paths=values.check_paths(field["paths"]),
        not_paths=values.check_paths(field["notPaths"]),
    )


def _condition(field: Field, action: PolicyAction) -> Condition:
    field.only("key", "values", "notValues")
    key = values.check_condition_key(field["key"])
    refused = key.startswith("request.auth.") or key in values.CUSTOM_REFUSED_KEYS
    if action is PolicyAction.CUSTOM and refused:
        field["key"].fail(f"{key} cannot be used with action CUSTOM; remove it")
    if not field["values"].items() and not field["notValues"].items():
        field.fail("has neither values nor notValues; add one of them")
    return Condition(
        key=key,
        values=values.check_condition_values(key, field["values"]),
        not_values=values.check_condition_values(key, field["notValues"]),
    )


def parse_peer_authentication(meta: Meta, body: Field) -> PeerAuthentication:
    spec = body["spec"].only("selector", "mtls", "portLevelMtls")
    selector = parse_selector(spec["selector"])
    ports = spec["portLevelMtls"]
    modes = {}
    for text, field in ports.entries():
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
            ports.fail(f"{shown(text)} is not a port number from 1 to 65535")
        modes[int(text)] = _mode(field)
    if ports.present and not modes:
        ports.fail("is empty; remove it or name a port")
    if modes and not selector:
        ports.fail("needs a selector; ports belong to particular workloads")
    return PeerAuthentication(meta, selector, _mode(spec["mtls"]), modes)


def _mode(field: Field) -> MtlsMode:
    field.only("mode")
    return field["mode"].choice(tuple(MtlsMode), MtlsMode.UNSET)
