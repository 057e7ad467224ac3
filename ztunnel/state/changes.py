"""What comes into a snapshot in one batch, and what a batch touched."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ztunnel.state.model import Service, Workload
from ztunnel.state.policy import Policy

__all__ = ["Changes", "Key", "Kind", "Update"]


class Kind(enum.StrEnum):
    """A kind of fact that a decision can rest on, with what names it."""

    WORKLOAD = "workload"
    """uid"""
    SERVICE = "service"
    """namespace/hostname: the service itself"""
    ENDPOINTS = "endpoints"
    """namespace/hostname: the set of its endpoints, or one of them"""
    ADDRESS = "address"
    """network/ip: who is found at an address"""
    BLOCKS = "blocks"
    """network: services that own an address block there"""
    HOSTNAME = "hostname"
    """host name: which services bear it"""
    POLICY = "policy"
    """namespace/name"""
    POLICIES = "policies"
    """namespace: the policies of its scope; "" for those of the whole mesh"""


class Key(NamedTuple):
    """Names one fact. A verdict lists those it rests on, an update those it changed."""

    kind: Kind
    name: str


@dataclass(frozen=True, slots=True)
class Update:
    """One batch. Removals (by resource name) come before insertions; of equal names the last counts."""

    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    policies: tuple[Policy, ...] = ()
    removed_addresses: tuple[str, ...] = ()
    removed_policies: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(
            self.workloads
            or self.services
            or self.policies
            or self.removed_addresses
            or self.removed_policies
        )

    def parts(self, limit: int) -> "Iterator[Update]":
        """The same in several batches, for applying a huge one without a long stop.

        Addresses come in batches of at most `limit`. Policies stay together: what lies between two
        policies of one push might let in what neither the old nor the new ones do.
        """
        if self.policies or self.removed_policies:
            yield Update(policies=self.policies, removed_policies=self.removed_policies)
        for start in range(0, len(self.removed_addresses), limit):
            yield Update(removed_addresses=self.removed_addresses[start : start + limit])
        for start in range(0, len(self.services), limit):
            yield Update(services=self.services[start : start + limit])
        for start in range(0, len(self.workloads), limit):
            yield Update(workloads=self.workloads[start : start + limit])


@dataclass(frozen=True, slots=True)
class Changes:
    """The facts an update changed. False when it changed nothing."""

    keys: frozenset[Key] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.keys)

    def of(self, kind: Kind) -> frozenset[str]:
        """The names of one kind."""
        return frozenset(key.name for key in self.keys if key.kind is kind)

    @property
    def workloads(self) -> frozenset[str]:
        """Uids of workloads added, changed or removed."""
        return self.of(Kind.WORKLOAD)

    @property
    def services(self) -> frozenset[str]:
        """ "namespace/hostname" of services added, changed or removed."""
        return self.of(Kind.SERVICE)

    @property
    def policies(self) -> frozenset[str]:
        """ "namespace/name" of policies added, changed or removed."""
        return self.of(Kind.POLICY)

    @property
    def policy_namespaces(self) -> frozenset[str]:
        """Namespaces whose set of policies changed; "" stands for the whole mesh."""
        return self.of(Kind.POLICIES)
