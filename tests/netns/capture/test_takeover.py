"""A successor that fails: whoever is left serves, and nothing goes out in clear meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ebpf.capture import Capture, EnrolledPod
from tests.netns.capture import apps
from tests.netns.capture.agent import Agent
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import App, Lab, Pod

pytestmark = pytest.mark.root


def open_capture(lab: Lab) -> Capture:
    return Capture.open(
        cgroup=lab.cgroup, pin_dir=lab.pin_dir, agent_pid=os.getpid(), cache_dir=lab.cache_dir
    )


@pytest.fixture
def pod(lab: Lab) -> Pod:
    return lab.pods[0]


@pytest.fixture(scope="module")
def client(lab: Lab) -> App:
    return lab.app(lab.pods[0])


@pytest.fixture
def old(lab: Lab) -> Iterator[Capture]:
    made = open_capture(lab)
    yield made
    made.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


@pytest.fixture
def served(lab: Lab, old: Capture, pod: Pod) -> Iterator[EnrolledPod]:
    enrolled = old.enrol(pod.network())
    lab.servers.serve(enrolled.outbound, "old")
    yield enrolled
    lab.servers.forget("old")


def whom(lab: Lab, client: App) -> str:
    """Who gets the pod's new connections."""
    return str(client.call(apps.exchange, Dial((lab.pods[1].own(4), 8080))).tag)


@contextmanager
def started(lab: Lab) -> Iterator[int]:
    """A successor that has opened capture, and does not come to its pods."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            open_capture(lab)
            os.write(write, b"!")
            signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    try:
        assert os.read(read, 1) == b"!"
        yield child
    finally:
        os.close(read)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_pod_of_a_successor_that_was_killed_is_served_by_its_predecessor_again(
    lab: Lab, old: Capture, served: EnrolledPod, pod: Pod, client: App
) -> None:
    assert whom(lab, client) == "old"
    successor = Agent(lab, pod, "new")
    assert old.has_company()
    assert (old.handed_over(), old.reclaim()) == (1, 0)
    assert whom(lab, client) == "new-outbound"
    successor.kill()
    assert not old.has_company()
    assert old.reclaim() == 1
    assert (old.handed_over(), old.reclaim()) == (0, 0)
    assert whom(lab, client) == "old"
    another = Agent(lab, pod, "newest")
    assert whom(lab, client) == "newest-outbound"
    another.kill()


def test_successor_that_never_becomes_ready_changes_nothing(
    lab: Lab, old: Capture, served: EnrolledPod, client: App
) -> None:
    with started(lab):
        assert old.has_company()
        assert (old.handed_over(), old.reclaim()) == (0, 0)
        assert whom(lab, client) == "old"
    assert not old.has_company()
    assert old.reclaim() == 0
    assert whom(lab, client) == "old"


def test_predecessor_killed_while_it_drains_leaves_the_successor_alone(
    lab: Lab, pod: Pod, client: App
) -> None:
    predecessor = Agent(lab, pod, "old")
    successor = open_capture(lab)
    enrolled = successor.enrol(pod.network())
    lab.servers.serve(enrolled.outbound, "new")
    assert whom(lab, client) == "new"
    predecessor.kill()
    assert not successor.has_company()
    assert (successor.handed_over(), successor.reclaim()) == (0, 0)
    assert whom(lab, client) == "new"
    lab.servers.forget("new")
    successor.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


def test_pod_that_the_successor_withdrew_is_not_taken_back(
    lab: Lab, old: Capture, served: EnrolledPod, pod: Pod
) -> None:
    successor = open_capture(lab)
    assert successor.withdraw(successor.enrol(pod.network()))
    successor.close()
    assert old.reclaim() == 0
