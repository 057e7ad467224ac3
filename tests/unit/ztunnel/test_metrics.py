"""The metrics text: Istio's names, labels and counting."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from hbone.reasons import Reason
from tests.unit.ztunnel.doubles import service, workload
from ztunnel import metrics
from ztunnel.decide.model import Direction, TrafficEnds
from ztunnel.metrics import Metrics
from ztunnel.state.model import Locality, Port

CLIENT = workload("client", "10.0.0.1")
WEB = workload("web", "10.0.0.2")


def ends(**changes: object) -> TrafficEnds:
    fields: dict[str, object] = {
        "source": CLIENT,
        "source_identity": CLIENT.identity,
        "destination": WEB,
        "service": service("web", "10.1.0.1", Port(80, 8080)),
        "mutual_tls": True,
    }
    return TrafficEnds(**(fields | changes))  # type: ignore[arg-type]


def samples(shown: Metrics) -> dict[str, list[tuple[dict[str, str], float]]]:
    """What a scraper reads."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(shown.render("")[0].decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_the_series_of_one_connection_as_istio_writes_it() -> None:
    shown = Metrics("1.2.3")
    series = shown.traffic.series(ends(), Direction.OUTBOUND, Reason.OK)
    series.opened += 1
    series.received += 84
    labels = {
        "reporter": "source",
        "source_workload": "client",
        "source_canonical_service": "client",
        "source_canonical_revision": "v1",
        "source_workload_namespace": "shop",
        "source_principal": "spiffe://cluster.local/ns/shop/sa/client",
        "source_app": "client",
        "source_version": "v1",
        "source_cluster": "Kubernetes",
        "destination_service": "web.shop.svc.cluster.local",
        "destination_service_namespace": "shop",
        "destination_service_name": "web",
        "destination_workload": "web",
        "destination_canonical_service": "web",
        "destination_canonical_revision": "v1",
        "destination_workload_namespace": "shop",
        "destination_principal": "spiffe://cluster.local/ns/shop/sa/web",
        "destination_app": "web",
        "destination_version": "v1",
        "destination_cluster": "Kubernetes",
        "request_protocol": "tcp",
        "response_flags": "-",
        "connection_security_policy": "mutual_tls",
        "source_region": "unknown",
        "source_zone": "unknown",
        "destination_region": "unknown",
        "destination_zone": "unknown",
    }
    assert list(series.labels) == list(labels)
    found = samples(shown)
    assert found["istio_tcp_connections_opened_total"] == [(labels, 1)]
    assert found["istio_tcp_received_bytes_total"] == [(labels, 84)]
    assert found["istio_tcp_sent_bytes_total"] == [(labels, 0)]
    assert "istio_tcp_connections_closed_total" not in found
    assert found["istio_build"] == [({"component": "ztunnel", "tag": "1.2.3"}, 1)]
    assert "process_open_fds" in found
    assert "# TYPE istio_tcp_received_bytes_total counter" in shown.render("")[0].decode()


def test_localities_follow_as_a_group_where_one_end_has_any() -> None:
    shown = Metrics("")
    there = workload("far", "10.0.0.9", locality=Locality("west", "w-1"))
    series = shown.traffic.series(ends(destination=there), Direction.INBOUND, Reason.OK)
    assert list(series.labels.items())[-4:] == [
        ("source_region", "unknown"),
        ("source_zone", "unknown"),
        ("destination_region", "west"),
        ("destination_zone", "w-1"),
    ]


def test_openmetrics_on_request() -> None:
    shown = Metrics("1")
    shown.traffic.series(ends(), Direction.OUTBOUND, Reason.OK).opened += 1
    body, content_type = shown.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.decode().endswith("# EOF\n")
    assert "# TYPE istio_tcp_connections_opened counter" in body.decode()


def test_equal_ends_share_a_series_and_flags_part_them() -> None:
    traffic = Metrics("").traffic
    first = traffic.series(ends(), Direction.OUTBOUND, Reason.OK)
    assert traffic.series(ends(), Direction.OUTBOUND, Reason.OK) is first
    assert traffic.series(ends(), Direction.INBOUND, Reason.OK) is not first
    denied = traffic.series(ends(), Direction.OUTBOUND, Reason.POLICY_DENIED)
    assert denied.labels["response_flags"] == "DENY"
    assert traffic.series(ends(), Direction.OUTBOUND, Reason.DRAINING) is first


def test_labels_that_peers_invent_are_bounded(monkeypatch: object) -> None:
    traffic = Metrics("").traffic
    limit, metrics.MAX_SERIES = metrics.MAX_SERIES, 50
    try:
        for number in range(500):
            invented = workload(f"w{number}", "10.0.0.3")
            traffic.series(ends(source=invented), Direction.INBOUND, Reason.OK).opened += 1
        families = {family.name: family for family in traffic.collect()}
        samples = families["istio_tcp_connections_opened"].samples
        assert len(samples) == 51
        overflow = next(s for s in samples if s.labels["source_workload"] == "overflow")
        assert overflow.value == 450
    finally:
        metrics.MAX_SERIES = limit


def test_refusals_are_counted_by_reason_and_side() -> None:
    shown = Metrics("")
    shown.traffic.refused(Reason.POLICY_DENIED, Direction.INBOUND)
    shown.traffic.refused(Reason.POLICY_DENIED, Direction.INBOUND)
    families = {f.name: f for f in text_string_to_metric_families(shown.render("")[0].decode())}
    (sample,) = families["ambient_refusals"].samples
    assert (sample.labels, sample.value) == ({"reason": "policy_denied", "reporter": "destination"}, 2)
