"""The objects with their indexes, and a view that remembers what a conversion looked at.

Every lookup through a `View` leaves a token. When an object changes, `World.replace` says which tokens it
touches, and exactly the conversions that left one of them are made again. So a conversion can never miss a
change of something it read, and it needs no list of its own dependencies. The token of an object is its key; its own
conversion depends on that without saying so.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Concatenate, ParamSpec, TypeVar

from istiodlite.objects import (
    AuthorizationPolicy,
    EndpointSlice,
    Gateway,
    GatewayClass,
    KubeObject,
    Namespace,
    Node,
    ObjectKey,
    PeerAuthentication,
    Service,
    ServiceEntry,
)
from istiodlite.registry.allocation import Allocated, allocate
from istiodlite.registry.config import NETWORK, REMOTE_CLASS, MeshConfig
from istiodlite.registry.dependencies import Parts, Token
from istiodlite.registry.visibility import Visibility

_T = TypeVar("_T")
_P = ParamSpec("_P")
_S = TypeVar("_S", Service, ServiceEntry, AuthorizationPolicy, PeerAuthentication)
_EVERYWHERE = "*"
# Stands for the one pair that every set of labels has, so that empty selectors are found like others.
_ANY_LABEL = ("", "")


def key_of(obj: KubeObject) -> ObjectKey:
    return ObjectKey(obj.kind, obj.meta.namespace, obj.meta.name)


class World:
    """All objects, by key, by kind and namespace, by hostname and by target pod."""

    def __init__(self, config: MeshConfig) -> None:
        self.config = config
        self.objects: dict[ObjectKey, KubeObject] = {}
        self._listed: dict[tuple[str, str], dict[ObjectKey, KubeObject]] = {}
        self._linked: dict[Token, set[ObjectKey]] = {}
        self.allocated: Allocated = {}
        self._allocation_is_old = False

    def replace(self, key: ObjectKey, new: KubeObject | None) -> set[Token]:
        """Puts, replaces or (None) removes an object; returns the tokens touched, none if it is equal."""
        old = self.objects.get(key)
        if old == new:
            return set()
        self._allocation_is_old |= key.kind == "ServiceEntry"
        touched: set[Token] = {
            key,
            ("list", key.kind, key.namespace),
            ("list", key.kind, _EVERYWHERE),
        }
        for token in self._links(old):
            self._linked[token].discard(key)
            if not self._linked[token]:
                del self._linked[token]
            touched.add(token)
        for token in self._links(new):
            self._linked.setdefault(token, set()).add(key)
            touched.add(token)
        for place in ((key.kind, key.namespace), (key.kind, _EVERYWHERE)):
            listed = self._listed.setdefault(place, {})
            if new is None:
                listed.pop(key, None)
            else:
                listed[key] = new
        if new is None:
            del self.objects[key]
        else:
            self.objects[key] = new
        return touched

    def allocate(self) -> set[Token]:
        """To be called after a batch of replacements, since entries depend on each other; the tokens touched."""
        if not self._allocation_is_old:
            return set()
        self._allocation_is_old = False
        before = self.allocated
        listed = self.listed("ServiceEntry", _EVERYWHERE)
        self.allocated = allocate(obj for obj in listed if isinstance(obj, ServiceEntry))
        keys = before.keys() | self.allocated.keys()
        return {("allocated", *key) for key in keys if before.get(key) != self.allocated.get(key)}

    def _links(self, obj: KubeObject | None) -> set[Token]:
        """Under what an object is found besides its name; a set, since hosts and targets may repeat."""
        return set(self._all_links(obj))

    def _all_links(self, obj: KubeObject | None) -> Iterator[Token]:
        if isinstance(obj, Service):
            yield ("host", self.config.service_hostname(obj.meta.namespace, obj.meta.name))
        elif isinstance(obj, ServiceEntry):
            for host in obj.hosts:
                yield ("host", host)
        elif isinstance(obj, EndpointSlice):
            for endpoint in obj.endpoints:
                if endpoint.target is not None and endpoint.target.kind == "Pod":
                    yield ObjectKey("Pod", endpoint.target.namespace, endpoint.target.name)
        elif isinstance(obj, Gateway) and obj.class_name == REMOTE_CLASS:
            yield ("network", obj.meta.labels.get(NETWORK, ""))
        if isinstance(obj, Service | ServiceEntry | AuthorizationPolicy | PeerAuthentication):
            # One pair is enough to be found by: whoever has not this one is not selected.
            pair = min(obj.selector.items(), default=_ANY_LABEL) if obj.selector else _ANY_LABEL
            yield ("selector", obj.meta.namespace, *pair)

    def listed(self, kind: str, namespace: str) -> Iterable[KubeObject]:
        return self._listed.get((kind, namespace), {}).values()

    def linked(self, token: Token) -> Iterable[ObjectKey]:
        return self._linked.get(token, ())


class View:
    """Read access for one conversion; `used` collects the tokens of everything read. Without `parts` nothing is shared."""

    def __init__(self, world: World, parts: Parts | None = None) -> None:
        self._world = world
        self._parts = parts
        self.config = world.config
        self.used: set[Token] = set()
        self._selected: dict[tuple[str, int], tuple[Mapping[str, str], list[KubeObject]]] = {}

    def shared(
        self, make: Callable[Concatenate["View", _P], _T], *arguments: _P.args, **none: _P.kwargs
    ) -> _T:
        """`make(view, *arguments)`, done once for all conversions that ask with equal arguments (hashable ones)."""
        if self._parts is None:
            return make(self, *arguments, **none)
        token: tuple[Hashable, ...] = (make.__name__, *arguments)
        self.used.add(token)

        def part() -> tuple[_T, set[Token]]:
            view = View(self._world, self._parts)
            return make(view, *arguments, **none), view.used

        found: _T = self._parts.get(token, part)
        return found

    def _get(self, type_: type[_T], kind: str, namespace: str, name: str) -> _T | None:
        key = ObjectKey(kind, namespace, name)
        self.used.add(key)
        found = self._world.objects.get(key)
        return found if isinstance(found, type_) else None

    def _list(self, type_: type[_T], kind: str, namespace: str) -> list[_T]:
        self.used.add(("list", kind, namespace))
        return [obj for obj in self._world.listed(kind, namespace) if isinstance(obj, type_)]

    def _linked(self, type_: type[_T], *token: str) -> list[_T]:
        self.used.add(token)
        found = (self._world.objects[key] for key in self._world.linked(token))
        return [obj for obj in found if isinstance(obj, type_)]

    def namespace_labels(self, name: str) -> Mapping[str, str]:
        found = self._get(Namespace, "Namespace", "", name)
        return found.meta.labels if found is not None else {}

    def entry_visibility(self, namespace: str) -> Visibility:
        """Who sees the ServiceEntries of a namespace."""
        rules = self.config.entry_visibility
        return Visibility.PUBLIC if rules is None else rules.of(self.namespace_labels(namespace))

    def namespace_annotations(self, name: str) -> Mapping[str, str]:
        found = self._get(Namespace, "Namespace", "", name)
        return found.meta.annotations if found is not None else {}

    def network(self) -> str:
        """The network of this cluster."""
        return self.namespace_labels(self.config.root_namespace).get(NETWORK, self.config.network)

    def node_labels(self, name: str) -> Mapping[str, str]:
        found = self._get(Node, "Node", "", name)
        return found.meta.labels if found is not None else {}

    def gateway(self, namespace: str, name: str) -> Gateway | None:
        return self._get(Gateway, "Gateway", namespace, name)

    def network_gateways(self, network: str) -> list[Gateway]:
        """What is said to lead to a network."""
        return self._linked(Gateway, "network", network)

    def gateway_class(self, name: str) -> GatewayClass | None:
        return self._get(GatewayClass, "GatewayClass", "", name)

    def service(self, namespace: str, name: str) -> Service | None:
        return self._get(Service, "Service", namespace, name)

    def services(self, namespace: str) -> list[Service]:
        return self._list(Service, "Service", namespace)

    def policies(self, namespace: str) -> list[AuthorizationPolicy]:
        return self._list(AuthorizationPolicy, "AuthorizationPolicy", namespace)

    def peer_authentications(self, namespace: str) -> list[PeerAuthentication]:
        return self._list(PeerAuthentication, "PeerAuthentication", namespace)

    def any_peer_authentication(self) -> bool:
        return bool(self.peer_authentications(_EVERYWHERE))

    def claimants(self, hostname: str) -> list[Service | ServiceEntry]:
        """Services and entries, of all namespaces, that define this hostname."""
        return [*self._linked(Service, "host", hostname), *self._linked(ServiceEntry, "host", hostname)]

    def selecting(self, type_: type[_S], namespace: str, labels: Mapping[str, str]) -> list[_S]:
        """Objects of the namespace whose selector takes these labels, those that have none (or an empty
        one) included. Not a look through all of them: namespaces with thousands of services exist."""
        return [one for one in self._selecting(namespace, labels) if isinstance(one, type_)]

    def _selecting(self, namespace: str, labels: Mapping[str, str]) -> list[KubeObject]:
        """Of all kinds. A conversion asks for several kinds with the same labels, so the answer is kept; the labels
        with it, or others could come to have their id."""
        asked = (namespace, id(labels))
        if asked not in self._selected:
            self._selected[asked] = (labels, list(self._select(namespace, labels)))
        return self._selected[asked][1]

    def _select(self, namespace: str, labels: Mapping[str, str]) -> Iterator[KubeObject]:
        for label, value in (_ANY_LABEL, *labels.items()):
            token = ("selector", namespace, label, value)
            self.used.add(token)
            for key in self._world.linked(token):
                obj = self._world.objects[key]
                selector = getattr(obj, "selector", None)
                if not selector or selects(selector, labels):
                    yield obj

    def allocated(self, entry: ServiceEntry, host: str) -> tuple[str, ...]:
        """The addresses that a host without any of its own was given."""
        key = (entry.meta.namespace, entry.meta.name)
        self.used.add(("allocated", *key))
        return self._world.allocated.get(key, {}).get(host, ())

    def own_slices(self, namespace: str, name: str) -> list[EndpointSlice]:
        """Those that list the pod whose conversion this is."""
        linked = self._world.linked(ObjectKey("Pod", namespace, name))
        found = (self._world.objects[key] for key in linked)
        return [one for one in found if isinstance(one, EndpointSlice)]


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """matchLabels: every pair of the selector is among the labels."""
    return selector.items() <= labels.items()
