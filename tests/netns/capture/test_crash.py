"""An agent that is killed between any two system calls leaves nothing a new one cannot put right."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from ebpf import bpf, compiler, loader, netlink
from ebpf.capture import Capture
from tests.netns.capture.lab import Lab, Pod, network_state

pytestmark = pytest.mark.root


def attach(lab: Lab) -> Capture:
    return Capture.attach(compiler.shipped(), lab.cgroup, lab.pin_dir)


def in_child(work: Callable[[], None]) -> bool:
    """Run in a child process; whether it came to the end (and was not killed)."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return not os.WIFSIGNALED(status)


def die_after(calls: int) -> None:
    """Kill this process at its (n+1)th request to the kernel."""
    left = itertools.count(calls, -1)

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return call

    bpf._bpf = counting(bpf._bpf)
    netlink._AT_ONCE = 1  # type: ignore[misc]  # also between the requests of a batch
    for name in ("_batch", "_request"):
        setattr(netlink.Netlink, name, counting(getattr(netlink.Netlink, name)))


def assert_new_agent_puts_it_right(lab: Lab, before: str, pod: Pod, step: int) -> None:
    new = attach(lab)
    new.prune([])
    assert network_state(pod) == before, f"killed after {step} calls"
    for name in ("pods", "slots", "addresses", "exempt"):
        info = bpf.map_info(new._kernel.maps[name])
        assert list(bpf.map_keys(new._kernel.maps[name], info.key_size)) == [], f"{name}, {step} calls"
    assert list(new._kernel.attached_slots()) == []
    new.close()


def test_killed_while_enrolling(lab: Lab) -> None:
    pod = lab.pods[0]
    before = network_state(pod)

    def work(step: int) -> Callable[[], None]:
        def enrol() -> None:
            capture = attach(lab)
            network = pod.network(exempt_inbound_ports=frozenset({80}))
            die_after(step)
            capture.enrol(network)

        return enrol

    for step in itertools.count():
        finished = in_child(work(step))
        assert_new_agent_puts_it_right(lab, before, pod, step)
        if finished:
            break
    assert step > 15
    Capture.cleanup(lab.cgroup, lab.pin_dir)


def test_killed_while_withdrawing(lab: Lab) -> None:
    pod = lab.pods[0]
    before = network_state(pod)

    def work(step: int) -> Callable[[], None]:
        def withdraw() -> None:
            capture = attach(lab)
            enrolled = capture.enrol(pod.network())
            die_after(step)
            capture.withdraw(enrolled)

        return withdraw

    for step in itertools.count():
        finished = in_child(work(step))
        assert_new_agent_puts_it_right(lab, before, pod, step)
        if finished:
            break
    assert step > 10
    Capture.cleanup(lab.cgroup, lab.pin_dir)


def test_killed_while_cleaning_up(lab: Lab) -> None:
    pod = lab.pods[0]
    before = network_state(pod)

    def enrol() -> None:
        attach(lab).enrol(pod.network())

    def work(step: int) -> Callable[[], None]:
        def cleanup() -> None:
            die_after(step)
            Capture.cleanup(lab.cgroup, lab.pin_dir)

        return cleanup

    for step in itertools.count(0, 3):
        assert in_child(enrol)
        finished = in_child(work(step))
        Capture.cleanup(lab.cgroup, lab.pin_dir)
        assert lab.pins() == [], f"killed after {step} calls"
        assert network_state(pod) == before, f"killed after {step} calls"
        if finished:
            break
    assert not loader.layout_dir(lab.pin_dir).exists()
