"""What agents counted, as far as the checks need it: connections that came without mTLS. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_METRIC = "istio_tcp_connections_opened_total"
_MUTUAL = "mutual_tls"


class BadMetrics(ValueError):
    """Not the text that Prometheus reads."""


@dataclass(frozen=True, slots=True)
class PlainFlow:
    """Connections that a destination's agent let in without mTLS. `source` is empty if it was no known workload."""

    source: str
    namespace: str
    workload: str
    connections: int


def plain_flows(texts: Iterable[str]) -> list[PlainFlow]:
    """Of the metrics pages of any number of agents. Raises BadMetrics."""
    counted: dict[tuple[str, str, str], float] = {}
    for text in texts:
        for key, value in _plain(text):
            counted[key] = counted.get(key, 0.0) + value
    return [PlainFlow(*key, int(value)) for key, value in sorted(counted.items()) if value >= 1]


def _plain(text: str) -> Iterator[tuple[tuple[str, str, str], float]]:
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = sample.labels
                # Connections in the kernel's own path stay on the node and count as the mesh's.
                if (
                    sample.name == _METRIC
                    and labels.get("reporter") == "destination"
                    and labels.get("connection_security_policy") != _MUTUAL
                    and labels.get("connection_path", "proxy") == "proxy"
                ):
                    yield _key(labels), sample.value
    except (ValueError, KeyError, IndexError) as error:
        raise BadMetrics(f"not a metrics page: {error}") from None


def _key(labels: dict[str, str]) -> tuple[str, str, str]:
    source, place = labels.get("source_workload", ""), labels.get("source_workload_namespace", "")
    known = f"{place}/{source}" if source not in ("", "unknown") else ""
    return known, labels.get("destination_workload_namespace", ""), labels.get("destination_workload", "")
