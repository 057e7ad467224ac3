"""What happens to the questions an enrolled pod asks of name servers."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from ebpf import compiler, netns
from ebpf.capture import Capture, EnrolledPod
from ebpf.datagram import MAX_PAYLOAD
from ebpf.dns import Question, open_upstream
from ebpf.marks import ASIDE_MARK
from ebpf.variants import Variant
from tests.netns.capture import apps
from tests.netns.capture.agent import Agent
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import App, Lab, Pod, both_variants, network_state, wait_for

pytestmark = [pytest.mark.root, both_variants]

RESOLVERS = {4: ("10.96.0.10", 53), 6: ("fd00:96::10", 53)}
versions = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def named(lab: Lab, capture: Capture) -> Iterator[EnrolledPod]:
    """The first pod with its questions captured, a stand-in for the agent's resolver, a name server elsewhere."""
    server = lab.app(lab.pods[1])
    for address in ("0.0.0.0", "::"):
        server.call(apps.serve_names, address, "resolver")
    pod = capture.enrol(lab.pods[0].network(dns=True))
    assert pod.dns
    lab.servers.serve_names(pod.dns, "agent")
    yield pod
    lab.servers.forget("agent")
    capture.withdraw(pod)


@pytest.fixture(scope="module")
def asker(lab: Lab, named: EnrolledPod) -> App:
    """A process in that pod."""
    return lab.app(lab.pods[0])


def real(lab: Lab, version: int) -> tuple[str, int]:
    """The name server that runs in the second pod."""
    return lab.pods[1].own(version), 53


def said(resolver: tuple[str, int]) -> str:
    return f"agent|{resolver[0]} {resolver[1]}"


@versions
def test_question_over_a_connected_socket_is_answered_as_whom_it_asked(asker: App, version: int) -> None:
    answer, peer, _ = asker.call(apps.ask_udp, RESOLVERS[version])
    assert (answer, peer) == (said(RESOLVERS[version]), RESOLVERS[version])


@versions
def test_question_over_an_unconnected_socket_is_answered_as_whom_it_asked(asker: App, version: int) -> None:
    assert asker.call(apps.ask_unconnected, RESOLVERS[version]) == (
        said(RESOLVERS[version]),
        RESOLVERS[version],
    )


def test_v4_mapped_question_is_captured_as_v4(asker: App) -> None:
    assert asker.call(apps.ask_unconnected, RESOLVERS[4], None, True) == (said(RESOLVERS[4]), RESOLVERS[4])


@versions
def test_question_to_a_name_server_that_exists_is_captured_too(lab: Lab, asker: App, version: int) -> None:
    to = real(lab, version)
    assert asker.call(apps.ask_udp, to)[:2] == (said(to), to)


@versions
def test_question_over_tcp_is_captured(lab: Lab, asker: App, version: int) -> None:
    answer = asker.call(apps.exchange, Dial(RESOLVERS[version]))
    assert (answer.tag, answer.server_local) == ("agent", RESOLVERS[version])
    assert answer.client_peer == RESOLVERS[version]
    assert answer.server_peer[0] == lab.pods[0].own(version)


@versions
def test_other_ports_are_left_alone(lab: Lab, asker: App, version: int) -> None:
    assert asker.call(apps.ask_udp, (lab.pods[1].own(version), 5353))[0] == "udp"


@versions
def test_other_pods_are_left_alone(lab: Lab, named: EnrolledPod, version: int) -> None:
    assert lab.app(lab.pods[2]).call(apps.ask_udp, real(lab, version))[0] == "resolver"


@versions
def test_pod_may_have_a_name_server_of_its_own(lab: Lab, named: EnrolledPod, version: int) -> None:
    """On port 53 of all addresses; for itself and for others; and it may ask another name server itself."""
    own = lab.app(lab.pods[0])
    own.call(apps.serve_names, "0.0.0.0" if version == 4 else "::", "own")
    for local in ("127.0.0.1" if version == 4 else "::1", lab.pods[0].own(version)):
        assert own.call(apps.ask_udp, (local, 53))[0] == "own"
    assert lab.app(lab.pods[2]).call(apps.ask_udp, (lab.pods[0].own(version), 53))[0] == "own"
    assert own.call(apps.ask_udp, RESOLVERS[version])[0] == said(RESOLVERS[version])
    lab.forget_app(own)
    own.close()


@versions
def test_socket_bound_to_the_pods_device_asks_past_the_agent(lab: Lab, asker: App, version: int) -> None:
    to = real(lab, version)
    assert asker.call(apps.ask_unconnected, to, "eth0") == ("resolver", to)


@versions
@pytest.mark.parametrize("is_agent", [True, False], ids=["exempt", "elsewhere"])
def test_agents_own_questions_are_left_alone(
    lab: Lab, capture: Capture, named: EnrolledPod, version: int, is_agent: bool
) -> None:
    if not is_agent:
        capture.exempt_agent(1)
    with open_upstream(named.network.netns_fd, version, socket.SOCK_DGRAM) as made:
        made.connect(real(lab, version))
        made.send(b"?")
        assert select.select([made], [], [], 30)[0]
        assert made.recv(100) == b"resolver"
    capture.exempt_agent(os.getpid())


@versions
def test_mark_of_the_agents_questions_is_worth_nothing_to_an_application(
    lab: Lab, variant: Variant, capture: Capture, named: EnrolledPod, asker: App, version: int
) -> None:
    """In C there is no hook that could take it away."""
    to = real(lab, version)
    agent = lab.app(lab.pods[0], lab.agent_cgroup)
    capture.exempt_agent(agent.pid)
    assert agent.call(apps.ask_udp, to, ASIDE_MARK)[0] == "resolver"
    escapes = "resolver" if variant is Variant.C else said(to)
    assert asker.call(apps.ask_udp, to, ASIDE_MARK)[0] == escapes
    capture.exempt_agent(os.getpid())
    agent.close()
    lab.forget_app(agent)


@versions
@pytest.mark.parametrize("size", [0, 1, 1471, 20001, MAX_PAYLOAD])
def test_answer_of_any_size_arrives_whole(lab: Lab, named: EnrolledPod, version: int, size: int) -> None:
    assert named.dns
    with netns.inside(named.network.netns_fd):
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        client = socket.socket(family, socket.SOCK_DGRAM)
    with client:
        client.bind((lab.pods[0].own(version), 0))
        client.connect(RESOLVERS[version])
        asked = ip_address(RESOLVERS[version][0])
        own = ip_address(lab.pods[0].own(version))
        question = Question(b"?", (own, client.getsockname()[1]), (asked, 53))
        data = os.urandom(size)
        assert named.dns.answer(question, data)
        assert select.select([client], [], [], 30)[0]
        assert client.recv(65536) == data


def test_answer_that_fits_no_datagram_is_refused(named: EnrolledPod) -> None:
    assert named.dns
    end = (ip_address("10.77.0.10"), 1)
    assert not named.dns.answer(Question(b"?", end, end), bytes(MAX_PAYLOAD + 1))
    assert not named.dns.answer(Question(b"?", end, (ip_address("::1"), 53)), b"x")


def test_capture_can_be_switched_off_and_on_for_a_running_pod(
    lab: Lab, capture: Capture, named: EnrolledPod, asker: App
) -> None:
    to = real(lab, 4)
    assert capture.enrol(replace(named.network, dns=False)).dns is None
    assert asker.call(apps.ask_unconnected, to)[0] == "resolver"
    assert capture.enrol(replace(named.network, exempt_outbound_ports=frozenset({53}))).dns is None
    assert asker.call(apps.ask_udp, to)[0] == "resolver"
    lab.servers.forget("agent")
    again = capture.enrol(named.network)
    assert again.dns
    assert again.slot == named.slot
    lab.servers.serve_names(again.dns, "agent")
    for ask in (apps.ask_udp, apps.ask_unconnected):
        assert asker.call(ask, to)[0] == said(to)


@pytest.fixture
def spare(lab: Lab) -> Pod:
    """A pod that nothing is done to."""
    return lab.pods[2]


def test_withdrawn_pod_is_as_it_was_and_asks_directly(
    lab: Lab, capture: Capture, named: EnrolledPod, spare: Pod
) -> None:
    before = network_state(spare)
    app = lab.app(spare)
    enrolled = capture.enrol(spare.network(dns=True))
    assert enrolled.dns
    lab.servers.serve_names(enrolled.dns, "spare")
    assert app.call(apps.ask_udp, real(lab, 4))[0].startswith("spare|")
    assert network_state(spare) != before
    lab.servers.forget("spare")
    assert capture.withdraw(enrolled)
    assert network_state(spare) == before
    for ask in (apps.ask_udp, apps.ask_unconnected):
        assert app.call(ask, real(lab, 4))[0] == "resolver"


@versions
def test_while_no_agent_listens_connected_sockets_ask_directly(
    lab: Lab, named: EnrolledPod, spare: Pod, version: int
) -> None:
    app, to = lab.app(spare), real(lab, version)
    first = Agent(lab, spare, "first")
    assert app.call(apps.ask_udp, to)[0].startswith("first-names|")
    first.kill()
    assert app.call(apps.ask_udp, to)[0] == "resolver"
    assert app.call(apps.never_answered, to, 0.3)
    second = Agent(lab, spare, "second")
    assert second.slot == first.slot
    for ask in (apps.ask_udp, apps.ask_unconnected):
        assert app.call(ask, to)[0].startswith("second-names|")
    second.kill()
    with_agent = Capture.attach(compiler.shipped(), lab.cgroup, lab.pin_dir)
    kept = [pod for pod in (named,) if pod.slot != first.slot]
    wait_for(lambda: first.slot in with_agent.prune(kept), "the pod is given back")
    with_agent.close()
