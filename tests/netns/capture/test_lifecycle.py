"""Enrolling and withdrawing: what a pod has, what is put back, what is refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from types import NoneType

import pytest

from ebpf import bpf, loader, netlink, netns, routes, rules
from ebpf.capture import Capture
from ebpf.errors import CaptureError, CaptureReason
from ebpf.netlink import Netlink, Request
from tests.netns.capture import apps
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import App, Lab, Pod, network_state, sh, wait_for
from tests.netns.capture.opening import (
    ExtraPod,
    own_descriptors,
    refuse,
    set_sysctl,
    to_neighbour,
)

pytestmark = pytest.mark.root

versions = pytest.mark.parametrize("version", [4, 6])


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
    monkeypatch.setattr(fresh._kernel, "attach_pod", refuse)
    with pytest.raises(CaptureError):
        fresh.enrol(pod.network())
    monkeypatch.undo()
    assert network_state(pod) == before
    assert own_descriptors() == descriptors
    assert fresh.prune([]) == []
    assert fresh.enrol(pod.network()).slot == 0


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
