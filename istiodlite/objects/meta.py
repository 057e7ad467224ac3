"""What every Kubernetes object has: a key and metadata."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from istiodlite.kube.key import ObjectKey

__all__ = ["Meta", "ObjectKey", "Other", "OwnerRef"]


@dataclass(frozen=True, slots=True)
class OwnerRef:
    kind: str
    name: str
    controller: bool = False


@dataclass(frozen=True, slots=True)
class Meta:
    """metadata; `created` is the RFC 3339 text (empty when absent), used only to order by age."""

    name: str
    namespace: str = ""
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    deleting: bool = False
    generate_name: str = ""
    owners: tuple[OwnerRef, ...] = ()

    @property
    def age_order(self) -> tuple[str, str, str]:
        """Sorts the oldest first; names break ties so that the order never depends on arrival."""
        return (self.created, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Other:
    """An object of a kind that is accepted but changes no answer here (Deployment, ConfigMap, routes)."""

    meta: Meta
    kind: str
