"""A successor that fails: whoever is left serves, and nothing goes out in clear meanwhile."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ebpf.capture import Capture, EnrolledPod
from ebpf.capture.agents import SEEN, Agents
from ebpf.capture.facade import SUCCESSION
from tests.netns.capture import apps
from tests.netns.capture.agent import Agent
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import App, Lab, Pod

pytestmark = pytest.mark.root
CLONE_NEWPID = 0x20000000


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


def test_successor_that_takes_no_pod_over_is_waited_for_a_minute(
    lab: Lab, old: Capture, served: EnrolledPod
) -> None:
    assert not old.is_succeeded()
    with started(lab):
        assert old.is_succeeded(), "it may yet take them"
        old._agents = later(old, SUCCESSION)
        assert not old.is_succeeded(), "it has not come to work"
        assert old.has_company()


def test_successor_that_has_taken_pods_over_decides_however_old_it_is(
    lab: Lab, old: Capture, served: EnrolledPod, pod: Pod
) -> None:
    successor = Agent(lab, pod, "new")
    old._agents = later(old, 100 * SUCCESSION)
    assert old.is_succeeded()
    successor.kill()
    assert not old.is_succeeded()


def later(capture: Capture, seconds: float) -> Agents:
    """As this process will see the agents then."""
    agents = Agents(capture._kernel, since_boot=lambda: time.clock_gettime(time.CLOCK_BOOTTIME) + seconds)
    agents.exempt(os.getpid(), capture._node.others)
    return agents


def test_where_processes_cannot_be_seen_a_killed_successor_counts_as_there_for_a_while(
    lab: Lab, old: Capture, served: EnrolledPod, pod: Pod, client: App
) -> None:
    Agent(lab, pod, "new").kill()

    def look() -> list[tuple[bool, int]]:
        """As agents do in containers with PID namespaces of their own."""
        ahead, seen = 0.0, []
        agents = Agents(old._kernel, monotonic=lambda: time.monotonic() + ahead)
        agents.exempt(os.getpid(), old._node.others)
        old._agents = agents
        for seconds in (0.0, 2.0 * SEEN):
            ahead = seconds
            agents.renew()
            seen.append((old.has_company(), old.reclaim()))
        return seen

    assert in_pid_namespace(look) == [[True, 0], [False, 1]]
    assert whom(lab, client) == "old"


def in_pid_namespace(work: Callable[[], Any]) -> Any:
    """What it returns in a process with such a namespace."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            unshare_pids()
            if (inner := os.fork()) == 0:
                assert os.getpid() == 1
                os.write(write, json.dumps(work()).encode())
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return json.loads(text)


def unshare_pids() -> None:
    """The next child of this process is the first of a new PID namespace."""
    assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWPID) == 0, os.strerror(ctypes.get_errno())
