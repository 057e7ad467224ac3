"""The short cut past the host comes and goes with pods, veths and agents, and cleanup leaves nothing of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from ebpf import netns, veth
from ebpf.capture import Capture
from ebpf.veth import NoHostEndError
from tests.netns.capture.lab import PREFIX, Lab, sh
from tests.netns.direct.host import Host, add

pytestmark = pytest.mark.root


@pytest.fixture
def opened(lab: Lab) -> Iterator[Callable[[], Capture]]:
    """Opens captures, one agent's after the other's."""

    def one() -> Capture:
        return Capture.open(
            cgroup=lab.cgroup, pin_dir=lab.pin_dir, agent_pid=os.getpid(), cache_dir=lab.cache_dir
        )

    yield one
    Capture.cleanup(lab.cgroup, lab.pin_dir)


def test_withdrawal_takes_it_and_a_successor_keeps_it(
    opened: Callable[[], Capture], lab: Lab, host: Host
) -> None:
    former = opened()
    pods = [former.enrol(pod.network()) for pod in lab.pods]
    slots = [pod.slot for pod in pods]
    with netns.inside(host.fd):
        former.direct.redirect.enable()
        add(former.direct.redirect, lab, *slots)
    links = former._kernel.redirects()
    assert links.keys() == set(slots)
    former.withdraw(pods[2])
    assert former._kernel.redirects().keys() == set(slots[:2])
    entries = former.direct.redirect._entries()
    assert set(entries.values()) == set(slots[:2])
    former.close()

    successor = opened()
    redirect = successor.direct.redirect
    assert successor._kernel.redirects().keys() == set(slots[:2])
    successor.enrol(lab.pods[0].network())
    with netns.inside(host.fd):
        redirect.enable()
        add(redirect, lab, slots[0])
    assert redirect._entries() == entries
    assert redirect.sweep() == 1  # the pod that it did not enrol
    assert successor._kernel.redirects() == {slots[0]: links[slots[0]]}
    assert set(redirect._entries().values()) == {slots[0]}
    successor.close()


def test_an_agent_that_does_not_want_it_takes_it_away(
    opened: Callable[[], Capture], lab: Lab, host: Host
) -> None:
    former = opened()
    slot = former.enrol(lab.pods[0].network()).slot
    with netns.inside(host.fd):
        former.direct.redirect.enable()
        add(former.direct.redirect, lab, slot)
    former.close()
    successor = opened()
    assert successor._kernel.redirects().keys() == {slot}
    successor.direct.disable()
    assert successor._kernel.redirects() == {}
    assert successor.direct.redirect._entries() == {}
    successor.close()


def test_cleanup_leaves_nothing(opened: Callable[[], Capture], lab: Lab, host: Host) -> None:
    capture = opened()
    slot = capture.enrol(lab.pods[0].network()).slot
    with netns.inside(host.fd):
        capture.direct.redirect.enable()
        add(capture.direct.redirect, lab, slot)
    capture.close()
    pin = next(path for path in lab.pin_dir.glob("v*/redirect_*"))
    removed = Capture.cleanup(lab.cgroup, lab.pin_dir)
    assert str(pin) in removed
    assert lab.pins() == []


def test_an_interface_that_is_no_veth_has_no_end_on_the_host(lab: Lab, host: Host) -> None:
    name, address = f"{PREFIX}-bridged", "10.77.9.9"
    sh(f"ip netns add {name}")
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        sh(f"ip -n {name} link add eth0 type bridge; ip -n {name} addr add {address}/32 dev eth0")
        with netns.inside(host.fd):
            with pytest.raises(NoHostEndError, match="its interface is bridge"):
                veth.host_end(fd, [ip_address(address)])
            with pytest.raises(NoHostEndError, match="it does not have its addresses"):
                veth.host_end(fd, [ip_address("10.77.9.8")])
    finally:
        os.close(fd)
        sh(f"ip netns del {name}")


def test_a_veth_that_is_made_anew_is_found_again(opened: Callable[[], Capture], lab: Lab, host: Host) -> None:
    capture = opened()
    pod = lab.pods[2]
    enrolled = capture.enrol(pod.network())
    redirect = capture.direct.redirect
    with netns.inside(host.fd):
        redirect.enable()
        redirect.add(enrolled.slot, pod.fd, netns.addresses(pod.fd))
    assert redirect.is_known(enrolled.slot, netns.addresses(pod.fd))
    sh(f"ip -n {lab.node} link del v2")
    lab.join(2, pod)
    assert redirect.sweep() == 1
    assert not redirect.is_known(enrolled.slot, netns.addresses(pod.fd))
    with netns.inside(host.fd):
        redirect.add(enrolled.slot, pod.fd, netns.addresses(pod.fd))
        end = veth.host_end(pod.fd, [ip_address(pod.v4)])
    assert capture._kernel.redirects() == {enrolled.slot: end.ifindex}
    capture.close()
