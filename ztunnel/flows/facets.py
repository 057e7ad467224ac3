"""What telemetry says of connections between the same two ends, worked out once for all of them.

Labels, counters and log texts depend only on the ends. Looking them up costs one dictionary access for each
connection; working them out would cost more than the decision.
"""

from __future__ import annotations

from hbone.connect import Baggage
from hbone.reasons import Reason
from ztunnel.accesslog import End
from ztunnel.decide.model import Direction, TrafficEnds
from ztunnel.metrics import Series, Traffic
from ztunnel.state.model import Workload

__all__ = ["Facet", "Facets"]

_LIMIT = 20_000


class Facet:
    """One pair of ends, seen from one side."""

    __slots__ = ("_log_ends", "_path", "_series", "_traffic", "direction", "ends", "opened")

    def __init__(self, traffic: Traffic, ends: TrafficEnds, direction: Direction, path: str = "") -> None:
        self._traffic, self.ends, self.direction, self._path = traffic, ends, direction, path
        self._series: dict[Reason, Series] = {}
        self._log_ends: dict[bool, tuple[End, End]] = {}
        self.opened = self.series(Reason.OK)

    def series(self, reason: Reason) -> Series:
        """The counters of connections that end for this reason; `opened` is that of ok."""
        series = self._series.get(reason)
        if series is None:
            series = self._series[reason] = self._traffic.series(
                self.ends, self.direction, reason, self._path
            )
        return series

    def log_ends(self, *, proved: bool) -> tuple[End, End]:
        """Source and destination for the access log; with `proved` the identities that TLS showed."""
        found = self._log_ends.get(proved)
        if found is None:
            found = self._log_ends[proved] = self._describe(proved=proved)
        return found

    def _describe(self, *, proved: bool) -> tuple[End, End]:
        ends = self.ends
        source_identity = str(ends.source_identity or "") if proved else ""
        destination_identity = str(ends.destination.identity) if proved and ends.destination else ""
        source = _end(ends.source, ends.source_baggage, source_identity)
        destination = _end(ends.destination, ends.destination_baggage, destination_identity)
        service = ends.service.hostname if ends.service is not None else ""
        return source, destination._replace(service=service)


def _end(workload: Workload | None, baggage: Baggage | None, identity: str) -> End:
    if workload is not None:
        return End(workload.name, workload.namespace, identity, workload.cluster_id)
    if baggage is not None:
        return End(baggage.workload_name, baggage.namespace, identity, baggage.cluster_id)
    return End(identity=identity)


class Facets:
    """Facets by ends, bounded."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._known: dict[tuple[object, ...], Facet] = {}

    def of(self, ends: TrafficEnds, direction: Direction, path: str = "") -> Facet:
        """The facet of these ends; `path` as in `Flow`."""
        # Hashing workloads by value would cost more than all else. Facets keep them alive, so that an id
        # cannot come to mean another object while it is a key. A baggage only counts for unknown workloads.
        key = (
            id(ends.source) if ends.source is not None else ends.source_baggage,
            id(ends.destination) if ends.destination is not None else ends.destination_baggage,
            id(ends.service),
            ends.source_identity,
            ends.mutual_tls,
            direction,
            path,
        )
        facet = self._known.get(key)
        if facet is None:
            if len(self._known) >= _LIMIT:
                self._known.clear()
            facet = self._known[key] = Facet(self._traffic, ends, direction, path)
        return facet
