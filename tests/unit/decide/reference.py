"""Authorization once more, slowly and from the wire messages, to hold the product's evaluator against.

Written from the semantics of istio.security.Authorization alone: nothing is compiled, indexed or shared
with the product.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar

from hbone.spiffe import SpiffeId
from istiodlite.api.authorization_pb2 import Action, Address, Authorization, Match, StringMatch

_T = TypeVar("_T")


@dataclass(frozen=True)
class Peer:
    identity: SpiffeId | None
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    port: int


def decide(policies: Iterable[Authorization], missing: bool, peer: Peer) -> str:
    """ "ok" or the slug of the refusal, for policies that all apply."""
    enforced = [policy for policy in policies if not policy.dry_run]
    denies = [policy for policy in enforced if policy.action == Action.DENY]
    allows = [policy for policy in enforced if policy.action == Action.ALLOW]
    if any(policy_matches(policy, peer) for policy in denies):
        return "policy_denied"
    if missing:
        return "policy_pending"
    if not allows or any(policy_matches(policy, peer) for policy in allows):
        return "ok"
    return "policy_no_match"


def policy_matches(policy: Authorization, peer: Peer) -> bool:
    for rule in policy.groups:
        every_clause = True
        for clause in rule.rules:
            if len(clause.matches) == 0:
                continue
            if not any(match_matches(match, peer) for match in clause.matches):
                every_clause = False
        if every_clause:
            return True
    return False


def match_matches(match: Match, peer: Peer) -> bool:
    if not match.ListFields():
        return False
    namespace = peer.identity.namespace if peer.identity else ""
    principal = peer.identity.principal if peer.identity else ""
    return (
        _field(match.namespaces, match.not_namespaces, lambda s: _string(s, namespace))
        and _field(
            match.principals,
            match.not_principals,
            lambda s: peer.identity is not None and _string(s, principal),
        )
        and _field(match.source_ips, match.not_source_ips, lambda a: _within(a, peer.source))
        and _field(match.destination_ips, match.not_destination_ips, lambda a: _within(a, peer.destination))
        and _field(match.destination_ports, match.not_destination_ports, lambda port: port == peer.port)
        and _field(
            match.service_accounts,
            match.not_service_accounts,
            lambda a: (
                peer.identity is not None
                and (a.namespace, a.serviceAccount)
                == (peer.identity.namespace, peer.identity.service_account)
            ),
        )
    )


def _field(positive: Iterable[_T], negative: Iterable[_T], holds: Callable[[_T], bool]) -> bool:
    values = list(positive)
    if values and not any(holds(value) for value in values):
        return False
    return not any(holds(value) for value in negative)


def _string(match: StringMatch, value: str) -> bool:
    kind = match.WhichOneof("match_type")
    if kind == "exact":
        return value == match.exact
    if kind == "prefix":
        return value[: len(match.prefix)] == match.prefix
    if kind == "suffix":
        return value[max(0, len(value) - len(match.suffix)) :] == match.suffix
    return len(value) > 0


def _within(address: Address, ip: IPv4Address | IPv6Address) -> bool:
    block = ip_address(address.address)
    if block.version != ip.version:
        return False
    bits = format(int(block), f"0{block.max_prefixlen}b")[: address.length]
    return format(int(ip), f"0{ip.max_prefixlen}b").startswith(bits)
