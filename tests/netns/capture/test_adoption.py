"""Agents that die, come back, work side by side; what they leave and what cleaning up removes."""

from __future__ import annotations

import os
import struct
import time

import pytest

from ebpf import bpf, loader, maps, selftest
from ebpf.capture import Capture
from ebpf.errors import CaptureError, CaptureReason
from ebpf.kinds import AttachType, MapInfo
from tests.netns.capture import apps
from tests.netns.capture.agent import Agent
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import App, Lab, Pod, network_state, wait_for
from tests.netns.capture.opening import (
    ExtraPod,
    open_capture,
    own_descriptors,
    to_neighbour,
)

pytestmark = pytest.mark.root

versions = pytest.mark.parametrize("version", [4, 6])


@versions
def test_pod_stays_captured_when_the_agent_is_killed_and_a_new_agent_adopts_it(
    lab: Lab, pod: Pod, client: App, version: int
) -> None:
    neighbour = lab.app(lab.pods[1])
    before = network_state(pod)
    first = Agent(lab, pod, "first")
    assert client.call(apps.exchange, to_neighbour(lab, version)).tag == "first-outbound"
    first.kill()
    closed = "timeout" if version == 4 else "ECONNREFUSED"
    assert client.call(apps.outcome, to_neighbour(lab, version)) == closed
    assert neighbour.call(apps.outcome, Dial((pod.own(version), 8080))) == "ECONNREFUSED"
    waiting = client.start(apps.exchange, to_neighbour(lab, 4))
    second = Agent(lab, pod, "second")
    assert second.slot == first.slot
    ok, answer = waiting()
    assert ok, answer
    assert answer.tag == "second-outbound"
    assert client.call(apps.exchange, to_neighbour(lab, version)).tag == "second-outbound"
    assert neighbour.call(apps.exchange, Dial((pod.own(version), 8080))).tag == "second-inbound"
    second.kill()
    third = open_capture(lab)
    third.withdraw(third.enrol(pod.network()))
    assert network_state(pod) == before
    third.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


def test_new_agent_takes_over_while_the_old_one_still_runs(lab: Lab, pod: Pod, client: App) -> None:
    old = Agent(lab, pod, "old")
    new = Agent(lab, pod, "new")
    assert new.slot == old.slot
    assert client.call(apps.exchange, to_neighbour(lab)).tag == "new-outbound"
    old.kill()
    assert client.call(apps.exchange, to_neighbour(lab)).tag == "new-outbound"
    new.kill()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


def test_adopting_replaces_programs_and_keeps_links(lab: Lab, fresh: Capture, pod: Pod) -> None:
    def links() -> dict[str, tuple[int, int]]:
        found = {}
        for path in loader.layout_dir(lab.pin_dir).iterdir():
            if not path.name.startswith("map_"):
                fd = bpf.pinned(path)
                assert fd is not None
                kind = AttachType.SK_LOOKUP if path.name.startswith("pod") else AttachType.CONNECT4
                found[path.name] = (_link_id(fd), bpf.link_info(fd, kind).program)
                os.close(fd)
        return found

    fresh.enrol(pod.network())
    before = links()
    second = open_capture(lab)
    second.enrol(pod.network())
    after = links()
    second.close()
    assert before.keys() == after.keys() == {"link_connect4", "link_connect6", "pod_0"}
    for name, (link, program) in before.items():
        assert after[name][0] == link
        assert after[name][1] != program


def _link_id(fd: int) -> int:
    return int(struct.unpack_from("=II", bpf._info(fd, 64))[1])


def test_pruning_restores_a_live_pod_of_a_former_agent(lab: Lab, pod: Pod, client: App) -> None:
    before = network_state(pod)
    agent = Agent(lab, pod, "former")
    agent.kill()
    capture = open_capture(lab)
    kept = capture.enrol(lab.pods[2].network())
    assert capture.prune([kept]) == [agent.slot]
    assert network_state(pod) == before
    assert client.call(apps.exchange, to_neighbour(lab)).tag == f"app-{lab.pods[1].name}"
    assert (loader.layout_dir(lab.pin_dir) / f"pod_{kept.slot}").exists()
    assert capture.prune([kept]) == []
    capture.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


def test_pruning_unlinks_a_dead_namespace(lab: Lab) -> None:
    with ExtraPod(lab) as extra:
        agent = Agent(lab, extra, "former")
        agent.kill()
    capture = open_capture(lab)
    link = loader.layout_dir(lab.pin_dir) / f"pod_{agent.slot}"
    assert link.exists()
    assert capture.prune([]) == [agent.slot]
    assert not link.exists()
    assert capture.enrol(lab.pods[0].network()).slot == agent.slot
    capture.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


def test_two_agents_on_one_kernel_do_not_touch_each_other(lab: Lab, fresh: Capture, client: App) -> None:
    other_cgroup, other_pins = lab.cgroup / "other", lab.pin_dir / "other"
    other_cgroup.mkdir()
    second = open_capture(lab, other_cgroup, other_pins)
    stranger = lab.app(lab.pods[2], other_cgroup)
    try:
        one, two = fresh.enrol(lab.pods[0].network()), second.enrol(lab.pods[2].network())
        lab.servers.serve(one.outbound, "one")
        lab.servers.serve(two.outbound, "two")
        assert one.slot == two.slot
        assert client.call(apps.exchange, to_neighbour(lab)).tag == "one"
        assert stranger.call(apps.exchange, to_neighbour(lab)).tag == "two"
        second.close()
        assert Capture.cleanup(other_cgroup, other_pins)
        assert not other_pins.exists()
        assert stranger.call(apps.exchange, to_neighbour(lab)).tag == f"app-{lab.pods[1].name}"
        assert client.call(apps.exchange, to_neighbour(lab)).tag == "one"
    finally:
        for tag in ("one", "two"):
            lab.servers.forget(tag)
        stranger.close()
        lab.forget_app(stranger)
        other_cgroup.rmdir()


def test_cleaning_up_removes_every_trace(lab: Lab, pod: Pod, client: App) -> None:
    before = network_state(pod)
    Agent(lab, pod, "killed").kill()
    (lab.cgroup / "ambientlite-selftest-1").mkdir()
    removed = Capture.cleanup(lab.cgroup, lab.pin_dir)
    assert "pod slot 0" in removed
    assert any(entry.endswith("link_connect4") for entry in removed)
    assert any(entry.endswith("ambientlite-selftest-1") for entry in removed)
    assert lab.pins() == []
    assert network_state(pod) == before
    assert client.call(apps.exchange, to_neighbour(lab)).tag == f"app-{lab.pods[1].name}"
    assert Capture.cleanup(lab.cgroup, lab.pin_dir) == []


def test_pins_that_are_removed_under_a_living_agent_come_back(lab: Lab, fresh: Capture, client: App) -> None:
    """By whom ever: with them the hooks go, and pods would talk in clear behind an agent that does not know."""
    enrolled = fresh.enrol(lab.pods[0].network())
    lab.servers.serve(enrolled.outbound, "mended")
    assert fresh.mend() == []
    before = set(lab.pins())
    for take_away in (
        lambda: Capture.cleanup(lab.cgroup, lab.pin_dir),
        lambda: loader.remove_layout(loader.layout_dir(lab.pin_dir)),
        lambda: loader.unlink(loader.layout_dir(lab.pin_dir) / "link_connect6"),
    ):
        take_away()
        assert client.call(apps.exchange, to_neighbour(lab, 6)).tag == f"app-{lab.pods[1].name}"
        assert "link_connect6" in fresh.mend()
        for version in (4, 6):
            assert client.call(apps.exchange, to_neighbour(lab, version)).tag == "mended"
        assert {path.name for path in before} - {path.name for path in lab.pins()} <= {"tested"}
        assert fresh.mend() == []
    fresh.renew()
    lab.servers.forget("mended")
    fresh.withdraw(enrolled)


def test_agents_at_work_are_known_until_they_leave(lab: Lab, fresh: Capture, pod: Pod) -> None:
    other = Agent(lab, pod, "other")
    fresh.renew()
    assert os.getpid() in Capture.agents_at_work(lab.pin_dir)
    other.kill()
    fresh.renew()
    assert Capture.agents_at_work(lab.pin_dir) == [os.getpid()]
    assert Capture.agents_at_work(lab.pin_dir / "nowhere") == []


def test_process_that_got_a_dead_agents_number_is_captured(lab: Lab, fresh: Capture) -> None:
    enrolled = fresh.enrol(lab.pods[0].network())
    lab.servers.serve(enrolled.outbound, "found out")
    last_seen = int(time.monotonic())
    wait_for(lambda: time.monotonic() > last_seen + 2, "the agent is dead")
    heir = lab.app(lab.pods[0])
    bpf.map_update(fresh._kernel.maps["agents"], maps.u32(heir.pid), maps.u32(last_seen))
    assert heir.call(apps.exchange, to_neighbour(lab)).tag == f"app-{lab.pods[1].name}"
    assert heir.pid not in Capture.agents_at_work(lab.pin_dir)
    fresh.exempt_agent(os.getpid())
    assert heir.call(apps.exchange, to_neighbour(lab)).tag == "found out"
    lab.servers.forget("found out")
    fresh.withdraw(enrolled)


def test_pins_of_another_layout_are_refused(lab: Lab) -> None:
    directory = loader.layout_dir(lab.pin_dir)
    directory.mkdir(parents=True)
    wrong = bpf.map_create("pods", MapInfo(1, 8, 16, 10, 0))
    bpf.pin(wrong, directory / "map_pods")
    os.close(wrong)
    with pytest.raises(CaptureError, match="cleanup") as refused:
        open_capture(lab)
    assert refused.value.reason is CaptureReason.LAYOUT_MISMATCH
    Capture.cleanup(lab.cgroup, lab.pin_dir)
    assert lab.pins() == []


def test_opening_leaves_no_trace_but_the_pins(lab: Lab) -> None:
    descriptors, groups = own_descriptors(), sorted(lab.cgroup.iterdir())
    capture = open_capture(lab)
    assert (capture.variant, bool(capture.chosen.reason)) == ("B", True)
    assert sorted(lab.cgroup.iterdir()) == groups
    capture.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)
    assert own_descriptors() == descriptors
    assert lab.pins() == []


def test_recreated_cgroup_gets_new_links(lab: Lab) -> None:
    directory = lab.cgroup / "again"
    pins = lab.pin_dir / "again"
    for _ in range(2):
        directory.mkdir()
        capture = open_capture(lab, directory, pins)
        stranger = lab.app(lab.pods[0], directory)
        enrolled = capture.enrol(lab.pods[0].network())
        lab.servers.serve(enrolled.outbound, "again")
        assert stranger.call(apps.exchange, to_neighbour(lab)).tag == "again"
        lab.servers.forget("again")
        stranger.close()
        lab.forget_app(stranger)
        capture.close()
        directory.rmdir()
    Capture.cleanup(lab.cgroup, pins)


def test_leftovers_of_other_self_tests_in_use_are_kept(lab: Lab) -> None:
    busy = lab.cgroup / "ambientlite-selftest-2"
    busy.mkdir()
    app = lab.app(lab.pods[1], busy)
    assert selftest.remove_leftovers(lab.cgroup) == []
    app.close()
    lab.forget_app(app)
    assert selftest.remove_leftovers(lab.cgroup) == [str(busy)]
