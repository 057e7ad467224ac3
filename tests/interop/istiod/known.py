"""Where istiodlite answers otherwise than istiod, on purpose. Everything else has to be equal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """`start` is how a line of `answers.differences` begins."""

    start: str
    why: str


_ENTRY = "Kubernetes/networking.istio.io/"
_UNLABELLED = (
    "istiod takes every policy with a selector for one that selects a machine or endpoint without labels; "
    "the selector says otherwise"
)
_LISTS = ": workload: authorization_policies"

KNOWN: tuple[Known, ...] = (
    Known(f"{_ENTRY}ServiceEntry/gold-ops/behind/behind.gold.example.com{_LISTS}", _UNLABELLED),
    Known(f"{_ENTRY}ServiceEntry/gold-ops/shadow/192.0.2.93{_LISTS}", _UNLABELLED),
    Known(f"{_ENTRY}ServiceEntry/gold-ops/shadow/192.0.2.94{_LISTS}", _UNLABELLED),
    Known(f"{_ENTRY}ServiceEntry/gold-shop/allocated/192.0.2.70{_LISTS}", _UNLABELLED),
    Known(f"{_ENTRY}ServiceEntry/gold-shop/shadow/192.0.2.91{_LISTS}", _UNLABELLED),
    Known(f"{_ENTRY}ServiceEntry/gold-shop/twin/192.0.2.96{_LISTS}", _UNLABELLED),
    Known(f"{_ENTRY}ServiceEntry/gold-ops/dynamic/*.dynamic.gold.example.com{_LISTS}", _UNLABELLED),
    Known(f"{_ENTRY}ServiceEntry/gold-ops/dynamic/*.more.gold.example.com{_LISTS}", _UNLABELLED),
    Known(f"{_ENTRY}WorkloadEntry/gold-ops/unhealthy{_LISTS}", _UNLABELLED),
    Known(
        f"{_ENTRY}WorkloadEntry/gold-ops/unhealthy: workload: status",
        "istiod calls every machine healthy; ours heeds a health check that has not succeeded",
    ),
    Known(
        f"{_ENTRY}ServiceEntry/gold-shop/by-name-with-endpoints/192.0.2.61: workload: network",
        "istiod gives an endpoint without network that of the endpoint before it; ours the cluster's own",
    ),
    Known(
        f"Kubernetes//Pod/gold-strict/unset-disable{_LISTS}",
        "istiod heeds the port mode PERMISSIVE but not DISABLE where the mode above it is inherited",
    ),
    Known(
        "gold-ops/empty-selector: scope",
        "istiod attaches a policy with an empty selector to nothing; ours to its namespace, as documented",
    ),
    Known(
        "gold-ops/trust-domain: groups",
        "istiod ignores trustDomains and so allows more than was written; ours leaves the ALLOW rule out",
    ),
)


@dataclass(frozen=True)
class Explained:
    """Differences nobody has explained, and explanations that nothing needs any more."""

    unknown: list[str]
    missing: list[Known]


def explained(lines: Iterable[str]) -> Explained:
    lines = list(lines)
    unknown = [line for line in lines if not any(line.startswith(one.start) for one in KNOWN)]
    missing = [one for one in KNOWN if not any(line.startswith(one.start) for line in lines)]
    return Explained(unknown, missing)
