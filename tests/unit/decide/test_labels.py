"""Metric labels and baggage of the ends of a connection."""

from hbone.connect import Baggage, parse_baggage
from hbone.reasons import Reason
from hbone.spiffe import SpiffeId
from tests.unit.state.builders import service, workload
from ztunnel.decide.labels import (
    LOCALITY_LABELS,
    TRAFFIC_LABELS,
    baggage_of,
    locality_labels,
    traffic_labels,
)
from ztunnel.decide.model import Direction, TrafficEnds
from ztunnel.state.model import Locality, WorkloadType

CLIENT = workload(
    "client-abc",
    account="client",
    workload_name="client",
    canonical_name="client-svc",
    canonical_revision="v1",
    cluster_id="c1",
    workload_type=WorkloadType.JOB,
    locality=Locality("eu", "eu-1"),
)
SERVER = workload("server-abc", account="server", workload_name="server", canonical_name="server-svc")


def labels(ends: TrafficEnds, direction: Direction, reason: Reason = Reason.OK) -> dict[str, str]:
    return dict(zip(TRAFFIC_LABELS, traffic_labels(ends, direction, reason), strict=True))


def test_every_label_has_its_value() -> None:
    ends = TrafficEnds(
        source=CLIENT,
        source_identity=CLIENT.identity,
        destination=SERVER,
        service=service("s"),
        mutual_tls=True,
    )
    assert labels(ends, Direction.OUTBOUND) == {
        "reporter": "source",
        "source_workload": "client",
        "source_canonical_service": "client-svc",
        "source_canonical_revision": "v1",
        "source_workload_namespace": "ns",
        "source_principal": "spiffe://cluster.local/ns/ns/sa/client",
        "source_app": "client-svc",
        "source_version": "v1",
        "source_cluster": "c1",
        "destination_service": "s.ns.svc",
        "destination_service_namespace": "ns",
        "destination_service_name": "s",
        "destination_workload": "server",
        "destination_canonical_service": "server-svc",
        "destination_canonical_revision": "unknown",
        "destination_workload_namespace": "ns",
        "destination_principal": "spiffe://cluster.local/ns/ns/sa/server",
        "destination_app": "server-svc",
        "destination_version": "unknown",
        "destination_cluster": "Kubernetes",
        "request_protocol": "tcp",
        "response_flags": "-",
        "connection_security_policy": "mutual_tls",
    }


def test_what_nobody_knows_is_unknown() -> None:
    found = labels(TrafficEnds(), Direction.INBOUND, Reason.POLICY_DENIED)
    known = {key: value for key, value in found.items() if value != "unknown"}
    assert known == {"reporter": "destination", "request_protocol": "tcp", "response_flags": "DENY"}


def test_baggage_speaks_where_the_workload_is_not_known() -> None:
    baggage = Baggage(workload_name="far", namespace="away", service_name="far-svc", cluster_id="c9")
    found = labels(TrafficEnds(source_baggage=baggage), Direction.INBOUND)
    assert (found["source_workload"], found["source_workload_namespace"]) == ("far", "away")
    assert (found["source_app"], found["source_cluster"]) == ("far-svc", "c9")
    found = labels(TrafficEnds(source=CLIENT, source_baggage=baggage), Direction.INBOUND)
    assert found["source_workload"] == "client"


def test_the_source_s_principal_is_what_tls_proved_and_nothing_else() -> None:
    assert labels(TrafficEnds(source=CLIENT), Direction.INBOUND)["source_principal"] == "unknown"
    other = SpiffeId("td", "a", "b")
    found = labels(TrafficEnds(source=CLIENT, source_identity=other), Direction.INBOUND)
    assert found["source_principal"] == "spiffe://td/ns/a/sa/b"


def test_localities_come_as_a_group_or_not_at_all() -> None:
    assert locality_labels(TrafficEnds()) == ()
    assert locality_labels(TrafficEnds(destination=SERVER)) == ("unknown",) * 4
    found = locality_labels(TrafficEnds(source=CLIENT, destination=SERVER))
    assert dict(zip(LOCALITY_LABELS, found, strict=True)) == {
        "source_region": "eu",
        "source_zone": "eu-1",
        "destination_region": "unknown",
        "destination_zone": "unknown",
    }


def test_a_workload_s_baggage_tells_the_other_end_the_same() -> None:
    assert str(baggage_of(CLIENT)) == (
        "k8s.cluster.name=c1,k8s.namespace.name=ns,k8s.job.name=client,"
        "service.name=client-svc,service.version=v1,cloud.region=eu,cloud.availability_zone=eu-1"
    )
    told = TrafficEnds(source_baggage=parse_baggage([str(baggage_of(CLIENT))]))
    known = TrafficEnds(source=CLIENT)
    assert traffic_labels(told, Direction.INBOUND) == traffic_labels(known, Direction.INBOUND)
