"""What connections of an enrolled pod meet while no agent listens, and that they heal when one comes.

They never get through in clear. Whether they wait or are refused is the kernel's choice (docs/capture.md), and
pinned here.
"""

from __future__ import annotations

import pytest

from ebpf.capture import Capture, EnrolledPod
from ebpf.variants import Variant
from tests.netns.capture import apps
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import App, Lab, Pod, both_variants

pytestmark = [pytest.mark.root, both_variants]

WAITS, REFUSED = "timeout", "ECONNREFUSED"
MET = {
    ("out", 4): {Variant.B: WAITS, Variant.C: WAITS},
    ("out", 6): {Variant.B: REFUSED, Variant.C: REFUSED},
    ("in", 4): {Variant.B: REFUSED, Variant.C: WAITS},
    ("in", 6): {Variant.B: REFUSED, Variant.C: WAITS},
}


def dial(lab: Lab, pod: Pod, direction: str, version: int, port: int = 8080) -> tuple[Pod, Dial]:
    """Who connects, and where to."""
    peer = lab.pods[1]
    source, target = (pod, peer) if direction == "out" else (peer, pod)
    return source, Dial((target.own(version), port))


@pytest.fixture(scope="module")
def processes(lab: Lab, enrolled: EnrolledPod) -> dict[str, App]:
    return {pod.name: lab.app(pod) for pod in lab.pods[1:]}


@pytest.mark.parametrize(("direction", "version"), MET)
def test_without_an_agent_nothing_gets_through_and_then_it_heals(
    lab: Lab, variant: Variant, capture: Capture, processes: dict[str, App], direction: str, version: int
) -> None:
    pod = lab.pods[2]
    source, to = dial(lab, pod, direction, version)
    app = processes[source.name]
    orphan = capture.enrol(pod.network())
    try:
        orphan.listeners.close()
        dropped = capture.counters()["dropped"]
        assert app.call(apps.outcome, to) == MET[direction, version][variant]
        assert capture.counters()["dropped"] > dropped
        waits = MET[direction, version][variant] == WAITS
        waiting = app.start(apps.exchange, to) if waits else None
        again = capture.enrol(pod.network())
        lab.servers.serve(again.outbound, "again")
        lab.servers.serve(again.inbound, "again")
        if waiting is not None:
            ok, answer = waiting()
            assert ok, answer
            assert answer.tag == "again"
        assert app.call(apps.exchange, to).tag == "again"
        assert again.slot == orphan.slot
    finally:
        lab.servers.forget("again")
        capture.withdraw(orphan)


@pytest.mark.parametrize("version", [4, 6])
def test_hbone_without_an_agent_meets_the_same_as_plaintext(
    lab: Lab, variant: Variant, capture: Capture, processes: dict[str, App], version: int
) -> None:
    pod = lab.pods[2]
    source, to = dial(lab, pod, "in", version, 15008)
    orphan = capture.enrol(pod.network())
    try:
        orphan.listeners.close()
        assert processes[source.name].call(apps.outcome, to) == MET["in", version][variant]
    finally:
        capture.withdraw(orphan)
