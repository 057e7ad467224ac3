"""The registry: batches of object changes in, changed resources out. Only what is affected is made again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from istiodlite.objects import (
    AuthorizationPolicy,
    EndpointSlice,
    Gateway,
    KubeObject,
    ObjectKey,
    PeerAuthentication,
    Pod,
    Service,
    ServiceEntry,
    WorkloadEntry,
)
from istiodlite.registry import (
    authorization,
    networks,
    peer_authentication,
    services,
    unbound,
    visibility,
    workloads,
)
from istiodlite.registry.config import MeshConfig
from istiodlite.registry.dependencies import Dependencies, Parts, Token
from istiodlite.registry.resource import Condition, Resource
from istiodlite.registry.world import View, World

ResourceKey = tuple[str, str]
# Conversions are named by the object they start from; this one starts from all PeerAuthentications.
_STATIC_STRICT = ObjectKey("PeerAuthentication", "", "")


@dataclass(frozen=True, slots=True)
class Changes:
    """What one batch did to the resources. `removed` are (type URL, name)."""

    changed: tuple[Resource, ...] = ()
    removed: tuple[ResourceKey, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


@dataclass(frozen=True, slots=True)
class _Built:
    resources: tuple[Resource, ...]
    conditions: tuple[Condition, ...]
    used: tuple[Token, ...]


class Registry:
    """Holds the objects and the resources made of them. The result depends on the objects only, never on
    the order or the batches in which they came."""

    def __init__(self, config: MeshConfig) -> None:
        self.config = config
        self._world = World(config)
        self._built: dict[ObjectKey, _Built] = {}
        self._users = Dependencies()
        self._parts = Parts(self._users)
        self.resources: dict[ResourceKey, Resource] = {}
        self.rebuilt: tuple[ObjectKey, ...] = ()
        """What the last batch made again: the batch's own objects and those that depend on them."""
        self.apply({})

    @property
    def objects(self) -> Mapping[ObjectKey, KubeObject]:
        return self._world.objects

    def conditions(self) -> Iterable[Condition]:
        """Status conditions of the input objects, in order of their keys."""
        for key in sorted(self._built):
            yield from self._built[key].conditions

    def conditions_of(self, key: ObjectKey) -> tuple[Condition, ...]:
        """Status conditions of one object; none of one that is not there."""
        built = self._built.get(key)
        return built.conditions if built is not None else ()

    def addresses_of(self, key: ObjectKey) -> tuple[tuple[str, str], ...]:
        """Addresses (value, host) allocated to the hosts of a ServiceEntry, as its status.addresses has them."""
        allocated = self._world.allocated.get((key.namespace, key.name), {})
        return tuple((value, host) for host, values in allocated.items() for value in values)

    def apply(self, batch: Mapping[ObjectKey, KubeObject | None]) -> Changes:
        """Puts and (None) removes objects. Equal objects change nothing."""
        dirty: set[ObjectKey] = set()
        if _STATIC_STRICT not in self._built:
            dirty.add(_STATIC_STRICT)
        for key, obj in batch.items():
            touched = self._world.replace(key, obj)
            if touched:
                dirty.add(key)
            dirty.update(self._dependent(touched))
        dirty.update(self._dependent(self._world.allocate()))
        return self._rebuild(dirty)

    def _dependent(self, tokens: Iterable[Token]) -> Iterable[ObjectKey]:
        yield from self._parts.affected(tokens)
        yield from (token for token in tokens if isinstance(token, ObjectKey) and token in self._built)

    def _rebuild(self, dirty: Iterable[ObjectKey]) -> Changes:
        before: dict[ResourceKey, Resource] = {}
        after: dict[ResourceKey, Resource] = {}
        self.rebuilt = tuple(sorted(dirty))
        for key in self.rebuilt:
            old, new = self._built.get(key), self._build(key)
            for one in old.resources if old is not None else ():
                before[(one.type_url, one.name)] = one
            self._note(key, old, new)
            for one in new.resources if new is not None else ():
                after[(one.type_url, one.name)] = one
        removed = [name for name in before if name not in after]
        for name in removed:
            self.resources.pop(name, None)
        changed = [one for name, one in after.items() if self.resources.get(name) != one]
        self.resources.update(after)
        return Changes(tuple(changed), tuple(removed))

    def _note(self, key: ObjectKey, old: _Built | None, new: _Built | None) -> None:
        """Keeps who used what."""
        was, now = old.used if old is not None else (), new.used if new is not None else ()
        self._parts.drop(self._users.note(key, was, now))
        if new is None:
            self._built.pop(key, None)
        else:
            self._built[key] = new

    def _build(self, key: ObjectKey) -> _Built | None:
        view = View(self._world, self._parts)
        if key == _STATIC_STRICT:
            fixed = peer_authentication.static_strict(view)
            return _Built((fixed,) if fixed is not None else (), (), self._users.held(view.used))
        obj = self._world.objects.get(key)
        if obj is None:
            return None
        resources, conditions = _convert(view, key, obj)
        return _Built(
            tuple(one for one in resources if one is not None),
            tuple(one for one in conditions if one is not None),
            self._users.held(view.used),
        )


def _convert(
    view: View, key: ObjectKey, obj: KubeObject
) -> tuple[list[Resource | None], list[Condition | None]]:
    if isinstance(obj, Pod):
        resource, attachment = workloads.pod_workload(view, obj)
        return [resource], [attachment.condition(key)]
    if isinstance(obj, Service):
        resource, attachment = services.service(view, obj)
        return [resource], [attachment.condition(key)]
    if isinstance(obj, ServiceEntry):
        made = list(services.entry_services(view, obj))
        found = [resource for resource, _ in made]
        conditions = [attachment.condition(key) for _, attachment in made[:1]]
        conditions += [unbound.condition(key, obj, attachment) for _, attachment in made[:1]]
        seen = view.entry_visibility(key.namespace)
        conditions.append(visibility.condition(key, view.config.entry_visibility, seen))
        return [*found, *workloads.service_entry_workloads(view, obj)], conditions
    if isinstance(obj, WorkloadEntry):
        resource, attachment = workloads.workload_entry_workload(view, obj)
        return [resource], [attachment.condition(key)]
    if isinstance(obj, Gateway):
        return list(networks.gateway_workloads(view, obj)), []
    if isinstance(obj, EndpointSlice):
        return list(workloads.slice_workloads(view, obj)), []
    if isinstance(obj, AuthorizationPolicy):
        resource, condition = authorization.convert(view, obj)
        return [resource], [condition]
    if isinstance(obj, PeerAuthentication):
        return [peer_authentication.convert(view, obj)], []
    return [], []
