"""Kubernetes' label selectors with expressions."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Requirement:
    """One of matchExpressions: `operator` is In, NotIn, Exists or DoesNotExist; values count for the first two."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """NotIn also where the label is missing, as in Kubernetes."""
        if self.operator in ("Exists", "DoesNotExist"):
            return (self.key in labels) == (self.operator == "Exists")
        return (labels.get(self.key) in self.values) == (self.operator == "In")


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All labels and all requirements have to match; an empty one matches everything."""

    labels: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return self.labels.items() <= labels.items() and all(one.holds(labels) for one in self.requirements)
