"""The delta discovery session, without I/O: responses in, updates and requests out.

Source: Envoy's incremental xDS as Istio speaks it to its node proxies. Two types are subscribed to,
addresses and authorizations, with a wildcard; with `on_demand` nothing but authorizations comes unasked.

What a session remembers outlives the stream it came over: the names and versions of what is held (so
that a reconnect brings only what changed, and the removals that were missed), and the names asked for
without an answer yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import DecodeError

from istiodlite.api.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    Node,
    Resource,
    Status,
)
from ztunnel.state.changes import Update
from ztunnel.state.convert import ConversionError, address_from_bytes, policy_from_bytes, unusable
from ztunnel.state.model import Workload

__all__ = ["ADDRESS_TYPE", "AUTHORIZATION_TYPE", "DeltaSession", "ProtocolError", "Received", "Rejected"]

ADDRESS_TYPE: Final = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION_TYPE: Final = "type.googleapis.com/istio.security.Authorization"
TYPES: Final = (ADDRESS_TYPE, AUTHORIZATION_TYPE)
WILDCARD: Final = "*"
_NAMESPACED: Final = re.compile(r"[^/]+/[^/]+")
PIECE: Final = 256 * 1024
"""bytes of a response that are parsed at once"""
MAX_NACK: Final = 4096
"""characters of a NACK's message; a push in which everything is bad must not be echoed whole"""


class ProtocolError(ValueError):
    """The control plane sent something that is not a discovery response: end the stream, reconnect."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A resource that was not applied. What was held under this name before stays."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Received:
    """What a response means: apply `update`, send `request`, then wake those who wait for `answered`.

    `request` is an ACK, or a NACK that names every rejected resource; the others of the batch are in
    `update` all the same. `answered` holds names asked for on demand, whether found or not.
    """

    type_url: str
    update: Update
    request: DeltaDiscoveryRequest
    answered: frozenset[str] = frozenset()
    rejected: tuple[Rejected, ...] = ()


@dataclass(slots=True)
class _Batch:
    """One response, sorted into what to apply and what to refuse."""

    update: Update
    rejected: list[Rejected] = field(default_factory=list)


class DeltaSession:
    """One agent's subscription, over as many streams as it takes."""

    def __init__(self, node: Node, *, on_demand: bool = False) -> None:
        self._node = node
        self._on_demand = on_demand
        self._retained: dict[str, dict[str, str]] = {type_url: {} for type_url in TYPES}
        self._unusable: set[str] = set()
        self._waiting: set[str] = set()
        self._pending = set(TYPES) - ({ADDRESS_TYPE} if on_demand else set())

    @property
    def ready(self) -> bool:
        """Whether every type that comes unasked has been received in full and without fault once."""
        return not self._pending

    @property
    def waiting(self) -> frozenset[str]:
        """Names asked for that were not answered yet."""
        return frozenset(self._waiting)

    def start(self) -> tuple[DeltaDiscoveryRequest, ...]:
        """The requests that open a new stream, to be sent in order."""
        addresses = DeltaDiscoveryRequest(
            node=self._node,
            type_url=ADDRESS_TYPE,
            initial_resource_versions=self._retained[ADDRESS_TYPE],
        )
        if self._on_demand:
            # Both at once is Istio's sign for a client that is known and wants nothing yet.
            addresses.resource_names_subscribe.append(WILDCARD)
            addresses.resource_names_unsubscribe.append(WILDCARD)
        authorizations = DeltaDiscoveryRequest(
            node=self._node,
            type_url=AUTHORIZATION_TYPE,
            initial_resource_versions=self._retained[AUTHORIZATION_TYPE],
        )
        requests = [addresses, authorizations]
        if self._waiting:
            requests.append(_subscribe(sorted(self._waiting)))
        return tuple(requests)

    def demand(self, name: str) -> DeltaDiscoveryRequest | None:
        """Ask for one name: `network/ip`, `namespace/hostname` or a uid.

        None when there is nothing to send: addresses come unasked, or the name is being waited for. Who
        waits, and for how long, is the caller's matter: any number may wait for one name.
        """
        if not self._on_demand or name in self._waiting:
            return None
        self._waiting.add(name)
        return _subscribe([name])

    def on_response(self, response: DeltaDiscoveryResponse | bytes) -> Received:
        """Take in one response. Raises ProtocolError for bytes that are none.

        A type never asked for is acknowledged and otherwise ignored.
        """
        message: _Message = _parsed(response) if isinstance(response, bytes) else response
        request = DeltaDiscoveryRequest(type_url=message.type_url, response_nonce=message.nonce)
        if message.type_url not in self._retained:
            return Received(message.type_url, Update(), request)
        read = _addresses if message.type_url == ADDRESS_TYPE else self._authorizations
        batch = read(message)
        self._retain(message, batch.rejected)
        if batch.rejected:
            request.error_detail.CopyFrom(Status(message=_nack(batch.rejected)))
        else:
            self._pending.discard(message.type_url)
        return Received(
            message.type_url, batch.update, request, self._answered(message), tuple(batch.rejected)
        )

    def _authorizations(self, message: _Message) -> _Batch:
        """A bad policy without a good predecessor becomes one that lets nothing in: absent, it would
        let everything in."""
        held = self._retained[AUTHORIZATION_TYPE].keys() - self._unusable - set(message.removed_resources)
        policies, rejected = [], []
        self._unusable.difference_update(message.removed_resources)
        for resource in message.resources:
            try:
                _check_type(resource, AUTHORIZATION_TYPE)
                policies.append(policy_from_bytes(resource.name, resource.resource.value))
                self._unusable.discard(resource.name)
            except ConversionError as error:
                rejected.append(Rejected(resource.name, error.reason))
                if resource.name not in held and _NAMESPACED.fullmatch(resource.name):
                    policies.append(unusable(resource.name, resource.resource.value, error.reason))
                    self._unusable.add(resource.name)
        update = Update(policies=tuple(policies), removed_policies=tuple(message.removed_resources))
        return _Batch(update, rejected)

    def _retain(self, message: _Message, rejected: list[Rejected]) -> None:
        retained = self._retained[message.type_url]
        bad = {each.name for each in rejected}
        for name in message.removed_resources:
            retained.pop(name, None)
        for resource in message.resources:
            # Without a version a rejected resource is sent again on reconnect; with its name listed, so
            # is its removal, which ends what was held in its stead.
            retained[resource.name] = "" if resource.name in bad else resource.version

    def _answered(self, message: _Message) -> frozenset[str]:
        """An address asked for comes under its resource's own name; the asked name is an alias then."""
        if message.type_url != ADDRESS_TYPE or not self._waiting:
            return frozenset()
        names = set(message.removed_resources)
        for resource in message.resources:
            names.add(resource.name)
            names.update(resource.aliases)
        answered = frozenset(names & self._waiting)
        self._waiting -= answered
        return answered


def _subscribe(names: Iterable[str]) -> DeltaDiscoveryRequest:
    return DeltaDiscoveryRequest(type_url=ADDRESS_TYPE, resource_names_subscribe=names)


@dataclass(slots=True)
class _Joined:
    """A response that was parsed piece by piece; reads like the message."""

    type_url: str = ""
    nonce: str = ""
    resources: list[Resource] = field(default_factory=list)
    removed_resources: list[str] = field(default_factory=list)


_Message = DeltaDiscoveryResponse | _Joined


def _parsed(data: bytes) -> _Message:
    try:
        if len(data) <= 2 * PIECE:
            return DeltaDiscoveryResponse.FromString(data)
        joined = _Joined()
        for piece in _pieces(data):
            part = DeltaDiscoveryResponse.FromString(piece)
            joined.type_url = part.type_url or joined.type_url
            joined.nonce = part.nonce or joined.nonce
            joined.resources.extend(part.resources)
            joined.removed_resources.extend(part.removed_resources)
        return joined
    except (DecodeError, IndexError) as error:
        raise ProtocolError("the control plane sent something that is not a discovery response") from error


def _pieces(data: bytes) -> Iterator[bytes]:
    """The encoding, cut between top-level fields into pieces of about PIECE bytes: each is a message, and all
    together they are the whole (protobuf encoding, "last one wins" and repeated fields).

    Parsing holds the interpreter, and a first push is as large as the mesh.
    """
    begin = at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        # Every field of this message is length-delimited; anything else is left to the parser's judgement.
        if tag & 7 != 2:
            break
        size, at = _varint(data, at)
        at += size
        if at - begin >= PIECE:
            yield data[begin:at]
            begin = at
    yield data[begin:]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise DecodeError("a number of more than 64 bits")


def _addresses(message: _Message) -> _Batch:
    workloads, services, rejected = [], [], []
    for resource in message.resources:
        try:
            _check_type(resource, ADDRESS_TYPE)
            found = address_from_bytes(resource.name, resource.resource.value)
        except ConversionError as error:
            rejected.append(Rejected(resource.name, error.reason))
            continue
        if isinstance(found, Workload):
            workloads.append(found)
        else:
            services.append(found)
    update = Update(
        workloads=tuple(workloads),
        services=tuple(services),
        removed_addresses=tuple(message.removed_resources),
    )
    return _Batch(update, rejected)


def _check_type(resource: Resource, type_url: str) -> None:
    if resource.resource.type_url != type_url:
        raise ConversionError(resource.name, f"has the type {resource.resource.type_url!r}")


def _nack(rejected: list[Rejected]) -> str:
    text = "; ".join(f"{each.name}: {each.reason}" for each in rejected)
    return text if len(text) <= MAX_NACK else f"{text[:MAX_NACK]}... ({len(rejected)} in all)"
