"""The product's own capture and direct path on the benchmark's pods, without an agent."""

from __future__ import annotations

import os
import subprocess
from ipaddress import ip_address

from ebpf import compiler
from ebpf.capture import Capture, EnrolledPod, PodNetwork
from ebpf.pairs import Backend, Endpoint, PairKey
from ebpf.turbo import offsets
from tests.bench.capture.pods import ADDRESSES, Pods
from tests.bench.capture.session import PodSession
from tests.bench.namespace import SERVER
from tests.bench.testbed import SERVER_PORT


def attach(session: PodSession) -> Capture:
    """Capture in the pods' cgroup until the session ends."""
    pods = session.pods
    capture = Capture.attach(compiler.shipped(), pods.cgroup, pods.pin_dir)
    session.undo.callback(Capture.cleanup, pods.cgroup, pods.pin_dir)
    session.undo.callback(capture.close)
    return capture


def enrol(capture: Capture, pods: Pods, pod: str) -> EnrolledPod:
    """The pod, captured."""
    fd = pods.open(pod)
    try:
        return capture.enrol(PodNetwork(fd, (ip_address(ADDRESSES[pod]),)))
    finally:
        os.close(fd)


def allow(session: PodSession, capture: Capture, *, accelerated: bool) -> None:
    """Both pods enrolled, and the client's connections to the server direct."""
    client, server = (enrol(capture, session.pods, pod) for pod in ADDRESSES)
    address = Endpoint(ip_address(SERVER), SERVER_PORT)
    capture.direct.enable()
    if accelerated:
        capture.direct.turbo.attach(offsets())
    capture.direct.set_pairs({PairKey(client.slot, address): Backend(server.slot, address, accelerated)})
    capture.direct.renew(3600)
    _take_events(session, capture)


def _take_events(session: PodSession, capture: Capture) -> None:
    """As the agent does, but without making flows of them, and on another CPU than the measured one."""
    fd, size = capture.direct.events
    taker = [str(session.bed.programs / "take"), str(fd), str(size)]
    others = ",".join(str(cpu) for cpu in range(os.cpu_count() or 1) if cpu != session.pin)
    process = subprocess.Popen(["taskset", "-c", others, *taker], stdin=subprocess.PIPE, pass_fds=[fd])

    def end() -> None:
        process.communicate()

    session.undo.callback(end)
