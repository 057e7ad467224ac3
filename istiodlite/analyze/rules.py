"""What one rule of a policy can match at all. Pure reasoning about its texts; `None` always means "no objection"."""

import ipaddress
from collections.abc import Iterable, Iterator

from istiodlite.objects import Operation, Rule, Source
from istiodlite.registry.authorization import group_never_fires, needs_http

Why = tuple[str, str]
"""field inside the rule, why it can match nothing"""


def covers(pattern: str, text: str) -> bool:
    """The string matching of policies: `*`, `*x`, `x*` or exact."""
    if pattern == "*":
        return bool(text)
    if pattern.startswith("*"):
        return text.endswith(pattern[1:])
    if pattern.endswith("*"):
        return text.startswith(pattern[:-1])
    return pattern == text


def is_exact(text: str) -> bool:
    return not text.startswith("*") and not text.endswith("*")


def never_matches(rule: Rule) -> Why | None:
    """Why a rule can match no connection whatever, as an agent or a waypoint reads it."""
    for part in (_sources(rule.sources), _operations(rule.operations), _conditions(rule)):
        if part is not None:
            return part
    return None


def without_effect_at_l4(rule: Rule) -> bool:
    """The rule needs HTTP attributes in a way that leaves node agents nothing to match."""
    return needs_http(rule) and group_never_fires(rule)


def _sources(sources: tuple[Source, ...]) -> Why | None:
    whys = [_source(source) for source in sources]
    if not whys or None in whys:
        return None
    return ("from", "; ".join(dict.fromkeys(why for why in whys if why)))


def _source(source: Source) -> str | None:
    pairs = (
        ("principals", source.principals, source.not_principals),
        ("namespaces", source.namespaces, source.not_namespaces),
        ("serviceAccounts", source.service_accounts, source.not_service_accounts),
    )
    for name, wanted, refused in pairs:
        if wanted and all(any(covers(pattern, text) for pattern in refused) for text in wanted):
            return f"all of {name} are excluded by its negation"
    if source.ip_blocks and all(_inside(text, source.not_ip_blocks) for text in source.ip_blocks):
        return "all of ipBlocks are excluded by notIpBlocks"
    exact = [text for text in source.principals if is_exact(text)]
    if source.principals and len(exact) == len(source.principals):
        if all(malformed(text) for text in exact):
            return f'"{exact[0]}" is no principal; write TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT'
        places = {parts[2] for text in exact if len(parts := text.split("/")) == 5}
        if source.namespaces and not any(covers(one, place) for one in source.namespaces for place in places):
            return "principals and namespaces exclude each other"
    if "*" in source.not_principals and (source.principals or source.namespaces or source.service_accounts):
        return "it asks for an identity and for none at once"
    return None


def malformed(principal: str) -> bool:
    parts = principal.split("/")
    return not (len(parts) == 5 and parts[1] == "ns" and parts[3] == "sa" and all(parts))


def _inside(text: str, blocks: Iterable[str]) -> bool:
    inner = ipaddress.ip_network(text, strict=False)
    for block in blocks:
        outer = ipaddress.ip_network(block, strict=False)
        if inner.prefixlen >= outer.prefixlen and inner.network_address in outer:
            return True
    return False


def _operations(operations: tuple[Operation, ...]) -> Why | None:
    whys = [_operation(one) for one in operations]
    if not whys or None in whys:
        return None
    return ("to", "; ".join(dict.fromkeys(why for why in whys if why)))


def _operation(one: Operation) -> str | None:
    pairs = (
        ("ports", one.ports, one.not_ports),
        ("methods", one.methods, one.not_methods),
        ("hosts", one.hosts, one.not_hosts),
        ("paths", one.paths, one.not_paths),
    )
    for name, wanted, refused in pairs:
        if wanted and all(any(covers(pattern, text) for pattern in refused) for text in wanted):
            return f"all of {name} are excluded by its negation"
    return None


def _conditions(rule: Rule) -> Why | None:
    for index, one in enumerate(rule.conditions):
        if one.values and all(any(covers(no, text) for no in one.not_values) for text in one.values):
            return (f"when[{index}]", f"all values of {one.key} are excluded by notValues")
    wanted: dict[str, set[str]] = {}
    for index, one in enumerate(rule.conditions):
        if (
            one.values
            and one.key in ("destination.port", "source.namespace")
            and all(map(is_exact, one.values))
        ):
            both = wanted.setdefault(one.key, set(one.values))
            both &= set(one.values)
            if not both:
                return (f"when[{index}]", f"two conditions on {one.key} exclude each other")
    return None


def named_accounts(rule: Rule, namespace: str) -> Iterator[tuple[str, str, str]]:
    """(field, namespace, service account) of every exact identity a rule names."""
    for index, source in enumerate(rule.sources):
        for text in source.principals:
            if is_exact(text) and not malformed(text):
                _, _, place, _, account = text.split("/")
                yield f"from[{index}].source.principals", place, account
        for text in source.service_accounts:
            place, slash, account = text.rpartition("/")
            yield f"from[{index}].source.serviceAccounts", place if slash else namespace, account


def named_namespaces(rule: Rule) -> Iterator[tuple[str, str]]:
    """(field, namespace) of every exact namespace a rule names."""
    for index, source in enumerate(rule.sources):
        for text in source.namespaces:
            if is_exact(text):
                yield f"from[{index}].source.namespaces", text
