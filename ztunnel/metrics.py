"""Prometheus metrics of the agent, with Istio's names and labels where Istio has them.

Traffic is counted in plain integers, one Series for each set of labels; the registry reads them when it is
scraped. `received` is what flowed from client to server and `sent` the other way, on both reporters: that is
how Istio counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from hbone.reasons import Reason
from ztunnel.decide.labels import LOCALITY_LABELS, TRAFFIC_LABELS, locality_labels, traffic_labels
from ztunnel.decide.model import Direction, TrafficEnds

__all__ = ["Family", "Metrics", "Series", "Traffic"]

# Labels come from the mesh's state, and for other networks from a peer's baggage: what a peer can invent has
# to be bounded. Beyond this, connections are counted under labels that say "overflow".
MAX_SERIES = 20_000

_REPORTERS = {Direction.OUTBOUND: "source", Direction.INBOUND: "destination"}


class Series:
    """The counters of one set of traffic labels."""

    __slots__ = ("closed", "failed", "labels", "opened", "received", "sent")

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        self.opened = self.closed = self.failed = self.received = self.sent = 0


_TRAFFIC: tuple[tuple[str, str, str], ...] = (
    ("istio_tcp_connections_opened", "opened", "Connections opened"),
    ("istio_tcp_connections_closed", "closed", "Connections closed"),
    ("istio_tcp_connections_failed", "failed", "Connections that ended with a response flag"),
    ("istio_tcp_received_bytes", "received", "Bytes from client to server"),
    ("istio_tcp_sent_bytes", "sent", "Bytes from server to client"),
)


class Traffic(Collector):
    """The istio_tcp_* counters, and refusals by reason.

    With `shows_path` each has one label more than Istio's: connection_path, `proxy` or what a flow's path is.
    """

    def __init__(self) -> None:
        self.shows_path = False
        self._series: dict[tuple[str, ...], Series] = {}
        self._refusals: Counter[tuple[str, str]] = Counter()

    def series(self, ends: TrafficEnds, direction: Direction, reason: Reason, path: str = "") -> Series:
        """The counters for connections between these ends that ended (or go on) with this reason's flag."""
        values = (*traffic_labels(ends, direction, reason), *locality_labels(ends))
        return self._labelled(values, (path or "proxy") if self.shows_path else "")

    def _labelled(self, values: tuple[str, ...], path: str = "") -> Series:
        series = self._series.get((path, *values))
        if series is None:
            if len(self._series) >= MAX_SERIES:
                values = (values[0], *("overflow" for _ in values[1:]))
            named = _named(values) | ({"connection_path": path} if path else {})
            series = self._series.setdefault((path, *values), Series(named))
        return series

    def refused(self, reason: Reason, direction: Direction) -> None:
        """Count one connection that did not end well."""
        self._refusals[reason.value, _REPORTERS[direction]] += 1

    def collect(self) -> Iterator[Metric]:
        """Families for the registry."""
        for name, attribute, text in _TRAFFIC:
            metric = Metric(name, text, "counter")
            for series in list(self._series.values()):
                value = getattr(series, attribute)
                # As Istio: a counter appears with its first event; the byte counters with the connection.
                if value or (attribute in ("received", "sent") and series.opened):
                    metric.add_sample(f"{name}_total", series.labels, value)
            yield metric
        refusals = Metric("ambient_refusals", "Connections refused or cut, by reason", "counter")
        for (reason, reporter), value in sorted(self._refusals.items()):
            refusals.add_sample("ambient_refusals_total", {"reason": reason, "reporter": reporter}, value)
        yield refusals


def _named(values: tuple[str, ...]) -> dict[str, str]:
    """Labels by name. The localities are there only when one of the ends' is known."""
    return dict(zip((*TRAFFIC_LABELS, *LOCALITY_LABELS), values, strict=False))


Sample: TypeAlias = tuple[dict[str, str], float]


class Family(Collector):
    """A metric whose samples are read from somewhere when it is scraped."""

    def __init__(self, name: str, kind: str, text: str, read: Callable[[], Iterable[Sample]]) -> None:
        """`kind` is counter or gauge; a counter's name comes without `_total`."""
        self._name, self._kind, self._text, self._read = name, kind, text, read

    def collect(self) -> Iterator[Metric]:
        """One family for the registry."""
        metric = Metric(self._name, self._text, self._kind)
        suffix = "_total" if self._kind == "counter" else ""
        for labels, value in self._read():
            metric.add_sample(self._name + suffix, labels, value)
        yield metric


class Metrics:
    """The registry, and how it is written."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.traffic = Traffic()
        self.registry.register(self.traffic)
        ProcessCollector(registry=self.registry)
        self.gauge("istio_build", "Istio component build info", lambda: [(_build(version), 1)])

    def gauge(self, name: str, text: str, read: Callable[[], Iterable[Sample]]) -> None:
        """Add a gauge."""
        self.registry.register(Family(name, "gauge", text, read))

    def counter(self, name: str, text: str, read: Callable[[], Iterable[Sample]]) -> None:
        """Add a counter; `name` without `_total`."""
        self.registry.register(Family(name, "counter", text, read))

    def value(self, kind: str, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a counter or gauge without labels."""
        self.registry.register(Family(name, kind, text, lambda: [({}, read())]))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the format the scraper accepts (OpenMetrics or text), and its content type."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type


def _build(version: str) -> dict[str, str]:
    return {"component": "ztunnel", "tag": version or "unknown"}
