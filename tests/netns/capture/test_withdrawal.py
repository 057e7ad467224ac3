"""A pod leaves while connections are relayed: they go on, new ones are plain, and in the end nothing is left."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from ebpf import listeners, netns, sockets
from ebpf.capture import Capture, EnrolledPod
from ebpf.errors import CaptureError
from ebpf.marks import ONWARD_MARK
from tests.netns.capture import apps
from tests.netns.capture.agent import Agent
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import App, Lab, Pod, network_state, wait_for
from tests.netns.capture.opening import ExtraPod, open_capture, own_descriptors, refuse
from tests.netns.capture.test_crash import assert_new_agent_puts_it_right, attach, die_after, in_child

pytestmark = pytest.mark.root

versions = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def capture(lab: Lab) -> Iterator[Capture]:
    """Capture of its own for one test."""
    made = open_capture(lab)
    yield made
    made.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


@pytest.fixture
def neighbour(lab: Lab) -> App:
    return lab.app(lab.pods[1])


@pytest.fixture
def agent(lab: Lab, pod: Pod, capture: Capture) -> App:
    """A process in the pod that counts as the agent: its connections to the application are not captured."""
    started = lab.app(pod, lab.agent_cgroup)
    capture.exempt_agent(started.pid)
    return started


def to_neighbour(lab: Lab, version: int) -> Dial:
    return Dial((lab.pods[1].own(version), 8080))


def onward(lab: Lab, version: int) -> Dial:
    """The agent's connection to the application under the neighbour's address."""
    own, peer = lab.pods[0].own(version), lab.pods[1].own(version)
    return Dial((own, 8080), source=(peer, 0), device="lo", mark=ONWARD_MARK, onward=True)


def enrol(lab: Lab, capture: Capture, pod: Pod) -> EnrolledPod:
    enrolled = capture.enrol(pod.network())
    lab.serve_agent(enrolled)
    return enrolled


@versions
def test_relayed_connections_go_on_and_new_ones_are_plain(
    lab: Lab, capture: Capture, pod: Pod, client: App, neighbour: App, agent: App, version: int
) -> None:
    before = network_state(pod)
    enrolled = enrol(lab, capture, pod)
    client.call(apps.hold, "out", to_neighbour(lab, version))
    agent.call(apps.hold, "in", onward(lab, version))
    assert capture.withdraw(enrolled) is False
    lab.stop_agent()
    for _ in range(3):
        assert client.call(apps.ask_held, "out").tag == "outbound"
        assert agent.call(apps.ask_held, "in").tag == f"app-{pod.name}"
        assert client.call(apps.exchange, to_neighbour(lab, version)).tag == f"app-{lab.pods[1].name}"
        answer = neighbour.call(apps.exchange, Dial((pod.own(version), 8080)))
        assert (answer.tag, answer.server_peer[0]) == (f"app-{pod.name}", lab.pods[1].own(version))
        assert neighbour.call(apps.outcome, Dial((pod.own(version), 15008))) == "ECONNREFUSED"
        assert capture.release(enrolled) is False
    client.call(apps.drop_held, "out")
    assert capture.release(enrolled) is False
    assert agent.call(apps.ask_held, "in").tag == f"app-{pod.name}"
    agent.call(apps.drop_held, "in")
    wait_for(lambda: capture.release(enrolled), "the withdrawal is finished")
    assert network_state(pod) == before
    assert list(capture._kernel.attached_slots()) == []
    assert capture.release(enrolled) is True
    assert client.call(apps.exchange, to_neighbour(lab, version)).tag == f"app-{lab.pods[1].name}"


@versions
def test_bulk_in_both_directions_survives(
    lab: Lab, capture: Capture, pod: Pod, client: App, version: int
) -> None:
    enrolled = capture.enrol(pod.network())
    enrolled.outbound.setblocking(True)
    enrolled.outbound.settimeout(5)
    connected = client.start(apps.hold_silent, "bulk", to_neighbour(lab, version))
    accepted, _ = enrolled.outbound.accept()
    assert connected()[0]
    assert capture.withdraw(enrolled) is False
    with accepted:
        accepted.settimeout(10)
        pushing = client.start(apps.push_and_pull, "bulk", 3_000_000)
        seen = 0
        while seen < 3_000_000:
            data = accepted.recv(1 << 16)
            assert data
            seen += len(data)
            accepted.sendall(data)
        assert pushing() == (True, 3_000_000)
        accepted.sendall(b"x" * 100_000)
    # The agent has closed, but the application has not read all of it yet: it must still get it.
    assert capture.release(enrolled) is False
    assert client.call(apps.drain_held, "bulk") == 100_000
    wait_for(lambda: capture.release(enrolled), "the withdrawal is finished")


def test_connection_in_the_accept_queue_survives(
    lab: Lab, capture: Capture, pod: Pod, client: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent comes to accept it while the withdrawal waits."""
    enrolled = capture.enrol(pod.network())
    client.call(apps.hold_silent, "queued", to_neighbour(lab, 4))
    found: list[socket.socket] = []
    waits = SimpleNamespace(
        monotonic=lambda: 0.0, sleep=lambda _: found.append(enrolled.outbound.accept()[0])
    )
    monkeypatch.setattr(listeners, "time", waits)
    assert capture.withdraw(enrolled) is False
    (accepted,) = found
    with accepted:
        accepted.sendall(b"late|a 1|b 2")
        assert client.call(apps.answer_held, "queued").tag == "late"
    client.call(apps.drop_held, "queued")
    wait_for(lambda: capture.release(enrolled), "the withdrawal is finished")


def test_socket_used_again_after_withdrawal_is_plain(
    lab: Lab, capture: Capture, pod: Pod, client: App
) -> None:
    enrolled = enrol(lab, capture, pod)
    client.call(apps.hold, "other", to_neighbour(lab, 4))
    client.call(apps.hold, "again", to_neighbour(lab, 4))
    assert capture.withdraw(enrolled) is False
    assert client.call(apps.reconnect_held, "again", to_neighbour(lab, 4)).tag == f"app-{lab.pods[1].name}"
    client.call(apps.drop_held, "other")
    lab.stop_agent()
    wait_for(lambda: capture.release(enrolled), "the withdrawal is finished")


@versions
def test_pod_enrolled_again_meanwhile_is_captured_and_old_connections_live(
    lab: Lab, capture: Capture, pod: Pod, client: App, version: int
) -> None:
    before, descriptors = network_state(pod), own_descriptors()
    first = enrol(lab, capture, pod)
    client.call(apps.hold, "first", to_neighbour(lab, version))
    assert capture.withdraw(first) is False
    lab.stop_agent()
    second = enrol(lab, capture, pod)
    assert second.slot == first.slot
    assert client.call(apps.exchange, to_neighbour(lab, version)).tag == "outbound"
    assert client.call(apps.ask_held, "first").tag == "outbound"
    assert capture.release(first) is True
    assert client.call(apps.exchange, to_neighbour(lab, version)).tag == "outbound"
    assert capture.withdraw(second) is False
    client.call(apps.drop_held, "first")
    lab.stop_agent()
    wait_for(lambda: capture.release(second), "the withdrawal is finished")
    assert network_state(pod) == before
    assert own_descriptors() == descriptors


def test_failed_enrolment_of_a_leaving_pod_lets_it_leave(
    lab: Lab, capture: Capture, pod: Pod, client: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = network_state(pod)
    enrolled = enrol(lab, capture, pod)
    client.call(apps.hold, "held", to_neighbour(lab, 4))
    assert capture.withdraw(enrolled) is False
    lab.stop_agent()
    monkeypatch.setattr(capture._kernel, "attach_pod", refuse)
    with pytest.raises(CaptureError):
        capture.enrol(pod.network())
    monkeypatch.undo()
    assert client.call(apps.exchange, to_neighbour(lab, 4)).tag == f"app-{lab.pods[1].name}"
    assert client.call(apps.ask_held, "held").tag == "outbound"
    client.call(apps.drop_held, "held")
    wait_for(lambda: capture.release(enrolled), "the withdrawal is finished")
    assert network_state(pod) == before


def test_pod_whose_processes_are_gone_is_released_at_once(lab: Lab, capture: Capture) -> None:
    with ExtraPod(lab) as extra:
        app = lab.app(extra)
        enrolled = enrol(lab, capture, extra)
        app.call(apps.hold, "held", Dial(("10.96.0.10", 443)))
        app.close()
        lab.forget_app(app)
    assert capture.withdraw(enrolled) is True
    lab.stop_agent()
    assert list(capture._kernel.attached_slots()) == []


def test_letting_go_finishes_withdrawals(lab: Lab, pod: Pod, client: App) -> None:
    before = network_state(pod)
    capture = open_capture(lab)
    enrolled = enrol(lab, capture, pod)
    client.call(apps.hold, "held", to_neighbour(lab, 4))
    assert capture.withdraw(enrolled) is False
    capture.close()
    assert network_state(pod) == before
    client.call(apps.drop_held, "held")
    lab.stop_agent()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


def test_letting_go_leaves_a_pod_that_a_successor_enrolled(
    lab: Lab, capture: Capture, pod: Pod, client: App
) -> None:
    old = open_capture(lab)
    enrolled = enrol(lab, old, pod)
    client.call(apps.hold, "held", to_neighbour(lab, 4))
    assert old.withdraw(enrolled) is False
    lab.stop_agent()
    successor = Agent(lab, pod, "successor")
    old.close()
    assert client.call(apps.exchange, to_neighbour(lab, 4)).tag == "successor-outbound"
    client.call(apps.drop_held, "held")
    successor.kill()


def test_killed_at_any_step_with_relayed_connections(lab: Lab, pod: Pod, client: App) -> None:
    """The child holds the agent's end of the relayed connection and dies with it."""
    before = network_state(pod)

    def work(step: int) -> Callable[[], None]:
        def withdraw() -> None:
            capture = attach(lab)
            enrolled = capture.enrol(pod.network())
            enrolled.outbound.settimeout(5)
            connected = client.start(apps.hold_silent, "held", to_neighbour(lab, 4))
            accepted, _ = enrolled.outbound.accept()
            connected()
            die_after(step)
            assert capture.withdraw(enrolled) is False
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            accepted.close()
            assert capture.release(enrolled) is True

        return withdraw

    for step in itertools.count():
        finished = in_child(work(step))
        assert_new_agent_puts_it_right(lab, before, pod, step)
        client.call(apps.drop_held, "held")
        if finished:
            break
    assert step > 15
    Capture.cleanup(lab.cgroup, lab.pin_dir)


def test_new_agent_prunes_what_a_killed_one_left(lab: Lab, pod: Pod, client: App) -> None:
    before = network_state(pod)

    def leave_and_die() -> None:
        capture = attach(lab)
        enrolled = capture.enrol(pod.network())
        client.start(apps.hold_silent, "held", to_neighbour(lab, 4))()
        accepted, _ = enrolled.outbound.accept()
        assert capture.withdraw(enrolled) is False
        accepted.detach()
        os._exit(0)

    assert in_child(leave_and_die)
    assert "lookup 15001" in network_state(pod)
    assert client.call(apps.exchange, to_neighbour(lab, 4)).tag == f"app-{lab.pods[1].name}"
    new = attach(lab)
    assert new.prune([]) == [0]
    assert network_state(pod) == before
    new.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


@versions
def test_sockets_of_a_namespace_are_listed_and_can_be_ended(lab: Lab, pod: Pod, version: int) -> None:
    app = lab.app(pod)
    app.call(apps.hold, "listed", to_neighbour(lab, version))
    port = app.call(apps.ask_held, "listed").client_local[1]
    with netns.inside(pod.fd):
        (found,) = [each for each in sockets.listed() if each.local.port == port]
        assert found.remote.ip.compressed == lab.pods[1].own(version)
        assert (found.remote.port, found.payload_sent, found.state) == (8080, 2, sockets.State.ESTABLISHED)
        assert found.received > 0
        assert sockets.destroy(found.identity) is True
        assert sockets.destroy(found.identity) is False
    assert app.call(apps.end_held, "listed") == "ECONNABORTED"
