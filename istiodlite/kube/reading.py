"""From a body of the API server to an object: what every reader needs. Pure."""

import sys
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from istiodlite.kube.key import ObjectKey
from istiodlite.kube.kinds import WatchedKind

T = TypeVar("T")


class Garbled(ValueError):
    """The server's answer is not of the form that its API promises."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why an object cannot be used: the field (dotted path) and one line that says what to do."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """One object read. `object` None: removed, or (`error` given) present but not usable."""

    key: ObjectKey
    object: T | None
    error: Unusable | None = None


def version_of(body: Any) -> str:
    """metadata.resourceVersion of an object or a list. Raises Garbled."""
    metadata = body.get("metadata") if isinstance(body, dict) else None
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or not version:
        raise Garbled("an answer without metadata.resourceVersion")
    return version


def key_of(kind: WatchedKind, body: Any) -> ObjectKey:
    """Raises Garbled."""
    metadata = body.get("metadata") if isinstance(body, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    namespace = metadata.get("namespace") if isinstance(metadata, dict) and kind.namespaced else ""
    if not isinstance(name, str) or not name or not isinstance(namespace, str):
        raise Garbled(f"a {kind.kind} without name and namespace")
    if kind.namespaced and not namespace:
        raise Garbled(f"a {kind.kind} without namespace")
    return ObjectKey(kind.kind, sys.intern(namespace), name)
