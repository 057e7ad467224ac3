"""The maintenance of a snapshot's indexes: one batch of resources into copies that share structure."""

from bisect import bisect_left
from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar

from immutables import Map, MapMutation

from ztunnel.state.changes import Key, Kind, Update
from ztunnel.state.maps import ANY_CONNECTION, Maps, block_key
from ztunnel.state.model import (
    NetworkAddress,
    NetworkMode,
    Service,
    TunnelProtocol,
    VirtualAddress,
    Workload,
)
from ztunnel.state.policy import Action, Policy, PolicyScope

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")
_Change = Callable[[tuple[str, ...], str], tuple[str, ...]]
"""a list of names, a name: the list with or without it"""


class Indexes:
    """Mutable copies of a snapshot's maps for the time of one batch."""

    def __init__(self, maps: Maps) -> None:
        self.touched: set[Key] = set()
        self._node = maps.node
        self._by_uid = maps.by_uid.mutate()
        self._by_key = maps.by_key.mutate()
        self._by_policy = maps.by_policy.mutate()
        self._at_address = maps.at_address.mutate()
        self._at_hostname = maps.at_hostname.mutate()
        self._on_this_node = maps.on_this_node.mutate()
        self._vips = maps.vips.mutate()
        self._blocks = maps.blocks.mutate()
        self._block_lengths = maps.block_lengths.mutate()
        self._hostnames = maps.hostnames.mutate()
        self._members = maps.members.mutate()
        self._scoped = maps.scoped.mutate()
        self._by_need = maps.by_need.mutate()
        self._allows = maps.allows.mutate()
        # A service with many endpoints, or a scope with many policies, in one batch: what holds them is
        # opened once and closed at the end.
        self._open_members: dict[str, MapMutation[str, Workload]] = {}
        self._open_scoped: dict[str, list[Policy]] = {}

    def apply(self, update: Update) -> None:
        for name in update.removed_addresses:
            self._replace_workload(name, None)
            self._replace_service(name, None)
        for name in update.removed_policies:
            self._replace_policy(name, None)
        for workload in update.workloads:
            self._replace_workload(workload.uid, workload)
        for service in update.services:
            self._replace_service(service.key, service)
        for policy in update.policies:
            self._replace_policy(policy.key, policy)

    def finish(self) -> dict[str, Any]:
        """The maps as fields of a new maps."""
        for service, members in self._open_members.items():
            _set(self._members, service, members.finish())
        for scope, policies in self._open_scoped.items():
            _set(self._scoped, scope, tuple(policies))
        return {
            "by_uid": self._by_uid.finish(),
            "by_key": self._by_key.finish(),
            "by_policy": self._by_policy.finish(),
            "at_address": self._at_address.finish(),
            "at_hostname": self._at_hostname.finish(),
            "on_this_node": self._on_this_node.finish(),
            "vips": self._vips.finish(),
            "blocks": self._blocks.finish(),
            "block_lengths": self._block_lengths.finish(),
            "hostnames": self._hostnames.finish(),
            "members": self._members.finish(),
            "scoped": self._scoped.finish(),
            "by_need": self._by_need.finish(),
            "allows": self._allows.finish(),
        }

    # Workloads

    def _replace_workload(self, uid: str, new: Workload | None) -> None:
        old = self._by_uid.get(uid)
        if old == new:
            return
        if old is not None:
            self._index_workload(old, _without)
            self._touch_workload(old)
        if new is not None:
            # In the map before the indexes: ranking looks workloads up.
            self._by_uid[uid] = new
            self._index_workload(new, self._with_ranked)
            self._touch_workload(new)
        else:
            del self._by_uid[uid]

    def _with_ranked(self, uids: tuple[str, ...], uid: str) -> tuple[str, ...]:
        return tuple(sorted({*uids, uid}, key=lambda each: (-_rank(self._by_uid[each]), each)))

    def _index_workload(self, workload: Workload, change: _Change) -> None:
        uid = workload.uid
        if workload.network_mode is not NetworkMode.HOST_NETWORK:
            for ip in workload.addresses:
                _update(self._at_address, (workload.network, ip), change, uid)
        if workload.hostname:
            _update(self._at_hostname, f"{workload.namespace}/{workload.hostname}", change, uid)
        if self._node and workload.node == self._node:
            key = (workload.namespace, workload.service_account, workload.name)
            _update(self._on_this_node, key, change, uid)
        for membership in workload.services:
            members = self._members_of(membership.service)
            if change is _without:
                members.pop(uid, None)
            else:
                members[uid] = workload

    def _members_of(self, service: str) -> MapMutation[str, Workload]:
        members = self._open_members.get(service)
        if members is None:
            members = self._members.get(service, _NO_MEMBERS).mutate()
            self._open_members[service] = members
        return members

    def _touch_workload(self, workload: Workload) -> None:
        self.touched.add(Key(Kind.WORKLOAD, workload.uid))
        for ip in workload.addresses:
            self.touched.add(Key(Kind.ADDRESS, str(NetworkAddress(workload.network, ip))))
        for membership in workload.services:
            self.touched.add(Key(Kind.ENDPOINTS, membership.service))
        if workload.hostname:
            self.touched.add(Key(Kind.HOSTNAME, workload.hostname))

    # Services

    def _replace_service(self, key: str, new: Service | None) -> None:
        old = self._by_key.get(key)
        if old == new:
            return
        if old is not None:
            self._index_service(old, _without)
            self._touch_service(old)
        if new is not None:
            self._by_key[key] = new
            self._index_service(new, _with_sorted)
            self._touch_service(new)
        else:
            del self._by_key[key]

    def _index_service(self, service: Service, change: _Change) -> None:
        _update(self._hostnames, service.hostname, change, service.key)
        for address in service.addresses:
            if address.is_host:
                _update(self._vips, (address.network, address.ip), change, service.key)
            else:
                self._index_block(address, service.key, change)

    def _index_block(self, address: VirtualAddress, key: str, change: _Change) -> None:
        length = address.block.prefixlen
        where = block_key(address.network, address.ip, length)
        before = where in self._blocks
        _update(self._blocks, where, change, key)
        difference = (where in self._blocks) - before
        if difference:
            # How many blocks there are of each length, so that look-ups try only lengths in use.
            family = (address.network, address.ip.version)
            lengths = self._block_lengths.get(family, _NO_LENGTHS)
            count = lengths.get(length, 0) + difference
            _set(self._block_lengths, family, lengths.set(length, count) if count else lengths.delete(length))

    def _touch_service(self, service: Service) -> None:
        self.touched.add(Key(Kind.SERVICE, service.key))
        self.touched.add(Key(Kind.HOSTNAME, service.hostname))
        for address in service.addresses:
            if address.is_host:
                self.touched.add(Key(Kind.ADDRESS, str(NetworkAddress(address.network, address.ip))))
            else:
                self.touched.add(Key(Kind.BLOCKS, address.network))

    # Policies

    def _replace_policy(self, key: str, new: Policy | None) -> None:
        old = self._by_policy.get(key)
        if old == new:
            return
        self.touched.add(Key(Kind.POLICY, key))
        if old is not None:
            self._index_policy(old, _without)
        if new is not None:
            self._by_policy[key] = new
            self._index_policy(new, _with_sorted)
        else:
            del self._by_policy[key]

    def _index_policy(self, policy: Policy, change: _Change) -> None:
        if policy.scope is PolicyScope.WORKLOAD_SELECTOR:
            return
        scope = "" if policy.scope is PolicyScope.GLOBAL else policy.namespace
        self.touched.add(Key(Kind.POLICIES, scope))
        self._list_policy(scope, policy, present=change is not _without)
        if policy.dry_run and not policy.unusable:
            return
        needs = None if policy.unusable else policy.needs_any_of()
        for need in (ANY_CONNECTION,) if needs is None else needs:
            _update(self._by_need, (scope, need), change, policy.key)
        if policy.action is Action.ALLOW:
            count = self._allows.get(scope, 0) + (-1 if change is _without else 1)
            _set(self._allows, scope, count)

    def _list_policy(self, scope: str, policy: Policy, *, present: bool) -> None:
        """Keep the list of a scope in the order of keys; it is shared by every verdict it led to."""
        listed = self._open_scoped.get(scope)
        if listed is None:
            listed = self._open_scoped[scope] = list(self._scoped.get(scope, ()))
        index = bisect_left(listed, policy.key, key=_policy_key)
        if present:
            listed.insert(index, policy)
        else:
            del listed[index]


def _policy_key(policy: Policy) -> str:
    return policy.key


_NO_MEMBERS: Final[Map[str, Workload]] = Map()
_NO_LENGTHS: Final[Map[int, int]] = Map()


def _rank(workload: Workload) -> int:
    """Who is meant by an address that several claim (Istio's order)."""
    pod = "//Pod/" in workload.uid
    hbone = workload.tunnel_protocol is TunnelProtocol.HBONE
    return (2 if pod else 0) + (1 if hbone else 0)


def _with_sorted(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    index = bisect_left(names, name)
    if names[index : index + 1] == (name,):
        return names
    # Slices, not unpacking: this list can be long, and this is the fast way to copy one.
    return names[:index] + (name,) + names[index:]  # noqa: RUF005


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(each for each in names if each != name)


def _update(index: MapMutation[_K, tuple[str, ...]], key: _K, change: _Change, name: str) -> None:
    _set(index, key, change(index.get(key, ()), name))


def _set(index: MapMutation[_K, _V], key: _K, value: _V) -> None:
    """Empty entries do not stay: equal resources have to give equal indexes."""
    if value:
        index[key] = value
    else:
        index.pop(key, None)
