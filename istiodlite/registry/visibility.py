"""Who sees a ServiceEntry: MeshConfig.serviceEntryVisibility. Pure.

The policies are about the namespace an entry is in; the first whose selectors all match counts, else the default.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from istiodlite.objects import LabelSelector, ObjectKey
from istiodlite.registry.resource import Condition

CONDITION = "istio.io/VisibilityApplied"


class Visibility(enum.StrEnum):
    """NONE: nothing comes of the entry. NAMESPACE: only workloads of its namespace see it."""

    NONE = "NONE"
    NAMESPACE = "NAMESPACE"
    PUBLIC = "PUBLIC"


@dataclass(frozen=True, slots=True)
class VisibilityPolicy:
    """Without selectors it counts for every namespace."""

    visibility: Visibility
    namespaces: tuple[LabelSelector, ...] = ()


@dataclass(frozen=True, slots=True)
class EntryVisibility:
    """MeshConfig.serviceEntryVisibility."""

    default: Visibility = Visibility.PUBLIC
    policies: tuple[VisibilityPolicy, ...] = ()

    def of(self, namespace_labels: Mapping[str, str]) -> Visibility:
        """Of the entries in a namespace with these labels."""
        for one in self.policies:
            if all(selector.matches(namespace_labels) for selector in one.namespaces):
                return one.visibility
        return self.default


_SAID = {
    Visibility.PUBLIC: ("Public", "seen by the whole mesh"),
    Visibility.NAMESPACE: (
        "Namespace",
        "seen by workloads of its own namespace only (serviceEntryVisibility)",
    ),
}


def condition(key: ObjectKey, rules: EntryVisibility | None, visibility: Visibility) -> Condition | None:
    """What the entry's status says; nothing where the mesh has no rules, or nothing comes of the entry."""
    if rules is None or visibility is Visibility.NONE:
        return None
    reason, message = _SAID[visibility]
    return Condition(key, CONDITION, True, reason, message)
