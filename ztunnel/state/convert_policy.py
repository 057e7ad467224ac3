"""istio.security.Authorization to the compiled form of `ztunnel.state.policy`."""

from collections.abc import Iterable
from sys import intern
from typing import Final

from google.protobuf.message import DecodeError

from istiodlite.api import authorization_pb2
from ztunnel.state.fields import MAX_PORT, ConversionError, FieldError, block, enum_value
from ztunnel.state.model import IPNetwork
from ztunnel.state.policy import Action, Clause, Match, Policy, PolicyScope, Rule, StringMatcher

__all__ = ["policy", "policy_from_bytes", "unusable"]

_SCOPES: Final = {number: PolicyScope[name] for name, number in authorization_pb2.Scope.items()}
_ACTIONS: Final = {number: Action[name] for name, number in authorization_pb2.Action.items()}


def policy_from_bytes(name: str, data: bytes) -> Policy:
    """Read a serialized Authorization delivered under `name`; ConversionError names `name`."""
    message = authorization_pb2.Authorization()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ConversionError(name, "is not an Authorization message") from error
    found = policy(message)
    if found.key != name:
        raise ConversionError(name, f"contains {found.key!r}")
    return found


def policy(message: authorization_pb2.Authorization) -> Policy:
    """Convert one policy; raises ConversionError naming "namespace/name"."""
    key = f"{message.namespace}/{message.name}"
    try:
        if not message.name:
            raise FieldError("has no name")
        if message.scope == authorization_pb2.Scope.NAMESPACE and not message.namespace:
            raise FieldError("has the scope of a namespace, but no namespace")
        return Policy(
            namespace=intern(message.namespace),
            name=message.name,
            scope=enum_value(_SCOPES, message.scope, "scope"),
            action=enum_value(_ACTIONS, message.action, "action"),
            rules=tuple(
                Rule(tuple(Clause(tuple(map(_match, rules.matches))) for rules in group.rules))
                for group in message.groups
            ),
            dry_run=message.dry_run,
        )
    except FieldError as error:
        raise ConversionError(key, str(error)) from error


def unusable(name: str, data: bytes, reason: str) -> Policy:
    """A stand-in for a policy that cannot be read: whoever it may apply to lets nothing in.

    Applies to what the resource says of its scope, as far as that can be read, else to the namespace in
    its resource name.
    """
    namespace, _, short = name.rpartition("/")
    scope = PolicyScope.NAMESPACE
    message = authorization_pb2.Authorization()
    try:
        message.ParseFromString(data)
        scope = _SCOPES.get(message.scope, scope)
    except DecodeError:
        pass
    return Policy(namespace, short, scope, Action.DENY, unusable=reason)


def _match(message: authorization_pb2.Match) -> Match:
    return Match(
        namespaces=_strings(message.namespaces, "namespaces"),
        not_namespaces=_strings(message.not_namespaces, "not_namespaces"),
        principals=_strings(message.principals, "principals"),
        not_principals=_strings(message.not_principals, "not_principals"),
        source_ips=_blocks(message.source_ips),
        not_source_ips=_blocks(message.not_source_ips),
        destination_ips=_blocks(message.destination_ips),
        not_destination_ips=_blocks(message.not_destination_ips),
        destination_ports=_ports(message.destination_ports, "destination_ports"),
        not_destination_ports=_ports(message.not_destination_ports, "not_destination_ports"),
        service_accounts=_accounts(message.service_accounts),
        not_service_accounts=_accounts(message.not_service_accounts),
    )


def _strings(messages: Iterable[authorization_pb2.StringMatch], field: str) -> StringMatcher:
    exact: set[str] = set()
    prefixes: set[str] = set()
    suffixes: set[str] = set()
    presence = False
    for message in messages:
        match message.WhichOneof("match_type"):
            case "exact":
                exact.add(intern(message.exact))
            case "prefix":
                prefixes.add(message.prefix)
            case "suffix":
                suffixes.add(message.suffix)
            case "presence":
                presence = True
            case _:
                raise FieldError(f"{field} has a string match without a condition")
    if "" in exact | prefixes | suffixes:
        # "" is what a connection without identity has for a namespace: it must not be matched by mistake.
        raise FieldError(f"{field} has a string match with an empty text")
    if not (exact or prefixes or suffixes or presence):
        return _ANY_STRING
    return StringMatcher(frozenset(exact), tuple(sorted(prefixes)), tuple(sorted(suffixes)), presence)


_ANY_STRING: Final = StringMatcher()


def _blocks(messages: Iterable[authorization_pb2.Address]) -> tuple[IPNetwork, ...]:
    return tuple(block(message.address, message.length) for message in messages)


def _ports(values: Iterable[int], field: str) -> frozenset[int]:
    ports = frozenset(values)
    for value in ports:
        if not 0 < value <= MAX_PORT:
            raise FieldError(f"{field} has {value}, which is not a port")
    return ports


def _accounts(messages: Iterable[authorization_pb2.ServiceAccountMatch]) -> frozenset[tuple[str, str]]:
    for message in messages:
        if not message.serviceAccount:
            raise FieldError("a service account match has no service account")
    return frozenset((message.namespace, message.serviceAccount) for message in messages)
