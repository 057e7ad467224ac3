"""Agents of different layout versions after, and beside, each other."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ebpf import bpf, compiler, loader, maps
from ebpf.capture import Capture
from ebpf.kinds import MapInfo, MapType
from ebpf.maps import LAYOUT_VERSION
from tests.netns.capture import apps
from tests.netns.capture.agent import Agent
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import App, Lab, Pod, network_state

pytestmark = pytest.mark.root
OTHER = LAYOUT_VERSION + 1000


@pytest.fixture
def pod(lab: Lab) -> Iterator[Pod]:
    yield lab.pods[0]
    Capture.cleanup(lab.cgroup, lab.pin_dir)
    assert lab.pins() == []


@pytest.fixture
def client(lab: Lab, pod: Pod) -> App:
    return lab.app(pod)


def adopt(lab: Lab) -> Capture:
    return Capture.attach(compiler.shipped(), lab.cgroup, lab.pin_dir)


def test_one_version_after_another_and_back(lab: Lab, pod: Pod, client: App) -> None:
    before, dial = network_state(pod), Dial((lab.pods[1].v4, 8080))
    for tag, layout in (("old", LAYOUT_VERSION), ("new", OTHER), ("back", LAYOUT_VERSION)):
        waiting = client.start(apps.exchange, dial) if tag != "old" else None
        agent = Agent(lab, pod, tag, layout=layout)
        if waiting is not None:
            ok, answer = waiting()
            assert (ok, answer.tag) == (True, f"{tag}-outbound")
        assert client.call(apps.exchange, dial).tag == f"{tag}-outbound"
        steering = list(lab.pin_dir.glob("v*/pod_*"))
        assert [path.parent.name for path in steering] == [f"v{layout}"]
        agent.kill()
        assert client.call(apps.outcome, dial) == "timeout"
    last = adopt(lab)
    last.prune([])
    assert network_state(pod) == before
    assert [path.name for path in lab.pin_dir.glob("v*")] == [f"v{LAYOUT_VERSION}"]
    last.close()


def test_a_living_agent_of_another_version_is_relieved(lab: Lab, pod: Pod, client: App) -> None:
    before, dial = network_state(pod), Dial((lab.pods[1].v4, 8080))
    old = Agent(lab, pod, "old", layout=OTHER)
    assert client.call(apps.exchange, dial).tag == "old-outbound"
    new = adopt(lab)
    new.exempt_agent(os.getpid())
    assert new.has_company()
    enrolled = new.enrol(pod.network())
    lab.serve_agent(enrolled)
    assert client.call(apps.exchange, dial).tag == "outbound"
    new.prune([enrolled])
    assert not (lab.pin_dir / f"v{OTHER}").exists()
    assert client.call(apps.exchange, dial).tag == "outbound"
    old.kill()
    assert client.call(apps.exchange, dial).tag == "outbound"
    lab.stop_agent()
    new.withdraw(enrolled)
    assert network_state(pod) == before
    new.close()


def test_a_pod_that_nobody_takes_over_is_restored(lab: Lab, pod: Pod, client: App) -> None:
    before = network_state(pod)
    Agent(lab, pod, "old", layout=OTHER).kill()
    new = adopt(lab)
    assert network_state(pod) != before
    new.prune([])
    assert network_state(pod) == before
    assert client.call(apps.exchange, Dial((lab.pods[1].v4, 8080))).tag == f"app-{lab.pods[1].name}"
    new.close()


def test_cleaning_up_restores_what_another_version_left(lab: Lab, pod: Pod) -> None:
    before = network_state(pod)
    Agent(lab, pod, "old", layout=OTHER).kill()
    assert "pod slot 0" in Capture.cleanup(lab.cgroup, lab.pin_dir)
    assert lab.pins() == []
    assert network_state(pod) == before


@pytest.mark.parametrize("more", [-8, 0, 40])
def test_longer_and_shorter_records_are_read(lab: Lab, pod: Pod, more: int) -> None:
    """Their beginning means the same in every version."""
    before = network_state(pod)
    agent = Agent(lab, pod, "old")
    agent.kill()
    mine = loader.layout_dir(lab.pin_dir)
    other = lab.pin_dir / f"v{OTHER}"
    other.mkdir()
    record = adopt_records(lab)
    for path in mine.iterdir():
        if path.name != "map_slots":
            path.rename(other / path.name)
    size = maps.RECORD_SIZE + more
    fd = bpf.map_create("slots", MapInfo(MapType.HASH, 4, size, 16, 0))
    bpf.map_update(fd, maps.u32(0), record[:size].ljust(size, b"\xaa"))
    bpf.pin(fd, other / "map_slots")
    os.close(fd)
    (mine / "map_slots").unlink()
    new = adopt(lab)
    new.prune([])
    assert network_state(pod) == before
    assert not other.exists()
    new.close()


def adopt_records(lab: Lab) -> bytes:
    """The pod's record as the killed agent left it."""
    fd = bpf.pinned(loader.layout_dir(lab.pin_dir) / "map_slots")
    assert fd is not None
    raw = bpf.map_lookup(fd, maps.u32(0), maps.RECORD_SIZE)
    os.close(fd)
    assert raw is not None
    return raw
