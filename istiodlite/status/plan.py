"""From the status an object has and the one it should have to the patch between them. Pure.

Conditions of other controllers stay as they are. A condition that stays true or false keeps its
lastTransitionTime, as Kubernetes' API conventions ask.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from istiodlite.registry import Condition

PLURALS: Mapping[str, tuple[str, str]] = {
    "Service": ("api/v1", "services"),
    "ServiceEntry": ("apis/networking.istio.io/v1", "serviceentries"),
    "WorkloadEntry": ("apis/networking.istio.io/v1", "workloadentries"),
    "AuthorizationPolicy": ("apis/security.istio.io/v1", "authorizationpolicies"),
}
"""Kinds whose status we write: where the API server has them. Pods are left out: the kubelet writes theirs."""
OWNED = frozenset(
    {"istio.io/WaypointBound", "istio.io/WaypointMissing", "istio.io/VisibilityApplied", "ZtunnelAccepted"}
)
"""Condition types that are ours to add, change and remove."""


@dataclass(frozen=True, slots=True)
class Present:
    """The status an object has. `place` is the API path of its group and version."""

    version: str
    generation: int
    place: str
    conditions: tuple[Mapping[str, Any], ...] = ()
    addresses: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """The status it should have. `addresses`: (value, host), None where the kind has none to give."""

    conditions: tuple[Condition, ...] = ()
    addresses: tuple[tuple[str, str], ...] | None = field(default=None)


def read_present(kind: str, body: Mapping[str, Any]) -> Present:
    """Of an object as the API server sends it (one whose metadata has been looked at)."""
    metadata, status = body["metadata"], body.get("status")
    status = status if isinstance(status, dict) else {}
    group = body.get("apiVersion")
    known = PLURALS[kind][0]
    generation = metadata.get("generation")
    return Present(
        version=str(metadata.get("resourceVersion") or ""),
        generation=generation if isinstance(generation, int) else 0,
        place=f"apis/{group}" if isinstance(group, str) and "/" in group else known,
        conditions=tuple(one for one in _list(status, "conditions") if isinstance(one, dict)),
        addresses=tuple(
            (str(one.get("value", "")), str(one.get("host", "")))
            for one in _list(status, "addresses")
            if isinstance(one, dict)
        ),
    )


def _list(status: Mapping[str, Any], name: str) -> list[Any]:
    value = status.get(name)
    return value if isinstance(value, list) else []


HEALTHY = "Healthy"
"""Of WorkloadEntries whose machines report to us: ours only while they do."""


def merged(present: Present, wanted: Wanted, now: str, owned: Set[str] = OWNED) -> dict[str, Any] | None:
    """A JSON merge patch (RFC 7396) of the status subresource; None if all is as it should be.

    It names the version it was made of, so that the API server refuses it (409) if others were faster. `now`:
    RFC 3339. `owned`: types of conditions that go where they are not wanted.
    """
    status: dict[str, Any] = {}
    conditions = list(_conditions(present, wanted.conditions, now, owned))
    if conditions != list(present.conditions):
        status["conditions"] = conditions
    if wanted.addresses is not None and set(wanted.addresses) != set(present.addresses):
        status["addresses"] = [{"value": value, "host": host} for value, host in wanted.addresses]
    if not status:
        return None
    return {"metadata": {"resourceVersion": present.version}, "status": status}


def _conditions(
    present: Present, wanted: Iterable[Condition], now: str, owned: Set[str]
) -> Iterable[Mapping[str, Any]]:
    missing = {one.type: one for one in wanted}
    for old in present.conditions:
        kind = str(old.get("type"))
        if kind not in owned:
            yield old
        elif (new := missing.pop(kind, None)) is not None:
            yield _condition(new, old, present.generation, now)
    for new in missing.values():
        yield _condition(new, {}, present.generation, now)


def _condition(new: Condition, old: Mapping[str, Any], generation: int, now: str) -> dict[str, Any]:
    status = str(new.status)
    since = old.get("lastTransitionTime") if old.get("status") == status else None
    made: dict[str, Any] = {
        "type": new.type,
        "status": status,
        "reason": new.reason,
        "message": new.message,
        "lastTransitionTime": since or now,
    }
    # Services have no generation, and then no observedGeneration either.
    return {**made, "observedGeneration": generation} if generation else made
