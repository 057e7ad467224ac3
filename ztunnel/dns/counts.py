"""What is counted of names. Istio's metrics, with the labels that its ztunnel gives them, and two of our own."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ztunnel.state.model import Workload

__all__ = ["BUCKETS", "DnsCounts", "labels_of"]

BUCKETS = (0.0005, 0.001, 0.01, 0.1, 1.0, 5.0)
_LABELS = ("request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision")
_MAX_SERIES = 20_000

Labels = tuple[str, ...]


def labels_of(kind: str, *, tcp: bool, source: Workload | None) -> Labels:
    """Values of the labels, in order: query type, udp or tcp, the pod's canonical service and revision."""
    service, revision = (source.canonical_name, source.canonical_revision) if source else ("", "")
    return kind, "tcp" if tcp else "udp", service or "unknown", revision or "unknown"


@dataclass(slots=True)
class _Times:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0


class DnsCounts(Collector):
    """Plain integers, read when they are scraped."""

    def __init__(self) -> None:
        self.requests: Counter[Labels] = Counter()
        self.upstream_requests: Counter[Labels] = Counter()
        self.upstream_failures: Counter[Labels] = Counter()
        self.answers: Counter[tuple[str, str]] = Counter()
        """by (mesh, upstream or agent; response code)"""
        self.dropped: Counter[str] = Counter()
        """by reason: what was not answered, or not as asked"""
        self._times: dict[Labels, _Times] = {}

    def request(self, labels: Labels) -> Labels:
        """Count a question; the labels to go on with: all "overflow" where there are too many already."""
        if labels not in self.requests and len(self.requests) >= _MAX_SERIES:
            labels = ("overflow",) * len(_LABELS)
        self.requests[labels] += 1
        return labels

    def took(self, labels: Labels, seconds: float) -> None:
        """How long a name server needed."""
        times = self._times.setdefault(labels, _Times())
        times.counts[bisect_left(BUCKETS, seconds)] += 1
        times.total += seconds

    def collect(self) -> Iterator[Metric]:
        """Families for the registry."""
        yield _counter("istio_dns_requests", "DNS requests", _LABELS, self.requests)
        yield _counter("istio_dns_upstream_requests", "Requests passed on", _LABELS, self.upstream_requests)
        yield _counter(
            "istio_dns_upstream_failures", "Requests without an answer", _LABELS, self.upstream_failures
        )
        yield self._histogram()
        yield _counter("ambient_dns_answers", "Answers given", ("answered_by", "rcode"), self.answers)
        reasons = Counter({(reason,): value for reason, value in self.dropped.items()})
        yield _counter("ambient_dns_dropped", "Not answered, or not as asked", ("reason",), reasons)

    def _histogram(self) -> Metric:
        family = HistogramMetricFamily(
            "istio_dns_upstream_request_duration_seconds", "Time until a name server answered", labels=_LABELS
        )
        for labels, times in list(self._times.items()):
            sums = [sum(times.counts[: index + 1]) for index in range(len(times.counts))]
            bounds = [*(str(bound) for bound in BUCKETS), "+Inf"]
            family.add_metric(labels, list(zip(bounds, sums, strict=True)), times.total)
        return family


def _counter(name: str, text: str, labels: tuple[str, ...], counts: Mapping[Any, int]) -> Metric:
    metric = Metric(name, text, "counter")
    for values, value in sorted(counts.items()):
        metric.add_sample(f"{name}_total", dict(zip(labels, values, strict=True)), value)
    return metric
