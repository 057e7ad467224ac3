"""One state-of-the-world xDS stream, as a value machine: requests in, responses out. Pure.

A request lists all names that are wanted (none in the first one: everything), a response has all of them. So
what is gone is simply absent. As on delta streams every new subscription is answered, even with nothing, names may
be aliases, and a service brings its workloads. What a client refused is not sent again until it changes.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from istiodlite.api import discovery_pb2
from istiodlite.registry import ADDRESS_TYPE, Resource
from istiodlite.xds.stream import MAX_UNACKNOWLEDGED, WILDCARD, Session, Subscription


@dataclass(frozen=True, slots=True)
class FullResponse:
    """One DiscoveryResponse, its resources encoded already. `version` is a hash of what is in it."""

    type_url: str
    nonce: str
    sequence: int
    version: str
    count: int
    encoded: bytes

    def serialize(self) -> bytes:
        """The message's bytes: encodings of messages of one type concatenate to their merged message."""
        head = discovery_pb2.DiscoveryResponse(
            version_info=self.version, type_url=self.type_url, nonce=self.nonce
        )
        return head.SerializeToString() + self.encoded


class SotwSession(Session[discovery_pb2.DiscoveryRequest]):
    """State of one state-of-the-world stream."""

    def on_request(self, request: discovery_pb2.DiscoveryRequest, now: float = 0.0) -> list[FullResponse]:
        """Takes one request; returns what has to be answered at once (nothing for a plain ACK)."""
        self._note(request)
        names = set(request.resource_names)
        subscription = self.subscriptions.get(request.type_url)
        if subscription is None:
            subscription = self.subscriptions[request.type_url] = Subscription()
            subscription.wildcard = not names or WILDCARD in names
        elif request.response_nonce and request.response_nonce != subscription.latest:
            # Written before our last response arrived: the next one will have these names too.
            return []
        else:
            wildcard = WILDCARD in names or (subscription.wildcard and not names)
            if (wildcard, names - {WILDCARD}) == (subscription.wildcard, subscription.asked):
                return []
            subscription.wildcard = wildcard
        subscription.asked = names - {WILDCARD}
        return [self._respond(request.type_url, subscription, now)]

    def poll(self, now: float = 0.0) -> list[FullResponse]:
        """One response for each type of which something that was asked for changed."""
        out = []
        for type_url, subscription in self.subscriptions.items():
            if subscription.sequence == self._store.sequence:
                continue
            if len(subscription.unacknowledged) >= MAX_UNACKNOWLEDGED:
                continue
            if next(iter(self._store.changed_since(type_url, subscription.sequence)), None) is None:
                subscription.sequence = self._store.sequence
                continue
            wanted = self._wanted(type_url, subscription)
            if _version(wanted) == subscription.version:
                subscription.sequence = self._store.sequence
            else:
                out.append(self._respond(type_url, subscription, now, wanted))
        return out

    def _wanted(self, type_url: str, subscription: Subscription) -> list[Resource]:
        """In the order of their names."""
        if subscription.wildcard:
            return sorted(self._store.all(type_url), key=lambda one: one.name)
        found = {one.name: one for one in self._own_node(type_url)} if type_url == ADDRESS_TYPE else {}
        for name in subscription.asked:
            found.update((one.name, one) for one in self._store.resolve(type_url, name))
        return [found[name] for name in sorted(found)]

    def _respond(
        self, type_url: str, subscription: Subscription, now: float, wanted: list[Resource] | None = None
    ) -> FullResponse:
        resources = self._wanted(type_url, subscription) if wanted is None else wanted
        subscription.sequence = self._store.sequence
        subscription.version = _version(resources)
        names = tuple(one.name for one in resources[:20])
        subscription.latest = self._nonce(subscription, names, now)
        return FullResponse(
            type_url=type_url,
            nonce=subscription.latest,
            sequence=self._store.sequence,
            version=subscription.version,
            count=len(resources),
            encoded=b"".join(_encoded(one) for one in resources),
        )


def _version(resources: Iterable[Resource]) -> str:
    """The same for the same content, in every replica and after a restart."""
    digest = hashlib.blake2b(digest_size=8)
    for one in resources:
        digest.update(f"{one.name} {one.version}\n".encode())
    return digest.hexdigest()


def _encoded(one: Resource) -> bytes:
    response = discovery_pb2.DiscoveryResponse()
    response.resources.add(type_url=one.type_url, value=one.body)
    return response.SerializeToString()
