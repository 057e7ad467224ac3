"""security.istio.io kinds: who may, and how strictly identity is demanded."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from istiodlite.objects.meta import Meta


class PolicyAction(enum.StrEnum):
    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"
    CUSTOM = "CUSTOM"


class MtlsMode(enum.StrEnum):
    UNSET = "UNSET"
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


@dataclass(frozen=True, slots=True)
class Source:
    """rules[].from[].source; each field is a list of alternatives, all given fields must match."""

    principals: tuple[str, ...] = ()
    not_principals: tuple[str, ...] = ()
    request_principals: tuple[str, ...] = ()
    not_request_principals: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    not_namespaces: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()
    not_service_accounts: tuple[str, ...] = ()
    trust_domains: tuple[str, ...] = ()
    not_trust_domains: tuple[str, ...] = ()
    ip_blocks: tuple[str, ...] = ()
    not_ip_blocks: tuple[str, ...] = ()
    remote_ip_blocks: tuple[str, ...] = ()
    not_remote_ip_blocks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """rules[].to[].operation."""

    hosts: tuple[str, ...] = ()
    not_hosts: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    not_ports: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    not_methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    not_paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """rules[].when[]."""

    key: str
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """Empty parts mean "any"."""

    sources: tuple[Source, ...] = ()
    operations: tuple[Operation, ...] = ()
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyTarget:
    group: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class AuthorizationPolicy:
    """`selector` is empty when there is none (or it has no labels)."""

    meta: Meta
    action: PolicyAction = PolicyAction.ALLOW
    selector: Mapping[str, str] = field(default_factory=dict)
    targets: tuple[PolicyTarget, ...] = ()
    rules: tuple[Rule, ...] = ()
    dry_run: bool = False
    kind: str = field(default="AuthorizationPolicy", init=False)


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    """`port_modes` counts pod ports."""

    meta: Meta
    selector: Mapping[str, str] = field(default_factory=dict)
    mode: MtlsMode = MtlsMode.UNSET
    port_modes: Mapping[int, MtlsMode] = field(default_factory=dict)
    kind: str = field(default="PeerAuthentication", init=False)
