"""Enrolling, withdrawing, dying, coming back, cleaning up."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import NoneType

import pytest

from ebpf import bpf, loader, maps, netlink, netns, routes, rules, selftest
from ebpf.capture import Capture
from ebpf.errors import CaptureError, CaptureReason
from ebpf.kinds import AttachType, MapInfo
from ebpf.netlink import Netlink, Request
from tests.netns.capture import apps
from tests.netns.capture.agent import Agent
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import App, Lab, Pod, network_state, sh, wait_for

pytestmark = pytest.mark.root

versions = pytest.mark.parametrize("version", [4, 6])
BPF_KINDS = ("bpf-map", "bpf-prog", "bpf_link")


def open_capture(lab: Lab, cgroup: Path | None = None, pin_dir: Path | None = None) -> Capture:
    return Capture.open(
        cgroup=cgroup or lab.cgroup,
        pin_dir=pin_dir or lab.pin_dir,
        agent_pid=os.getpid(),
        cache_dir=lab.cache_dir,
    )


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


def to_neighbour(lab: Lab, version: int = 4) -> Dial:
    return Dial((lab.pods[1].own(version), 8080))


def own_descriptors() -> list[str]:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue
    return sorted(links)


def set_sysctl(pod: Pod, name: str, value: int) -> None:
    sh(f"ip netns exec {pod.name} sysctl -qw {name}={value}")


def test_withdrawing_restores_rules_routes_and_sysctls_exactly(fresh: Capture, pod: Pod) -> None:
    set_sysctl(pod, "net.ipv4.fwmark_reflect", 1)
    try:
        before = network_state(pod)
        enrolled = fresh.enrol(pod.network())
        during = network_state(pod)
        assert "lookup 15001" in during
        assert "net.ipv4.tcp_fwmark_accept = 1" in during
        fresh.enrol(pod.network())
        fresh.withdraw(enrolled)
        assert network_state(pod) == before
        fresh.withdraw(enrolled)
        assert network_state(pod) == before
    finally:
        set_sysctl(pod, "net.ipv4.fwmark_reflect", 0)


def test_enrolling_leaves_established_connections_alone(
    lab: Lab, fresh: Capture, pod: Pod, client: App
) -> None:
    neighbour = lab.app(lab.pods[1])
    for version in (4, 6):
        client.call(apps.hold, f"out{version}", to_neighbour(lab, version))
        neighbour.call(apps.hold, f"in{version}", Dial((pod.own(version), 8080)))
        client.call(apps.ask_held, f"out{version}")
        neighbour.call(apps.ask_held, f"in{version}")
    enrolled = fresh.enrol(pod.network())
    lab.serve_agent(enrolled)
    for version in (4, 6):
        assert client.call(apps.exchange, to_neighbour(lab, version)).tag == "outbound"
        assert client.call(apps.ask_held, f"out{version}").tag == f"app-{lab.pods[1].name}"
        assert neighbour.call(apps.ask_held, f"in{version}").tag == f"app-{pod.name}"
    fresh.withdraw(enrolled)
    for version in (4, 6):
        assert client.call(apps.ask_held, f"out{version}").tag == f"app-{lab.pods[1].name}"
        assert neighbour.call(apps.ask_held, f"in{version}").tag == f"app-{pod.name}"
    lab.stop_agent()


def test_withdrawn_pod_is_left_alone(lab: Lab, fresh: Capture, pod: Pod, client: App) -> None:
    neighbour = lab.app(lab.pods[1])
    fresh.withdraw(fresh.enrol(pod.network()))
    for version in (4, 6):
        assert client.call(apps.exchange, to_neighbour(lab, version)).tag == f"app-{lab.pods[1].name}"
        answer = neighbour.call(apps.exchange, Dial((pod.own(version), 8080)))
        assert answer.tag == f"app-{pod.name}"


def test_enrolling_again_keeps_slot_and_listeners(fresh: Capture, pod: Pod) -> None:
    first = fresh.enrol(pod.network())
    again = fresh.enrol(pod.network(bypass_inbound=True))
    assert (again.slot, again.cookie) == (first.slot, first.cookie)
    assert again.outbound is first.outbound
    assert again.network.bypass_inbound


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


class ExtraPod(Pod):
    """A namespace that goes away during the test; nothing but `lo` in it."""

    def __init__(self, lab: Lab, v6: bool = True) -> None:
        super().__init__(len(lab.pods))
        self._with_v6 = v6

    def __enter__(self) -> ExtraPod:
        sh(f"ip netns add {self.name}; ip -n {self.name} link set lo up")
        sh(f"ip -n {self.name} addr add {self.v4}/32 dev lo")
        if self._with_v6:
            sh(f"ip -n {self.name} addr add {self.v6}/128 dev lo nodad")
        self.fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        sh(f"ip netns del {self.name}")


def test_withdrawing_a_pod_whose_namespace_lost_its_name(lab: Lab, fresh: Capture) -> None:
    with ExtraPod(lab) as extra:
        enrolled = fresh.enrol(extra.network())
    fresh.withdraw(enrolled)
    assert enrolled.outbound.fileno() == -1
    assert fresh.enrol(lab.pods[0].network()).slot == enrolled.slot


def test_pod_without_ipv6_is_captured_and_restored(lab: Lab, fresh: Capture) -> None:
    with ExtraPod(lab, v6=False) as extra:
        set_sysctl(extra, "net.ipv6.conf.all.disable_ipv6", 1)
        before = network_state(extra)
        enrolled = fresh.enrol(extra.network())
        app = lab.app(extra)
        lab.servers.serve(enrolled.outbound, "v4only")
        assert app.call(apps.exchange, Dial(("10.96.0.10", 443))).tag == "v4only"
        assert app.call(apps.outcome, Dial(("fd00:96::10", 443))) in ("ENETUNREACH", "EADDRNOTAVAIL")
        fresh.withdraw(enrolled)
        assert network_state(extra) == before
        lab.servers.forget("v4only")


def test_address_that_appears_after_enrolment_does_not_let_connections_out(lab: Lab, fresh: Capture) -> None:
    with ExtraPod(lab, v6=False) as extra:
        enrolled = fresh.enrol(extra.network())
        app = lab.app(extra)
        lab.servers.serve(enrolled.outbound, "late")
        sh(f"ip -n {extra.name} addr add {extra.v6}/128 dev lo nodad")
        sh(f"ip -n {extra.name} -6 route add default dev lo")
        dial = Dial(("fd00:96::10", 443))
        assert app.call(apps.outcome, dial) == "ENETUNREACH"
        fresh.enrol(extra.network())
        assert app.call(apps.exchange, dial).tag == "late"
        lab.servers.forget("late")


def test_changed_addresses_are_taken_over_by_enrolling_again(lab: Lab, fresh: Capture) -> None:
    with ExtraPod(lab) as extra:
        enrolled = fresh.enrol(extra.network())
        app = lab.app(extra)
        lab.servers.serve(enrolled.outbound, "moved")
        sh(f"ip -n {extra.name} addr add 10.77.9.9/32 dev lo")
        sh(f"ip -n {extra.name} addr del {extra.v4}/32 dev lo")
        fresh.enrol(extra.network())
        assert IPv4Address("10.77.9.9") in extra.network().addresses
        assert app.call(apps.exchange, Dial(("10.96.0.10", 443))).client_local[0] == "10.77.9.9"
        assert app.call(apps.exchange, Dial((extra.v4, 443))).tag == "moved"
        lab.servers.forget("moved")


def test_failed_enrolment_leaves_nothing(lab: Lab, fresh: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = lab.pods[0]
    before, descriptors = network_state(pod), own_descriptors()
    monkeypatch.setattr(fresh._kernel, "attach_pod", _refuse)
    with pytest.raises(CaptureError):
        fresh.enrol(pod.network())
    monkeypatch.undo()
    assert network_state(pod) == before
    assert own_descriptors() == descriptors
    assert fresh.prune([]) == []
    assert fresh.enrol(pod.network()).slot == 0


def _refuse(slot: int, netns_fd: int) -> None:
    raise CaptureError(CaptureReason.ATTACH_FAILED, "refused by the test")


def test_namespace_with_lo_down_is_refused_and_left_as_it_was(lab: Lab, fresh: Capture) -> None:
    with ExtraPod(lab) as extra:
        network = extra.network()
        sh(f"ip -n {extra.name} link set lo down")
        before = network_state(extra)
        with pytest.raises(CaptureError, match="set lo up in the pod") as refused:
            fresh.enrol(network)
        assert refused.value.reason is CaptureReason.ROUTES_FAILED
        assert network_state(extra) == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"addresses": ()}, CaptureReason.NO_ADDRESS),
        ({"exempt_inbound_ports": frozenset({0})}, CaptureReason.UNSUPPORTED),
        ({"netns_fd": 99999}, CaptureReason.NETNS_UNUSABLE),
    ],
)
def test_unusable_pod_is_refused(
    fresh: Capture, pod: Pod, changes: dict[str, object], reason: CaptureReason
) -> None:
    with pytest.raises(CaptureError) as refused:
        fresh.enrol(replace(pod.network(), **changes))  # type: ignore[arg-type]
    assert refused.value.reason is reason
    assert "\n" not in str(refused.value)


def test_fifty_enrolments_leak_nothing(lab: Lab, fresh: Capture, pod: Pod) -> None:
    fresh.withdraw(fresh.enrol(pod.network()))
    before, pins = own_descriptors(), sorted(loader.layout_dir(lab.pin_dir).iterdir())
    for _ in range(50):
        fresh.withdraw(fresh.enrol(pod.network()))
    assert own_descriptors() == before
    assert sorted(loader.layout_dir(lab.pin_dir).iterdir()) == pins
    for name, key_size in (("pods", 8), ("slots", 4), ("addresses", 20), ("exempt", 8)):
        assert list(bpf.map_keys(fresh._kernel.maps[name], key_size)) == []


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


def test_own_addresses_are_those_of_global_scope(lab: Lab, pod: Pod) -> None:
    assert netns.addresses(pod.fd) == (IPv4Address(pod.v4), IPv6Address(pod.v6))


def test_work_inside_a_namespace_comes_back(pod: Pod) -> None:
    home = os.stat("/proc/thread-self/ns/net").st_ino
    with netns.inside(pod.fd):
        assert os.stat("/proc/thread-self/ns/net").st_ino == netns.inode(pod.fd)
    assert os.stat("/proc/thread-self/ns/net").st_ino == home
    with pytest.raises(OSError, match="inside"), netns.inside(pod.fd):
        raise OSError("inside")
    assert os.stat("/proc/thread-self/ns/net").st_ino == home
    assert netns.find(netns.inode(pod.fd), netns.cookie(pod.fd) + 1) is None


def test_leftovers_of_other_self_tests_in_use_are_kept(lab: Lab) -> None:
    busy = lab.cgroup / "ambientlite-selftest-2"
    busy.mkdir()
    app = lab.app(lab.pods[1], busy)
    assert selftest.remove_leftovers(lab.cgroup) == []
    app.close()
    lab.forget_app(app)
    assert selftest.remove_leftovers(lab.cgroup) == [str(busy)]


def test_reverting_what_was_never_applied_is_fine(pod: Pod) -> None:
    before = network_state(pod)
    with netns.inside(pod.fd), Netlink() as link:
        routes.revert(link, rules.listed(link))
    assert network_state(pod) == before


def test_nothing_is_changed_that_is_as_it_should_be(
    fresh: Capture, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every change waits for the one lock that the kernel has for all namespaces' networks."""
    changes: list[Request] = []
    really = Netlink.batch

    def recorded(link: Netlink, requests: Sequence[Request]) -> list[OSError | None]:
        changes.extend(requests)
        return really(link, requests)

    monkeypatch.setattr(Netlink, "batch", recorded)
    before = network_state(pod)
    enrolled = fresh.enrol(pod.network())
    plan = routes.plan(enrolled.network.addresses)
    assert len(changes) == len(plan.routes) + len(plan.rules) == 4
    changes.clear()
    fresh.enrol(pod.network(exempt_inbound_ports=frozenset({80})))
    assert len(changes) == len(plan.routes)  # their source may be another one
    changes.clear()
    assert fresh.withdraw(enrolled)
    assert len(changes) == 4
    assert network_state(pod) == before


def test_changes_made_together_are_made_in_order_and_each_has_its_outcome(pod: Pod) -> None:
    rule = rules.addition(rules.body(socket.AF_INET, routes.Action.UNREACHABLE, {rules.PRIORITY: 4321}))
    gone = rules.removal(rules.body(socket.AF_INET, routes.Action.UNREACHABLE, {rules.PRIORITY: 4322}))
    before = network_state(pod)
    with netns.inside(pod.fd), Netlink() as link:
        outcome = link.batch([rule, gone, rule, *[gone] * 200, rules.removal(rule.body)])
        assert [type(each) for each in outcome[:3]] == [NoneType, FileNotFoundError, FileExistsError]
        assert [netlink.is_gone(each) for each in outcome[3:]] == [True] * 200 + [False]
        assert outcome[-1] is None
    assert network_state(pod) == before


def test_agents_own_namespace_is_refused(fresh: Capture, pod: Pod) -> None:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with pytest.raises(CaptureError, match="hostNetwork"):
            fresh.enrol(pod.network(netns_fd=home))
    finally:
        os.close(home)


def test_address_under_duplicate_address_detection_is_told_as_such(lab: Lab, fresh: Capture) -> None:
    """Enrolment fails at once, names the reason, and works once the address is settled."""
    with ExtraPod(lab, v6=False) as extra:
        sh(f"ip -n {extra.name} link add eth0 type veth peer name eth1")
        sh(f"ip -n {extra.name} link set eth0 up; ip -n {extra.name} link set eth1 up")
        sh(f"ip -n {extra.name} addr add {extra.v6}/128 dev eth0")
        with pytest.raises(CaptureError, match="duplicate address detection"):
            fresh.enrol(extra.network())
        wait_for(lambda: "tentative" not in sh(f"ip -n {extra.name} addr"), "the address is settled")
        assert fresh.enrol(extra.network()).slot == 0


def test_application_on_a_listeners_port_is_not_in_the_way(lab: Lab, fresh: Capture, pod: Pod) -> None:
    neighbour = lab.app(lab.pods[1])
    with pod.listen(("::", 15008)), pod.listen(("0.0.0.0", 15001)):
        enrolled = fresh.enrol(pod.network())
        lab.serve_agent(enrolled)
        assert neighbour.call(apps.exchange, Dial((pod.own(4), 15008))).tag == "hbone"
        lab.stop_agent()
        fresh.withdraw(enrolled)


def test_listeners_leave_their_ports_to_connections_from_inside(
    lab: Lab, fresh: Capture, pod: Pod, client: App
) -> None:
    fresh.enrol(pod.network())
    for port in (15001, 15006, 15008):
        assert client.call(apps.outcome, Dial(("127.0.0.1", port))) == "ECONNREFUSED"
        assert client.call(apps.outcome, Dial((pod.v4, port))) == "ECONNREFUSED"


@versions
def test_captured_connection_can_be_reset_after_withdrawal(
    lab: Lab, fresh: Capture, pod: Pod, client: App, version: int
) -> None:
    enrolled = fresh.enrol(pod.network())
    lab.serve_agent(enrolled)
    client.call(apps.hold, "captured", to_neighbour(lab, version))
    fresh.withdraw(enrolled)
    lab.servers.reset("outbound")
    assert client.call(apps.end_held, "captured") == "ECONNRESET"
    lab.stop_agent()


def test_pods_may_be_enrolled_and_withdrawn_from_several_threads(lab: Lab, fresh: Capture) -> None:
    before = [network_state(pod) for pod in lab.pods]
    networks = [pod.network() for pod in lab.pods] * 4
    with ThreadPoolExecutor(8) as threads:
        enrolled = list(threads.map(fresh.enrol, networks))
        assert {pod.slot for pod in enrolled} == {0, 1, 2}
        assert all(
            pod.cookie == netns.cookie(network.netns_fd)
            for pod, network in zip(enrolled, networks, strict=True)
        )
        list(threads.map(fresh.withdraw, enrolled))
    assert [network_state(pod) for pod in lab.pods] == before
