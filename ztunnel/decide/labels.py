"""The labels of Istio's TCP metrics, and the baggage that tells the other end the same.

Values come from the control plane where the workload is known, else from the other end's baggage, else
they are "unknown". The principals come from TLS alone.
"""

from collections.abc import Iterator
from typing import Final

from hbone.connect import Baggage
from hbone.reasons import Reason
from hbone.spiffe import SpiffeId
from ztunnel.decide.model import Direction, TrafficEnds
from ztunnel.state.model import Workload

__all__ = ["LOCALITY_LABELS", "TRAFFIC_LABELS", "baggage_of", "locality_labels", "traffic_labels"]

UNKNOWN: Final = "unknown"

TRAFFIC_LABELS: Final = (
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
)
"""In Istio's order; `traffic_labels` gives the values in the same order."""

LOCALITY_LABELS: Final = ("source_region", "source_zone", "destination_region", "destination_zone")
"""Follow the others, as a group, where either end is known; see `locality_labels`."""


def traffic_labels(ends: TrafficEnds, direction: Direction, reason: Reason = Reason.OK) -> tuple[str, ...]:
    """The values of TRAFFIC_LABELS for one connection, as it opens (`ok`) or as it ended."""
    source = _described(ends.source, ends.source_baggage)
    destination = _described(ends.destination, ends.destination_baggage)
    principal = ends.destination.identity if ends.destination is not None else None
    service = ends.service
    values = (
        "source" if direction is Direction.OUTBOUND else "destination",
        *_end_labels(source, ends.source_identity),
        service.hostname if service is not None else "",
        service.namespace if service is not None else "",
        service.name if service is not None else "",
        *_end_labels(destination, principal),
        "tcp",
        reason.response_flag,
        "mutual_tls" if ends.mutual_tls else UNKNOWN,
    )
    return tuple(value or UNKNOWN for value in values)


def locality_labels(ends: TrafficEnds) -> tuple[str, ...]:
    """The values of LOCALITY_LABELS; empty when neither end is known, as in Istio."""
    if not (ends.source or ends.source_baggage or ends.destination or ends.destination_baggage):
        return ()
    source = _described(ends.source, ends.source_baggage)
    destination = _described(ends.destination, ends.destination_baggage)
    values = (source.region, source.zone, destination.region, destination.zone)
    return tuple(value or UNKNOWN for value in values)


def baggage_of(workload: Workload) -> Baggage:
    """What a workload says of itself in the `baggage` header."""
    return Baggage(
        cluster_id=workload.cluster_id,
        namespace=workload.namespace,
        workload_type=workload.workload_type.value,
        workload_name=workload.workload_name,
        service_name=workload.canonical_name,
        revision=workload.canonical_revision,
        region=workload.locality.region,
        zone=workload.locality.zone,
    )


def _described(workload: Workload | None, baggage: Baggage | None) -> Baggage:
    if workload is not None:
        return baggage_of(workload)
    return baggage if baggage is not None else _NOTHING


_NOTHING: Final = Baggage()


def _end_labels(end: Baggage, principal: SpiffeId | None) -> Iterator[str]:
    yield end.workload_name
    yield end.service_name
    yield end.revision
    yield end.namespace
    yield str(principal) if principal is not None else ""
    yield end.service_name
    yield end.revision
    yield end.cluster_id
