"""What delta and state-of-the-world streams have in common: who the node is, nonces, ACK and NACK. Pure."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from istiodlite.api import discovery_pb2
from istiodlite.registry import ADDRESS_TYPE, Resource
from istiodlite.xds.store import Store

WILDCARD = "*"
# More responses than this without an ACK, and a type waits: changes then coalesce.
MAX_UNACKNOWLEDGED = 4

_RequestT = TypeVar("_RequestT", discovery_pb2.DeltaDiscoveryRequest, discovery_pb2.DiscoveryRequest)


class Answer(Protocol):
    """A response of either protocol; `encoded` are its resources, `count` their number."""

    @property
    def type_url(self) -> str: ...
    @property
    def sequence(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def encoded(self) -> bytes: ...
    def serialize(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Nack:
    """A client's refusal; `names` are those of the refused response (at most 20)."""

    type_url: str
    nonce: str
    message: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Sent:
    sequence: int
    when: float
    names: tuple[str, ...]


@dataclass(slots=True)
class Subscription:
    """What one stream has of one type."""

    wildcard: bool = False
    asked: set[str] = field(default_factory=set)
    sequence: int = 0
    # On demand only: what the client holds (name -> version).
    held: dict[str, str] = field(default_factory=dict)
    unacknowledged: dict[str, _Sent] = field(default_factory=dict)
    # State of the world only: nonce and content of the last response.
    latest: str = ""
    version: str = ""
    acknowledged: int = 0
    acks: int = 0
    nacks: int = 0
    last_nack: str = ""


class Session(ABC, Generic[_RequestT]):
    """State of one stream. Times are seconds of any steady clock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.node_id = ""
        self.node_name = ""
        self.subscriptions: dict[str, Subscription] = {}
        self.nacks: list[Nack] = []
        self._answers = 0

    @abstractmethod
    def on_request(self, request: _RequestT, now: float = 0.0) -> Sequence[Answer]:
        """Takes one request; returns what has to be answered at once."""

    @abstractmethod
    def poll(self, now: float = 0.0) -> Sequence[Answer]:
        """What has to be said because the store changed or an ACK made room."""

    @property
    def behind(self) -> bool:
        """The store changed since some type was last looked at."""
        return any(one.sequence != self._store.sequence for one in self.subscriptions.values())

    def _note(self, request: _RequestT) -> None:
        """Who the node is, from the first request; and whether this one acknowledges a response."""
        if request.HasField("node") and not self.node_id:
            self.node_id = request.node.id
            metadata = request.node.metadata.fields
            self.node_name = metadata["NODE_NAME"].string_value if "NODE_NAME" in metadata else ""
        if request.response_nonce:
            self._acknowledge(request)

    def _acknowledge(self, request: _RequestT) -> None:
        """A nonce that is not outstanding is stale and says nothing."""
        subscription = self.subscriptions.get(request.type_url)
        if subscription is None:
            return
        sent = subscription.unacknowledged.pop(request.response_nonce, None)
        if sent is None:
            return
        if request.HasField("error_detail"):
            message = request.error_detail.message or f"code {request.error_detail.code}"
            subscription.nacks += 1
            subscription.last_nack = message
            self.nacks.append(Nack(request.type_url, request.response_nonce, message, sent.names[:20]))
        else:
            subscription.acks += 1
            subscription.acknowledged = max(subscription.acknowledged, sent.sequence)

    def _own_node(self, type_url: str) -> list[Resource]:
        if type_url != ADDRESS_TYPE or not self.node_name:
            return []
        return self._store.on_node(type_url, self.node_name)

    def _nonce(self, subscription: Subscription, names: tuple[str, ...], now: float) -> str:
        """A new one, noted as outstanding."""
        self._answers += 1
        nonce = f"{self._store.sequence}.{self._answers}"
        subscription.unacknowledged[nonce] = _Sent(self._store.sequence, now, names)
        return nonce

    def oldest_unacknowledged(self) -> float | None:
        """When the longest unanswered response was made; None if all were answered."""
        times = [sent.when for one in self.subscriptions.values() for sent in one.unacknowledged.values()]
        return min(times, default=None)
