"""The pods' state machine: add, keep, delete, snapshot, pending, as Istio's CNI agent expects them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from ebpf.capture import PodNetwork
from ebpf.errors import CaptureError, CaptureReason
from hbone.engine import ListenerKind
from hbone.spiffe import SpiffeId
from tests.unit.ztunnel.doubles import FakeCapture, Recorder
from ztunnel.enrol.pods import FOLLOW, RELEASE, RETRY, Pods
from ztunnel.enrol.settings import CaptureSettings
from ztunnel.enrol.zds import Add, Delete, Keep, ProtocolError, Snapshot
from ztunnel.identity.manager import IdentityManager

CERTIFICATE_WAIT = 5.0
CLEAR = [ListenerKind.OUTBOUND, ListenerKind.INBOUND]
NO_SLOT = CaptureError(CaptureReason.NO_FREE_SLOT, "no room for another pod", "raise the limit")


class Setup:
    def __init__(self, capture: FakeCapture, engine: Recorder, folder: Path) -> None:
        self.capture, self.engine, self.folder = capture, engine, folder
        numbers = iter(range(1, 1000))
        self.certified = trio.Event()
        self.certified.set()
        self.identities: Any = Recorder(
            IdentityManager,
            hold=lambda **_: next(numbers),
            ready=lambda **_: self.certified.is_set(),
            arrival=self._arrival,
        )
        self.domains: dict[str, str] = {}
        self.addresses: tuple[Any, ...] = (ip_address("10.0.0.1"),)
        self.pods = Pods(
            capture=capture,
            engine=engine,
            identities=self.identities,
            network_of=self._network_of,
            trust_domain_of=lambda namespace, name, account: self.domains.get(name, "cluster.local"),
            certificate_wait=CERTIFICATE_WAIT,
        )
        self.pods.connected()

    def _network_of(self, fd: int, settings: CaptureSettings) -> PodNetwork:
        return PodNetwork(fd, self.addresses, exempt_inbound_ports=settings.exclude_inbound)

    async def _arrival(self, identity: SpiffeId, timeout: float) -> bool:
        with trio.move_on_after(timeout):
            await self.certified.wait()
        return self.certified.is_set()

    def kinds(self) -> list[ListenerKind]:
        """What the engine was told to listen for, in order."""
        return [call["kind"] for call in self.engine.named("listen")]

    def add(self, uid: str, netns: str = "", settings: CaptureSettings | None = None) -> Add:
        """A request with a descriptor of its own; equal `netns` means the same namespace."""
        path = self.folder / (netns or uid)
        path.touch()
        return Add(uid, uid, "shop", f"sa-{uid}", os.open(path, os.O_RDONLY), settings)


@pytest.fixture
def setup(capture: FakeCapture, engine: Recorder, tmp_path: Path) -> Iterator[Setup]:
    before = len(os.listdir("/proc/self/fd"))
    setup = Setup(capture, engine, tmp_path)
    yield setup
    for add in setup.pods.pending:
        os.close(add.netns_fd)
    # Every descriptor that came with a request has been closed or is held for a pending pod.
    assert len(os.listdir("/proc/self/fd")) == before


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what a thread does, which virtual time does not wait for."""
    with trio.fail_after(3600):
        while not condition():
            await trio.sleep(0.1)


def uids(setup: Setup) -> list[str]:
    return sorted(pod.uid for pod in setup.pods)


@pytest.mark.trio
async def test_add_captures_listens_and_warms_the_certificate_before_the_ack(setup: Setup) -> None:
    assert await setup.pods.handle(setup.add("a")) == ""
    (pod,) = setup.pods
    listens = setup.engine.named("listen")
    assert [call["kind"] for call in listens] == [
        ListenerKind.OUTBOUND,
        ListenerKind.INBOUND,
        ListenerKind.HBONE,
    ]
    assert {call["tag"] for call in listens} == {pod.tag}
    assert [call["identity"] for call in listens] == [0, 0, pod.identity_number]
    assert setup.identities.named("hold") == [
        {"owner": "a", "identity": SpiffeId("cluster.local", "shop", "sa-a")}
    ]
    assert setup.pods.by_tag(pod.tag) is pod


@pytest.mark.trio
async def test_tunnels_wait_for_the_certificate(setup: Setup, autojump_clock: MockClock) -> None:
    """Those that came to a listener while no agent was there would be turned away by the next one otherwise."""
    setup.certified = trio.Event()
    await setup.pods.handle(setup.add("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.pods.accept_tunnels)
        await trio.sleep(CERTIFICATE_WAIT / 2)
        assert setup.kinds() == CLEAR
        setup.certified.set()
        await trio.testing.wait_all_tasks_blocked()
        assert setup.kinds() == [*CLEAR, ListenerKind.HBONE]
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_tunnels_are_accepted_when_the_certificate_is_late(
    setup: Setup, autojump_clock: MockClock
) -> None:
    """Their senders are to hear why they fail."""
    setup.certified = trio.Event()
    await setup.pods.handle(setup.add("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.pods.accept_tunnels)
        await trio.sleep(CERTIFICATE_WAIT + 1)
        assert setup.kinds() == [*CLEAR, ListenerKind.HBONE]
        nursery.cancel_scope.cancel()


@pytest.mark.trio
@pytest.mark.parametrize("end", ["deleted", "draining"])
async def test_no_tunnels_for_a_pod_that_went_before_its_certificate_came(
    setup: Setup, end: str, autojump_clock: MockClock
) -> None:
    setup.certified = trio.Event()
    await setup.pods.handle(setup.add("a"))
    await setup.pods.handle(Snapshot())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.pods.accept_tunnels)
        await trio.testing.wait_all_tasks_blocked()
        if end == "deleted":
            await setup.pods.handle(Delete("a"))
        else:
            setup.pods.stop_accepting()
        setup.certified.set()
        await trio.testing.wait_all_tasks_blocked()
        assert setup.kinds() == CLEAR
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_pod_that_waits_for_its_certificate_may_become_another(
    setup: Setup, autojump_clock: MockClock
) -> None:
    setup.certified = trio.Event()
    await setup.pods.handle(setup.add("a"))
    (pod,) = setup.pods
    setup.domains["a"] = "corp.example"
    setup.pods.refresh_identities()
    assert setup.engine.named("unlisten") == []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.pods.accept_tunnels)
        setup.certified.set()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert setup.kinds() == [*CLEAR, ListenerKind.HBONE]
    assert setup.engine.named("listen")[-1]["identity"] == pod.identity_number


@pytest.mark.trio
async def test_adding_the_same_pod_twice_starts_it_once(setup: Setup) -> None:
    await setup.pods.handle(setup.add("a"))
    await setup.pods.handle(setup.add("a"))
    assert setup.capture.slots == 1
    assert setup.pods.started == 1


@pytest.mark.trio
async def test_other_settings_of_a_running_pod_take_effect_in_place(setup: Setup) -> None:
    await setup.pods.handle(setup.add("a", settings=CaptureSettings(frozenset({80}))))
    (pod,) = setup.pods
    assert pod.enrolled.network.exempt_inbound_ports == {80}
    assert await setup.pods.handle(setup.add("a", settings=CaptureSettings(frozenset({90})))) == ""
    assert await setup.pods.handle(setup.add("a")) == ""  # one who does not tell changes nothing
    assert list(setup.pods) == [pod]
    assert pod.enrolled.network.exempt_inbound_ports == {90}
    assert setup.pods.started == 1


@pytest.mark.trio
async def test_settings_that_cannot_take_effect_are_reported_and_tried_again(setup: Setup) -> None:
    await setup.pods.handle(setup.add("a"))
    (pod,) = setup.pods
    setup.capture.fail = NO_SLOT
    wanted = CaptureSettings(frozenset({90}))
    assert "no room" in await setup.pods.handle(setup.add("a", settings=wanted))
    assert pod.enrolled.network.exempt_inbound_ports == frozenset()
    setup.capture.fail = None
    assert await setup.pods.handle(setup.add("a", settings=wanted)) == ""
    assert pod.enrolled.network.exempt_inbound_ports == {90}


@pytest.mark.trio
async def test_another_namespace_moves_the_pod_there(setup: Setup) -> None:
    await setup.pods.handle(setup.add("a", "first"))
    (old,) = setup.pods
    await setup.pods.handle(setup.add("a", "second"))
    (new,) = setup.pods
    assert new.tag != old.tag
    assert setup.engine.named("drain") == [{"tag": old.tag}]
    assert list(setup.capture.live) == [2]


@pytest.mark.trio
async def test_a_pod_that_cannot_start_is_reported_kept_and_tried_again(
    setup: Setup, autojump_clock: MockClock
) -> None:
    setup.capture.fail = NO_SLOT
    error = await setup.pods.handle(setup.add("a"))
    assert "no_free_slot: no room for another pod; raise the limit" in error
    assert [add.uid for add in setup.pods.pending] == ["a"]
    setup.capture.fail = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.pods.retry)
        await until(lambda: not setup.pods.pending)
        nursery.cancel_scope.cancel()
    assert trio.current_time() >= RETRY
    assert (uids(setup), setup.pods.pending) == (["a"], [])


@pytest.mark.trio
async def test_deleting_a_pending_pod_ends_the_tries(setup: Setup, autojump_clock: MockClock) -> None:
    await setup.pods.handle(Snapshot())
    setup.capture.fail = NO_SLOT
    await setup.pods.handle(setup.add("a"))
    assert await setup.pods.handle(Delete("a")) == ""
    setup.capture.fail = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.pods.retry)
        await trio.sleep(RETRY * 3)
        nursery.cancel_scope.cancel()
    assert uids(setup) == []


@pytest.mark.trio
async def test_a_second_add_replaces_the_pending_one(setup: Setup) -> None:
    setup.capture.fail = NO_SLOT
    await setup.pods.handle(setup.add("a", "old"))
    await setup.pods.handle(setup.add("a", "new"))
    assert len(setup.pods.pending) == 1


@pytest.mark.trio
async def test_listeners_that_cannot_be_opened_give_the_capture_back(setup: Setup, engine: Recorder) -> None:
    engine._answers["listen"] = OSError(24, "Too many open files")
    assert "Too many open files" in await setup.pods.handle(setup.add("a"))
    assert setup.capture.live == {}
    assert len(engine.named("remove_netns")) == 1
    assert setup.identities.named("release") == [{"owner": "a"}]


@pytest.mark.trio
async def test_delete_restores_the_pod_and_says_goaway(setup: Setup) -> None:
    await setup.pods.handle(setup.add("a"))
    (pod,) = setup.pods
    await setup.pods.handle(Snapshot())
    await setup.pods.handle(Delete("a"))
    assert setup.capture.live == {}
    assert setup.engine.named("drain") == [{"tag": pod.tag}]
    assert setup.engine.named("cut") == []
    assert setup.identities.named("release") == [{"owner": "a"}]
    assert setup.pods.by_tag(pod.tag) is None


@pytest.mark.trio
async def test_a_pod_that_left_is_known_until_its_last_relayed_connection_ends(
    setup: Setup, autojump_clock: MockClock
) -> None:
    await setup.pods.handle(setup.add("a"))
    (pod,) = setup.pods
    await setup.pods.handle(Snapshot())
    setup.capture.relays = True
    await setup.pods.handle(Delete("a"))
    assert setup.engine.named("drain") == [{"tag": pod.tag}]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.pods.release_left)
        await trio.sleep(RELEASE * 10)
        assert (list(setup.pods), list(setup.pods.leaving)) == ([], [pod])
        assert setup.pods.by_tag(pod.tag) is pod
        assert setup.engine.named("remove_netns") == []
        setup.capture.relays = False
        await until(lambda: not setup.pods.leaving)
        nursery.cancel_scope.cancel()
    assert setup.pods.by_tag(pod.tag) is None
    assert setup.engine.named("remove_netns") == [{"netns": pod.netns}]


@pytest.mark.trio
async def test_delete_of_an_unknown_pod_is_fine(setup: Setup) -> None:
    await setup.pods.handle(Snapshot())
    assert await setup.pods.handle(Delete("nobody")) == ""


@pytest.mark.trio
async def test_add_delete_add_leaves_one_pod(setup: Setup) -> None:
    await setup.pods.handle(Snapshot())
    for request in (setup.add("a"), Delete("a"), setup.add("a")):
        await setup.pods.handle(request)
    assert uids(setup) == ["a"]
    assert len(setup.capture.live) == 1


@pytest.mark.trio
async def test_a_new_connection_withdraws_what_its_snapshot_does_not_name(setup: Setup) -> None:
    for uid in ("kept", "added", "gone"):
        await setup.pods.handle(setup.add(uid))
    await setup.pods.handle(Snapshot())
    setup.pods.disconnected()
    assert uids(setup) == ["added", "gone", "kept"]
    setup.pods.connected()
    await setup.pods.handle(Keep("kept"))
    await setup.pods.handle(setup.add("added"))
    await setup.pods.handle(Keep("never seen"))
    await setup.pods.handle(Snapshot())
    assert uids(setup) == ["added", "kept"]


@pytest.mark.trio
async def test_delete_before_the_snapshot_takes_effect_at_the_snapshot(setup: Setup) -> None:
    await setup.pods.handle(setup.add("a"))
    await setup.pods.handle(Delete("a"))
    await setup.pods.handle(Snapshot())
    assert uids(setup) == []


@pytest.mark.trio
@pytest.mark.parametrize("request_", [Keep("a"), Snapshot()])
async def test_what_belongs_before_the_snapshot_is_an_error_after_it(setup: Setup, request_: Any) -> None:
    await setup.pods.handle(Snapshot())
    with pytest.raises(ProtocolError):
        await setup.pods.handle(request_)


@pytest.mark.trio
async def test_a_former_agents_pods_are_released_once_all_are_named(setup: Setup) -> None:
    await setup.pods.handle(setup.add("a"))
    assert setup.capture.pruned == []
    await setup.pods.handle(Snapshot())
    assert [len(keep) for keep in setup.capture.pruned] == [1]


@pytest.mark.trio
async def test_nothing_is_released_while_a_pod_is_pending(setup: Setup, autojump_clock: MockClock) -> None:
    """The pending pod may be captured by the former agent: it must not go out in clear."""
    setup.capture.fail = NO_SLOT
    await setup.pods.handle(setup.add("a"))
    await setup.pods.handle(Snapshot())
    assert setup.capture.pruned == []
    setup.capture.fail = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.pods.retry)
        await until(lambda: bool(setup.capture.pruned))
        nursery.cancel_scope.cancel()
    assert [len(keep) for keep in setup.capture.pruned] == [1]


@pytest.mark.trio
async def test_another_trust_domain_means_another_listener(setup: Setup) -> None:
    await setup.pods.handle(setup.add("a"))
    (pod,) = setup.pods
    hbone = pod.listeners[2]
    setup.domains["a"] = "corp.example"
    setup.pods.refresh_identities()
    assert pod.identity == SpiffeId("corp.example", "shop", "sa-a")
    assert setup.engine.named("unlisten") == [{"listener": hbone}]
    last = setup.engine.named("listen")[-1]
    assert (last["kind"], last["identity"]) == (ListenerKind.HBONE, pod.identity_number)
    setup.pods.refresh_identities()
    assert len(setup.engine.named("listen")) == 4


@pytest.mark.trio
async def test_an_address_that_comes_later_is_captured_too(setup: Setup, autojump_clock: MockClock) -> None:
    await setup.pods.handle(setup.add("a"))
    (pod,) = setup.pods
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setup.pods.follow_addresses)
        await trio.sleep(FOLLOW * 2.5)
        assert setup.capture.slots == 1
        setup.addresses = (ip_address("10.0.0.1"), ip_address("fd00::1"))
        await until(lambda: setup.capture.slots == 2)
        await until(lambda: pod.addresses == setup.addresses)
        nursery.cancel_scope.cancel()
    assert list(setup.pods) == [pod]


@pytest.mark.trio
async def test_a_defect_of_capture_makes_the_pod_pending_not_the_agent_dead(setup: Setup) -> None:
    setup.capture.fail = KeyError("slot")
    assert "cannot be enrolled" in await setup.pods.handle(setup.add("a"))
    assert [add.uid for add in setup.pods.pending] == ["a"]
