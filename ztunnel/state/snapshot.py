"""Everything this node knows of the mesh at one moment, immutable, with the indexes decisions need.

Every index is derived from the resources alone, so the order and batching in which they arrive leave no
trace: a workload may come before its service, a policy after the workload that names it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Self

from immutables import Map

from ztunnel.state.changes import Changes, Key, Kind, Update
from ztunnel.state.indexes import Indexes
from ztunnel.state.maps import ANY_CONNECTION, Maps, block_key
from ztunnel.state.model import IPAddress, Service, Workload
from ztunnel.state.policy import Facts, Need, Policy

__all__ = ["Changes", "Key", "Kind", "Snapshot", "Update"]


@dataclass(frozen=True, slots=True)
class Snapshot(Maps):
    """Build with `empty`, grow with `apply`. Look-ups give None, or nothing, for what is not known.

    `version` counts the batches that changed something; it takes no part in equality.
    """

    version: int = field(default=0, compare=False)

    @classmethod
    def empty(cls, node: str = "") -> Self:
        """A snapshot of nothing. `node`: whose pods `local_workload` finds."""
        return cls(node=node)

    def apply(self, update: Update) -> tuple["Snapshot", Changes]:
        """The snapshot after one batch, and what it changed, in time proportional to the batch.

        A batch that says nothing new gives back the same snapshot.
        """
        indexes = Indexes(self)
        indexes.apply(update)
        changes = Changes(frozenset(indexes.touched))
        if not changes:
            return self, changes
        return Snapshot(node=self.node, version=self.version + 1, **indexes.finish()), changes

    def workload(self, uid: str) -> Workload | None:
        return self.by_uid.get(uid)

    def service(self, key: str) -> Service | None:
        """By "namespace/hostname"."""
        return self.by_key.get(key)

    def policy(self, key: str) -> Policy | None:
        """By "namespace/name"."""
        return self.by_policy.get(key)

    def workloads(self) -> Iterable[Workload]:
        return self.by_uid.values()

    def services(self) -> Iterable[Service]:
        return self.by_key.values()

    def policies(self) -> Iterable[Policy]:
        return self.by_policy.values()

    def workload_at(self, network: str, ip: IPAddress) -> Workload | None:
        """Who has an address; of several, a pod behind HBONE comes before other claimants."""
        uids = self.at_address.get((network, ip))
        return self.by_uid[uids[0]] if uids else None

    def workload_named(self, namespace: str, hostname: str) -> Workload | None:
        """The workload that is addressed by a host name of its own."""
        uids = self.at_hostname.get(f"{namespace}/{hostname}")
        return self.by_uid[uids[0]] if uids else None

    def local_workload(self, namespace: str, service_account: str, name: str) -> Workload | None:
        """A pod of this node, as the CNI names it."""
        uids = self.on_this_node.get((namespace, service_account, name))
        return self.by_uid[uids[0]] if uids else None

    def service_at(self, network: str, ip: IPAddress, client_namespace: str) -> Service | None:
        """Which service a client of a namespace means by an address.

        An exact address beats a block. Among equals the client's own namespace comes first, then, for
        blocks, the longer prefix, then a canonical service, then the first key.
        """
        exact = self._best(self.vips.get((network, ip), ()), client_namespace)
        if exact is not None:
            return exact
        best: tuple[tuple[bool, int, bool], Service] | None = None
        for length in self.block_lengths.get((network, ip.version), _NO_LENGTHS):
            found = self._best(self.blocks.get(block_key(network, ip, length), ()), client_namespace)
            if found is not None:
                rank = (found.namespace == client_namespace, length, found.canonical)
                if best is None or rank > best[0]:
                    best = (rank, found)
        return best[1] if best is not None else None

    def service_named(self, hostname: str, client_namespace: str) -> Service | None:
        """Which service a client of a namespace means by a host name."""
        return self._best(self.hostnames.get(hostname, ()), client_namespace)

    def services_named(self, hostname: str) -> Iterable[Service]:
        """Every service with a host name, in the order of their keys."""
        return (self.by_key[key] for key in self.hostnames.get(hostname, ()))

    def endpoints(self, service_key: str) -> Iterable[Workload]:
        """All workloads that list the service, healthy or not, in no particular order."""
        return self.members.get(service_key, _NOBODY).values()

    def scoped_policies(self, namespace: str) -> tuple[Policy, ...]:
        """The policies whose scope is a namespace, by key; with "" those of the whole mesh."""
        return self.scoped.get(namespace, ())

    def has_allow(self, namespace: str) -> bool:
        """Whether a scope has an ALLOW policy that is enforced."""
        return namespace in self.allows

    def candidates(self, namespace: str, facts: Facts) -> tuple[Policy, ...]:
        """The enforced policies of a scope that can match a connection at all, by key.

        All others of the scope cannot match it: what they need is not among its facts.
        """
        keys = set(self.by_need.get((namespace, ANY_CONNECTION), ()))
        for need in Need.given_by(facts):
            keys.update(self.by_need.get((namespace, need), ()))
        return tuple(self.by_policy[key] for key in sorted(keys))

    def _best(self, keys: tuple[str, ...], client_namespace: str) -> Service | None:
        """`keys` are sorted, so that ties fall the same way whatever the order of arrival was."""
        best: Service | None = None
        for key in keys:
            service = self.by_key[key]
            if not service.visible_to(client_namespace):
                continue
            if service.namespace == client_namespace:
                return service
            if best is None or (service.canonical and not best.canonical):
                best = service
        return best


_NOBODY: Final[Map[str, Workload]] = Map()
_NO_LENGTHS: Final[Map[int, int]] = Map()
