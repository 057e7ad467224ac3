"""The enrolment protocol and a pod's way through it."""

from dataclasses import replace

import pytest

from daemonset.local.enrolment import wanted
from daemonset.local.template import PodTemplate, make_template
from daemonset.local.zds import (
    PACKET_LIMIT,
    Added,
    PodIdentity,
    ProtocolError,
    Removed,
    Request,
    Session,
    SnapshotTaken,
)
from istiodlite.api import zds_pb2
from ztunnel.enrol.settings import MAX_PORTS, CaptureSettings
from ztunnel.enrol.steps import (
    LEAVE_SECONDS,
    OUT,
    RETRY_SECONDS,
    Enrolment,
    Step,
    added,
    advance,
    removed,
)
from ztunnel.enrol.zds import Add, decode

HELLO = zds_pb2.ZdsHello(version=zds_pb2.V1).SerializeToString()
ACK = zds_pb2.WorkloadResponse(ack=zds_pb2.Ack()).SerializeToString()
P, Q = (PodIdentity(uid, uid, "ns", "sa") for uid in ("p", "q"))


def nack(error: str) -> bytes:
    return zds_pb2.WorkloadResponse(ack=zds_pb2.Ack(error=error)).SerializeToString()


def kind(request: Request | None) -> str:
    assert request is not None
    message = zds_pb2.WorkloadRequest()
    message.ParseFromString(request.packet)
    return str(message.WhichOneof("payload"))


def test_nothing_is_sent_before_hello() -> None:
    assert Session().next_request({"p": P}) is None


def test_snapshot_then_changes_one_request_at_a_time() -> None:
    session = Session()
    assert session.receive(HELLO) is None
    add = session.next_request({"p": P, "q": Q})
    assert (kind(add), add and add.netns_of) == ("add", "p")
    assert session.next_request({"p": P, "q": Q}) is None  # one outstanding
    assert session.receive(ACK) == Added("p", "")
    assert kind(session.next_request({"p": P, "q": Q})) == "add"
    assert session.receive(nack("no")) == Added("q", "no")
    assert kind(session.next_request({"p": P, "q": Q})) == "snapshot_sent"
    assert not session.live
    assert session.receive(ACK) == SnapshotTaken("")
    assert session.live
    assert session.next_request({"p": P, "q": Q}) is None
    assert kind(session.next_request({"q": Q})) == "del"
    assert session.receive(ACK) == Removed("p", "")
    assert session.known == {"q"}


def test_session_concerns_a_pod_from_add_to_the_answer_to_del() -> None:
    session = Session()
    session.receive(HELLO)
    assert not session.concerns("p")
    session.next_request({"p": P})
    assert session.concerns("p")
    session.receive(ACK)
    session.next_request({})
    assert session.concerns("p")
    session.receive(ACK)
    assert not session.concerns("p")


def test_failed_add_is_repeated_when_asked_for() -> None:
    session = Session()
    session.receive(HELLO)
    session.next_request({"p": P})
    session.receive(nack("no"))
    assert kind(session.next_request({"p": P}, frozenset({"p"}))) == "add"


def test_add_carries_the_pods_identity() -> None:
    session = Session()
    session.receive(HELLO)
    request = session.next_request({"p": P})
    assert request is not None
    message = zds_pb2.WorkloadRequest()
    message.ParseFromString(request.packet)
    info = message.add.workload_info
    assert (message.add.uid, info.name, info.namespace, info.service_account) == ("p", "p", "ns", "sa")


def test_pod_that_is_to_be_captured_otherwise_is_added_again() -> None:
    session, other = Session(), replace(P, capture=CaptureSettings(frozenset({80})))
    session.receive(HELLO)
    session.next_request({"p": P})
    session.receive(ACK)
    assert kind(session.next_request({"p": P})) == "snapshot_sent"
    session.receive(ACK)
    assert session.next_request(session.departures({"p": other})) is None  # the agent that is being replaced
    again = session.next_request({"p": other})
    assert again is not None
    assert again.netns_of == "p"
    assert list(zds_pb2.WorkloadRequest.FromString(again.packet).add.capture.exclude_inbound_ports) == [80]
    session.receive(ACK)
    assert session.next_request({"p": other}) is None
    assert kind(session.next_request(session.departures({}))) == "del"


def test_longest_names_and_lists_fit_a_packet_and_arrive_as_they_were() -> None:
    ports = frozenset(range(65536 - MAX_PORTS, 65536))
    settings = CaptureSettings(ports, ports, ports, True, False)
    session = Session()
    session.receive(HELLO)
    request = session.next_request({"p": PodIdentity("u" * 36, "n" * 253, "s" * 63, "a" * 253, settings)})
    assert request is not None
    assert len(request.packet) <= PACKET_LIMIT
    told = decode(request.packet, [3])
    assert isinstance(told, Add)
    assert told.settings == settings


@pytest.mark.parametrize(
    "packets",
    [
        [b"\xff\xff"],
        [zds_pb2.ZdsHello().SerializeToString()],
        [HELLO, ACK],
        [b"x" * 2000],
    ],
    ids=["garbage", "no-version", "answer-without-question", "too-long"],
)
def test_broken_protocol_ends_the_conversation(packets: list[bytes]) -> None:
    session = Session()
    *before, last = packets
    for packet in before:
        session.receive(packet)
    with pytest.raises(ProtocolError):
        session.receive(last)


def test_answer_that_is_no_ack_is_refused() -> None:
    session = Session()
    session.receive(HELLO)
    session.next_request({"p": P})
    with pytest.raises(ProtocolError, match="not an Ack"):
        session.receive(zds_pb2.WorkloadResponse().SerializeToString())


# -- a pod's way -----------------------------------------------------------------------------------


def test_annotation_exists_only_between_ack_and_leaving() -> None:
    state = advance(OUT, True, 0)
    assert (state.step, state.told, state.annotation) == (Step.ADDING, True, "")
    state = added(state, "", 1)
    assert (state.step, state.annotation) == (Step.IN, "enabled")
    state = advance(state, False, 10)
    assert (state.step, state.told, state.annotation) == (Step.LEAVING, True, "")
    assert advance(state, False, 10 + LEAVE_SECONDS / 2) == state
    state = advance(state, False, 10 + LEAVE_SECONDS)
    assert (state.step, state.told) == (Step.REMOVING, False)
    assert removed(state) == OUT


def test_pod_that_is_wanted_again_while_leaving_stays() -> None:
    assert advance(Enrolment(Step.LEAVING, 5), True, 0).step is Step.IN


def test_failure_is_shown_as_pending_and_tried_again() -> None:
    state = added(Enrolment(Step.ADDING), "no capture", 0)
    assert (state.step, state.annotation, state.error) == (Step.FAILED, "pending", "no capture")
    assert advance(state, True, RETRY_SECONDS / 2) == state
    assert advance(state, True, RETRY_SECONDS).step is Step.ADDING


def test_pod_that_has_ended_leaves_without_waiting() -> None:
    assert advance(Enrolment(Step.IN), True, 0, gone=True).step is Step.REMOVING
    assert advance(OUT, True, 0, gone=True) == OUT


def test_late_ack_for_a_pod_that_is_leaving_changes_nothing() -> None:
    state = Enrolment(Step.REMOVING)
    assert added(state, "", 0) == state


def pod(labels: dict[str, str], annotations: dict[str, str] | None = None, **spec: object) -> PodTemplate:
    return make_template(
        "ns", "p", labels, annotations or {}, {"containers": [{"name": "c", "command": ["x"]}], **spec}
    )


MODE = "istio.io/dataplane-mode"


@pytest.mark.parametrize(
    ("template", "namespace", "expected"),
    [
        (pod({}), {}, False),
        (pod({}), {MODE: "ambient"}, True),
        (pod({MODE: "ambient"}), {}, True),
        (pod({MODE: "none"}), {MODE: "ambient"}, False),
        (pod({MODE: "ambient"}), {MODE: "none"}, True),
        (pod({}, hostNetwork=True), {MODE: "ambient"}, False),
        (pod({MODE: "ambient"}, hostNetwork=True), {}, False),
        (pod({}, {"sidecar.istio.io/status": "{}"}), {MODE: "ambient"}, False),
    ],
)
def test_who_is_enrolled(template: PodTemplate, namespace: dict[str, str], expected: bool) -> None:
    assert wanted(template, namespace) is expected
