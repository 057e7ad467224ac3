"""One lab for each test module: building it takes a second."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ebpf.capture import Capture, EnrolledPod
from ebpf.variants import Choice, Variant
from tests.netns.capture.lab import App, Lab, Pod
from tests.netns.capture.opening import open_capture


@pytest.fixture(scope="module")
def variant(request: pytest.FixtureRequest) -> Variant:
    """By which capture works; a module that wants both asks for them (`both_variants`)."""
    return Variant(getattr(request, "param", "B"))


@pytest.fixture(scope="module")
def lab(variant: Variant) -> Iterator[Lab]:
    """Node and pods, with applications listening."""
    with Lab() as made:
        made.serve_pods()
        yield made


@pytest.fixture(scope="module")
def capture(lab: Lab, variant: Variant) -> Iterator[Capture]:
    """Capture at the lab's cgroup; everything is cleaned up afterwards."""
    made = Capture.open(
        cgroup=lab.cgroup if variant is Variant.B else None,
        pin_dir=lab.pin_dir,
        agent_pid=os.getpid(),
        cache_dir=lab.cache_dir,
        choice=Choice(variant),
    )
    assert made.variant is variant
    yield made
    made.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


@pytest.fixture(scope="module")
def enrolled(lab: Lab, capture: Capture) -> Iterator[EnrolledPod]:
    """The first pod, enrolled, with a stand-in for the agent on its listeners."""
    pod = capture.enrol(lab.pods[0].network())
    lab.serve_agent(pod)
    yield pod
    lab.stop_agent()
    capture.withdraw(pod)


@pytest.fixture(scope="module")
def app(lab: Lab, enrolled: EnrolledPod) -> App:
    """A process in the enrolled pod."""
    return lab.app(lab.pods[0])


@pytest.fixture(scope="module")
def neighbour(lab: Lab, enrolled: EnrolledPod) -> App:
    """A process in a pod that is not enrolled."""
    return lab.app(lab.pods[1])


@pytest.fixture(scope="module")
def host(lab: Lab, enrolled: EnrolledPod) -> App:
    """A process in the node's own namespace."""
    return lab.app(lab.node)


@pytest.fixture
def fresh(lab: Lab) -> Iterator[Capture]:
    """Capture of its own for one test, which may close it."""
    made = open_capture(lab)
    yield made
    made.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


@pytest.fixture
def pod(lab: Lab) -> Pod:
    return lab.pods[0]


@pytest.fixture
def client(lab: Lab, pod: Pod) -> App:
    return lab.app(pod)
