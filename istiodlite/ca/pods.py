"""The pods as the CA needs them: by name, and by (node, namespace, service account). Pure, immutable."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from immutables import Map

from istiodlite.objects import ObjectKey, Pod


@dataclass(frozen=True, slots=True)
class PodIndex:
    """A snapshot: readers in other threads keep theirs while a new one is made."""

    by_name: Map[tuple[str, str], Pod] = field(default_factory=Map)
    accounts: Map[tuple[str, str, str], int] = field(default_factory=Map)

    def apply(self, batch: Mapping[ObjectKey, Any]) -> Self:
        """With pods of the batch put or (None) removed; other kinds are passed over."""
        by_name, accounts = self.by_name, self.accounts
        for key, new in batch.items():
            if key.kind != "Pod":
                continue
            name = (key.namespace, key.name)
            old = by_name.get(name)
            for pod, step in ((old, -1), (new, 1)):
                place = _place(pod)
                if place is not None:
                    count = accounts.get(place, 0) + step
                    accounts = accounts.set(place, count) if count else accounts.delete(place)
            if isinstance(new, Pod):
                by_name = by_name.set(name, new)
            elif old is not None:
                by_name = by_name.delete(name)
        return type(self)(by_name, accounts)

    def get(self, namespace: str, name: str) -> Pod | None:
        return self.by_name.get((namespace, name))

    def runs_on(self, node: str, namespace: str, service_account: str) -> bool:
        """True if a pod of that account is on the node."""
        return (node, namespace, service_account) in self.accounts


def _place(pod: Any) -> tuple[str, str, str] | None:
    # A failed pod runs nothing; one that succeeded may still be finishing connections.
    if not isinstance(pod, Pod) or not pod.node or pod.phase == "Failed":
        return None
    return (pod.node, pod.meta.namespace, pod.service_account)
