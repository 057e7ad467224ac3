"""As many pods as a node may have, and churn: nothing is left of pods that are gone.

`AMBIENT_TEST_CHURN=10000` in the environment: so many pods come and go (some minutes).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from ebpf import bpf, maps
from ebpf.capture import Capture, PodNetwork
from ebpf.errors import CaptureError
from ebpf.ledger import Ledger
from ebpf.listeners import open_listeners
from ebpf.maps import MAX_PODS, NO_FLAGS, SavedSysctls
from ebpf.pairs import Backend, Endpoint, PairKey
from tests.netns.capture.lab import Lab, sh, wait_for
from tests.support.namespaces import OWN, new_namespace

pytestmark = pytest.mark.root

CHURN = int(os.environ.get("AMBIENT_TEST_CHURN", "200"))
OF_PODS = ("pods", "slots", "addresses", "exempt", "listeners", "direct_pairs", "direct_conns")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def capture(lab: Lab) -> Iterator[Capture]:
    made = Capture.open(
        cgroup=lab.cgroup, pin_dir=lab.pin_dir, agent_pid=os.getpid(), cache_dir=lab.cache_dir
    )
    yield made
    made.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


def entries(capture: Capture) -> dict[str, int]:
    kernel = capture._kernel
    return {
        name: sum(1 for _ in bpf.map_keys(kernel.maps[name], maps.LAYOUT[name].key_size))
        for name in OF_PODS
        if name != "listeners"  # an array: its keys are always there
    }


def listening(capture: Capture) -> int:
    fd = capture._kernel.maps["listeners"]
    return sum(bpf.map_lookup(fd, maps.u32(index), 8) is not None for index in range(4 * maps.KINDS))


def test_node_full_of_pods_fits_the_maps_and_one_more_is_refused(lab: Lab, capture: Capture) -> None:
    ledger = Ledger(capture._kernel)
    listeners = open_listeners(lab.pods[0].fd)
    node = (ip_address("169.254.1.1"), ip_address("fd77:1::1"))
    records = []
    for number in range(MAX_PODS):
        record, _ = ledger.claim(1 << 40 | number, number, NO_FLAGS, SavedSysctls())
        own = (ip_address((10 << 24) + number), ip_address((0xFD77 << 112) + number))
        ledger.set_entries("addresses", record.slot, maps.address_entries(record.slot, own, node))
        ledger.set_entries("exempt", record.slot, maps.exempt_entries(record.slot, (80, 443), (5432,)))
        ledger.set_listeners(record.slot, listeners)
        ledger.mark_connections(record)
        records.append(record)
    found = entries(capture)
    assert (found["pods"], found["slots"]) == (MAX_PODS, MAX_PODS)
    assert (found["addresses"], found["exempt"]) == (4 * MAX_PODS, 3 * MAX_PODS)
    with pytest.raises(CaptureError, match="no_free_slot"):
        ledger.claim(1 << 41, 1, NO_FLAGS, SavedSysctls())
    for record in records:
        ledger.spare_connections(record)
        ledger.erase(record)
    listeners.close()
    assert set(entries(capture).values()) == {0}
    assert listening(capture) == 0


def test_pods_that_come_and_go_leave_nothing(lab: Lab, capture: Capture) -> None:
    """Each is part of pairs of the direct path while it is there."""
    stays = capture.enrol(lab.pods[0].network())
    before = (len(os.listdir("/proc/self/fd")), entries(capture), listening(capture), pins(capture))
    began, cpu = time.monotonic(), time.process_time()
    for _ in range(CHURN):
        fd = new_namespace()
        pod = capture.enrol(PodNetwork(fd, (OWN,), exempt_inbound_ports=frozenset({80})))
        address = Endpoint(OWN, 80)
        capture.direct.set_pairs({PairKey(stays.slot, address): Backend(pod.slot, address)})
        assert capture.withdraw(pod)
        os.close(fd)
    took, cpu = time.monotonic() - began, time.process_time() - cpu
    print(f"{CHURN} pods in {took:.1f} s: {CHURN / took:.0f}/s, {CHURN / cpu:.0f} in a second of CPU time")
    after = (len(os.listdir("/proc/self/fd")), entries(capture), listening(capture), pins(capture))
    assert after == before
    capture.withdraw(stays)


def test_a_signal_while_a_program_is_loaded_costs_no_pod(capture: Capture) -> None:
    """The kernel gives up loading then, and says EAGAIN."""
    seen: list[int] = []
    former = signal.signal(signal.SIGPROF, lambda *_: seen.append(1))
    signal.setitimer(signal.ITIMER_PROF, 0.004, 0.004)
    try:
        while len(seen) < 40:
            os.close(capture._kernel.load("steer", slot=0))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)


def pins(capture: Capture) -> list[str]:
    return sorted(path.name for path in capture._kernel.directory.iterdir())


def test_namespace_of_a_deleted_pod_is_freed(lab: Lab, capture: Capture) -> None:
    """Its link's other end on the node goes with it."""
    name, link = f"{lab.node}-gone", "gone0"
    sh(f"ip netns add {name}; ip -n {lab.node} link add {link} type veth peer name eth0 netns {name}")
    sh(f"ip -n {name} address add {OWN}/32 dev eth0; ip -n {name} link set eth0 up")
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    pod = capture.enrol(PodNetwork(fd, (OWN,)))
    os.close(fd)
    sh(f"ip netns del {name}")
    assert link in sh(f"ip -n {lab.node} -o link")
    began = time.monotonic()
    assert capture.withdraw(pod)
    wait_for(lambda: link not in sh(f"ip -n {lab.node} -o link"), "the namespace is freed")
    print(f"freed after {time.monotonic() - began:.2f} s")
