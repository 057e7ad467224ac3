"""One delta xDS stream, as a value machine: requests in, responses out. Pure.

Per type a subscription is either everything (wildcard) or names on demand. On demand, names may be resource
names or aliases (`network/ip`); the workloads of the agent's own node are always sent, and so are the
workloads of services it asked for. Every new subscription is answered, even with nothing, because agents
count the first answer as readiness. (xDS protocol, "Incremental xDS"; ztunnel's use of it.)
"""

from collections.abc import Iterable
from dataclasses import dataclass

from istiodlite.api import discovery_pb2
from istiodlite.registry import ADDRESS_TYPE, AUTHORIZATION_TYPE, Resource
from istiodlite.xds.store import Delta
from istiodlite.xds.stream import MAX_UNACKNOWLEDGED, WILDCARD, Nack, Session, Subscription

__all__ = ["MAX_UNACKNOWLEDGED", "DeltaSession", "Nack", "Response", "Subscription"]


@dataclass(frozen=True, slots=True)
class Response:
    """One DeltaDiscoveryResponse, its resources encoded already.

    `count` is the number of resources; `removed` are names.
    """

    type_url: str
    nonce: str
    sequence: int
    count: int
    encoded: bytes
    removed: tuple[str, ...]

    def serialize(self) -> bytes:
        """The message's bytes: encodings of messages of one type concatenate to their merged message."""
        head = discovery_pb2.DeltaDiscoveryResponse(
            system_version_info=str(self.sequence),
            type_url=self.type_url,
            nonce=self.nonce,
            removed_resources=self.removed,
        )
        return head.SerializeToString() + self.encoded


def _turn(response: Response) -> int:
    """An agent refuses what a policy it has never heard of may forbid."""
    if response.type_url == AUTHORIZATION_TYPE:
        return 0 if response.count else 2
    return 1


class DeltaSession(Session[discovery_pb2.DeltaDiscoveryRequest]):
    """State of one delta stream."""

    def on_request(self, request: discovery_pb2.DeltaDiscoveryRequest, now: float = 0.0) -> list[Response]:
        """Takes one request; returns what has to be answered at once (nothing for a plain ACK)."""
        self._note(request)
        subscription = self.subscriptions.get(request.type_url)
        if subscription is None:
            return [self._open(request, now)]
        answer = self._resubscribe(subscription, request, now)
        return [answer] if answer is not None else []

    def _open(self, request: discovery_pb2.DeltaDiscoveryRequest, now: float) -> Response:
        subscription = self.subscriptions[request.type_url] = Subscription(sequence=self._store.sequence)
        asked = set(request.resource_names_subscribe)
        dropped = set(request.resource_names_unsubscribe)
        # An empty first subscription is the old way to say wildcard.
        subscription.wildcard = (WILDCARD in asked or not asked) and WILDCARD not in dropped
        known = request.initial_resource_versions
        if subscription.wildcard:
            fresh, missing = self._store.compare(request.type_url, known)
        else:
            # What a client kept from an earlier stream it still wants to hear of.
            subscription.asked = (asked | set(known)) - dropped - {WILDCARD}
            wanted, missing = self._on_demand(request.type_url, subscription, subscription.asked)
            for one in self._own_node(request.type_url):
                wanted.setdefault(one.name, one)
            subscription.held = {name: known[name] for name in known if name in wanted}
            fresh = [one for one in wanted.values() if known.get(one.name) != one.version]
        return self._respond(request.type_url, subscription, fresh, missing, now)

    def _on_demand(
        self, type_url: str, subscription: Subscription, names: Iterable[str]
    ) -> tuple[dict[str, Resource], list[str]]:
        """(what these names stand for, names that stand for nothing)."""
        found: dict[str, Resource] = {}
        missing = []
        for name in sorted(names):
            resolved = self._store.resolve(type_url, name)
            if not resolved:
                missing.append(name)
            for one in resolved:
                found[one.name] = one
        return found, missing

    def _resubscribe(
        self, subscription: Subscription, request: discovery_pb2.DeltaDiscoveryRequest, now: float
    ) -> Response | None:
        asked, dropped = set(request.resource_names_subscribe), set(request.resource_names_unsubscribe)
        type_url = request.type_url
        if WILDCARD in dropped:
            subscription.wildcard = False
        subscription.asked -= dropped
        for name in dropped:
            subscription.held.pop(name, None)
        if not asked:
            return None
        if WILDCARD in asked and WILDCARD not in dropped:
            subscription.wildcard = True
            subscription.asked.clear()
            subscription.sequence = self._store.sequence
            return self._respond(type_url, subscription, list(self._store.all(type_url)), [], now)
        new = asked - dropped - {WILDCARD}
        if not subscription.wildcard:
            subscription.asked |= new
        found, missing = self._on_demand(type_url, subscription, new)
        return self._respond(type_url, subscription, list(found.values()), missing, now)

    def poll(self, now: float = 0.0) -> list[Response]:
        """What changed since the last poll, one response for each type that has something to say: policies
        before the workloads that list them, and policies that are gone after those that listed them.

        To be called when the store changed or an ACK made room, and only once the last responses were
        written out.
        """
        out = []
        for type_url, subscription in self.subscriptions.items():
            if subscription.sequence == self._store.sequence:
                continue
            if len(subscription.unacknowledged) >= MAX_UNACKNOWLEDGED:
                continue
            if subscription.wildcard:
                delta = self._store.delta(type_url, subscription.sequence)
                subscription.sequence = self._store.sequence
                if delta.count or delta.removed:
                    out.append(self._answer(type_url, subscription, delta, now))
                continue
            changed, removed = self._changes(type_url, subscription)
            subscription.sequence = self._store.sequence
            if changed or removed:
                out.append(self._respond(type_url, subscription, changed, removed, now))
        return sorted(out, key=_turn)

    def _changes(self, type_url: str, subscription: Subscription) -> tuple[list[Resource], list[str]]:
        """For subscriptions on demand: what of the changes they are to be told."""
        changed: list[Resource] = []
        removed: list[str] = []
        extra: dict[str, Resource] = {}
        for name in self._store.changed_since(type_url, subscription.sequence):
            one = self._store.get(type_url, name)
            if one is None:
                if name in subscription.held:
                    removed.append(name)
            elif self._wants(type_url, subscription, one):
                if subscription.held.get(name) != one.version:
                    changed.append(one)
                if name not in subscription.held:
                    # A service that came into being brings workloads that did not change themselves.
                    for member in self._store.resolve(type_url, name):
                        extra[member.name] = member
        for one in changed:
            extra.pop(one.name, None)
        changed.extend(one for one in extra.values() if subscription.held.get(one.name) != one.version)
        return changed, removed

    def _wants(self, type_url: str, subscription: Subscription, one: Resource) -> bool:
        asked = subscription.asked
        return (
            one.name in asked
            or one.name in subscription.held
            or any(alias in asked for alias in one.aliases)
            or (type_url == ADDRESS_TYPE and one.node == self.node_name != "")
            or any(service in asked or service in subscription.held for service in one.services)
        )

    def _respond(
        self,
        type_url: str,
        subscription: Subscription,
        changed: list[Resource],
        removed: list[str],
        now: float,
    ) -> Response:
        if not subscription.wildcard:
            for name in removed:
                subscription.held.pop(name, None)
            subscription.held.update((one.name, one.version) for one in changed)
        names = (*(one.name for one in changed[:20]), *removed[:20])
        encoded = b"".join([self._store.wire(one) for one in changed])
        return self._answer(type_url, subscription, Delta(len(changed), names, tuple(removed), encoded), now)

    def _answer(self, type_url: str, subscription: Subscription, delta: Delta, now: float) -> Response:
        return Response(
            type_url=type_url,
            nonce=self._nonce(subscription, delta.names, now),
            sequence=self._store.sequence,
            count=delta.count,
            encoded=delta.encoded,
            removed=delta.removed,
        )
