"""What happens to the connections an enrolled pod makes."""

from __future__ import annotations

import os
import socket

import pytest

from ebpf import netns
from ebpf.capture import Capture, EnrolledPod
from ebpf.marks import AGENT_MARK
from ebpf.variants import Variant
from tests.netns.capture import apps
from tests.netns.capture.apps import MPTCP, Answer, Dial
from tests.netns.capture.lab import App, Lab, both_variants, sh

pytestmark = [pytest.mark.root, both_variants]

VIPS = {4: ("10.96.0.10", 443), 6: ("fd00:96::10", 443)}
versions = pytest.mark.parametrize("version", [4, 6])


def other_pod(lab: Lab, version: int, port: int = 8080) -> tuple[str, int]:
    return lab.pods[1].own(version), port


def assert_captured(answer: Answer, lab: Lab, to: tuple[str, int]) -> None:
    version = 6 if ":" in to[0] else 4
    assert answer.tag == "outbound"
    assert answer.server_local == answer.client_peer == to
    assert answer.server_peer == answer.client_local
    assert answer.client_local[0] == lab.pods[0].own(version)


def untouched(capture: Capture, before: dict[str, int]) -> bool:
    """Whether nothing outbound was counted. (Inbound: in C, answers that a socket bound to lo did not take are
    repeated for a while, and counted as such.)"""
    after = capture.counters()
    return all(after[name] == before[name] for name in ("captured", "outbound", "hbone", "failed"))


@versions
@pytest.mark.parametrize("how", ["blocking", "nonblocking", "fastopen-sendto", "fastopen-connect"])
def test_connect_is_captured_whatever_the_call(lab: Lab, app: App, version: int, how: str) -> None:
    to = other_pod(lab, version)
    assert_captured(app.call(apps.exchange, Dial(to, how)), lab, to)


@versions
@pytest.mark.parametrize("how", ["uring", "uring-worker"])
def test_connect_by_io_uring_is_captured(lab: Lab, app: App, version: int, how: str) -> None:
    """By the calling thread, and by a thread of the kernel's."""
    if why := app.call(apps.io_uring_refusal):
        pytest.skip(f"the kernel refuses io_uring_setup: {why}")
    to = other_pod(lab, version)
    assert_captured(app.call(apps.exchange, Dial(to, how)), lab, to)


@versions
def test_address_without_a_route_or_backend_is_captured(lab: Lab, app: App, version: int) -> None:
    assert_captured(app.call(apps.exchange, Dial(VIPS[version])), lab, VIPS[version])


@versions
def test_mptcp_connection_is_captured(lab: Lab, app: App, version: int) -> None:
    to = other_pod(lab, version)
    assert_captured(app.call(apps.exchange, Dial(to, protocol=MPTCP)), lab, to)


def test_v4_mapped_connection_is_captured_as_v4(lab: Lab, app: App) -> None:
    to = other_pod(lab, 4)
    assert_captured(app.call(apps.exchange, Dial(to, mapped=True)), lab, to)


@versions
@pytest.mark.parametrize("port", [0, 20123])
def test_socket_bound_before_connect_is_captured(lab: Lab, app: App, version: int, port: int) -> None:
    to = other_pod(lab, version)
    answer = app.call(apps.exchange, Dial(to, source=(lab.pods[0].own(version), port)))
    assert_captured(answer, lab, to)
    assert port in (0, answer.client_local[1])


@versions
@pytest.mark.parametrize("device", ["eth0", "lo"])
def test_socket_bound_to_a_device_is_captured_or_leads_nowhere(
    lab: Lab, variant: Variant, app: App, version: int, device: str
) -> None:
    """C cannot unbind it: it gets no route (IPv4 looks for the destination on the link), or on `lo` no answer."""
    to = other_pod(lab, version)
    if variant is Variant.B:
        assert_captured(app.call(apps.exchange, Dial(to, device=device)), lab, to)
    else:
        refused = device == "eth0" and version == 6
        assert app.call(apps.outcome, Dial(to, device=device)) == ("ENETUNREACH" if refused else "timeout")


@versions
@pytest.mark.parametrize("mark", [0x1, 0x539, 0x1000, 0x4000])
def test_mark_of_the_applications_own_does_not_escape(lab: Lab, app: App, version: int, mark: int) -> None:
    to = other_pod(lab, version)
    assert_captured(app.call(apps.exchange, Dial(to, mark=mark)), lab, to)


@pytest.mark.parametrize(
    ("to", "source"),
    [
        ("127.0.0.1", None),
        ("127.9.9.9", None),
        ("::1", None),
        ("0.0.0.0", None),
        ("::", None),
        ("own4", None),
        ("own6", None),
        ("own4", "own4"),
        ("own6", "own6"),
        ("own4", "127.0.0.1"),
    ],
)
def test_connection_inside_the_pod_is_left_alone(
    lab: Lab, capture: Capture, app: App, to: str, source: str | None
) -> None:
    own = {"own4": lab.pods[0].v4, "own6": lab.pods[0].v6}
    bound = (own.get(source, source), 0) if source else None
    before = capture.counters()
    answer = app.call(apps.exchange, Dial((own.get(to, to), 8080), source=bound))
    assert answer.tag == f"app-{lab.pods[0].name}"
    assert untouched(capture, before)


def test_connection_between_two_own_addresses_is_left_alone(lab: Lab, capture: Capture, app: App) -> None:
    """Both when they were there at enrolment, and when one of them came later."""
    pod, (late4, late6) = lab.pods[0], ("10.77.0.99", "fd77::99")
    sh(f"ip -n {pod.name} addr add {late4}/32 dev eth0")
    sh(f"ip -n {pod.name} addr add {late6}/128 dev eth0 nodad")
    try:
        for late in (late4, late6):
            assert app.call(apps.exchange, Dial((late, 8080))).tag == f"app-{pod.name}"
        capture.enrol(pod.network())
        for own, late in ((pod.v4, late4), (pod.v6, late6)):
            for here, there in ((own, late), (late, own)):
                answer = app.call(apps.exchange, Dial((here, 8080), source=(there, 0)))
                assert answer.tag == f"app-{pod.name}"
    finally:
        sh(f"ip -n {pod.name} addr del {late4}/32 dev eth0; ip -n {pod.name} addr del {late6}/128 dev eth0")
        capture.enrol(pod.network())


def test_link_local_destination_is_left_alone(lab: Lab, capture: Capture, app: App) -> None:
    """It cannot be looped: its socket is bound to the link."""
    pod = lab.pods[0]
    sh(f"ip -n {pod.name} addr add fe80::77/64 dev eth0 nodad")
    sh(f"ip -n {lab.node} addr add fe80::78/64 dev v0 nodad")
    node = os.open(f"/run/netns/{lab.node}", os.O_RDONLY)
    try:
        with netns.inside(node):
            listener = socket.create_server(("::", 8081), family=socket.AF_INET6)
        with listener:
            lab.servers.serve(listener, "node")
        before = capture.counters()
        assert app.call(apps.exchange, Dial(("fe80::78", 8081), device="eth0")).tag == "node"
        assert untouched(capture, before)
    finally:
        lab.servers.forget("node")
        os.close(node)
        sh(f"ip -n {pod.name} addr del fe80::77/64 dev eth0; ip -n {lab.node} addr del fe80::78/64 dev v0")


@versions
def test_connected_udp_is_left_alone(lab: Lab, app: App, version: int) -> None:
    to = (lab.pods[1].own(version), 5353)
    assert app.call(apps.ask_udp, to) == ("udp", to, 0)


@versions
def test_pod_that_is_not_enrolled_is_left_alone(lab: Lab, neighbour: App, version: int) -> None:
    answer = neighbour.call(apps.exchange, Dial((lab.pods[2].own(version), 8080)))
    assert answer.tag == f"app-{lab.pods[2].name}"
    assert answer.server_peer[0] == lab.pods[1].own(version)


@versions
def test_agent_is_exempt_by_its_process_or_else_by_its_mark(
    lab: Lab, variant: Variant, capture: Capture, app: App, version: int
) -> None:
    """In C the mark is all there is: an application that may set marks (CAP_NET_RAW) can escape by it."""
    agent = lab.app(lab.pods[0], lab.agent_cgroup)
    to = other_pod(lab, version)
    assert agent.call(apps.exchange, Dial(to)).tag == "outbound"
    capture.exempt_agent(agent.pid)
    by_process = "outbound" if variant is Variant.C else f"app-{lab.pods[1].name}"
    assert agent.call(apps.exchange, Dial(to)).tag == by_process
    assert agent.call(apps.exchange, Dial(to, mark=capture.dial_mark)).tag == f"app-{lab.pods[1].name}"
    assert app.call(apps.exchange, Dial(to)).tag == "outbound"
    by_mark = f"app-{lab.pods[1].name}" if variant is Variant.C else "outbound"
    assert app.call(apps.exchange, Dial(to, mark=AGENT_MARK)).tag == by_mark


@versions
def test_socket_used_again_after_disconnecting_follows_its_new_destination(
    lab: Lab, app: App, version: int
) -> None:
    far, near = Dial(other_pod(lab, version)), Dial(("127.0.0.1" if version == 4 else "::1", 8080))
    peer, answer = app.call(apps.connect_twice, far, near)
    assert (peer, answer.tag) == (far.to, f"app-{lab.pods[0].name}")
    peer, answer = app.call(apps.connect_twice, near, far)
    assert peer == near.to
    assert_captured(answer, lab, far.to)


@versions
def test_socket_bound_to_a_device_gives_it_up_only_when_captured(
    lab: Lab, variant: Variant, app: App, version: int
) -> None:
    if variant is Variant.B:
        assert app.call(apps.device_after_connect, Dial(other_pod(lab, version), device="eth0")) == ""
    near = ("127.0.0.1" if version == 4 else "::1", 8080)
    assert app.call(apps.device_after_connect, Dial(near, device="lo")) == "lo"


def test_exempt_outbound_port_is_left_alone(lab: Lab, capture: Capture, app: App) -> None:
    network = lab.pods[0].network(exempt_outbound_ports=frozenset({8080}))
    capture.enrol(network)
    assert app.call(apps.exchange, Dial(other_pod(lab, 4))).tag == f"app-{lab.pods[1].name}"
    assert app.call(apps.exchange, Dial(other_pod(lab, 6))).tag == f"app-{lab.pods[1].name}"
    assert app.call(apps.exchange, Dial(VIPS[4])).tag == "outbound"
    _, answer = app.call(apps.connect_twice, Dial(VIPS[4]), Dial(other_pod(lab, 4)))
    assert answer.tag == f"app-{lab.pods[1].name}"
    capture.enrol(lab.pods[0].network())
    assert app.call(apps.exchange, Dial(other_pod(lab, 4))).tag == "outbound"


def test_many_connections_all_keep_their_destination_and_leak_nothing(lab: Lab, app: App) -> None:
    before = app.call(apps.open_descriptors)
    for version in (4, 6):
        assert app.call(apps.exchange_many, Dial(VIPS[version]), 500) == 500
    assert app.call(apps.open_descriptors) == before


def test_counters_count_what_was_captured(lab: Lab, variant: Variant, capture: Capture, app: App) -> None:
    before = capture.counters()
    app.call(apps.exchange, Dial(VIPS[4]))
    after = capture.counters()
    counted = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert counted == ({"captured": 1} if variant is Variant.B else {}) | {"outbound": 1}


def test_listeners_take_v4_and_v6(enrolled: EnrolledPod) -> None:
    for listener in (enrolled.outbound, enrolled.inbound, enrolled.hbone):
        assert listener.family == socket.AF_INET6
        assert not listener.getblocking()
