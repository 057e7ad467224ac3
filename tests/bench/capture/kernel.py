"""The product's own capture on the benchmark's pods, and an agent for the direct path between them."""

from __future__ import annotations

import os
import sys
from ipaddress import ip_address

from ebpf import compiler
from ebpf.capture import Capture, EnrolledPod, PodNetwork
from tests.bench.capture.pods import ADDRESSES, Pods
from tests.bench.capture.session import PodSession


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


def allow(session: PodSession, *, accelerated: bool) -> None:
    """Both pods enrolled by an agent of its own process, and the client's connections to the server direct."""
    pods = session.pods
    session.undo.callback(Capture.cleanup, pods.cgroup, pods.pin_dir)
    agent = [sys.executable, "-m", "tests.bench.capture.agent", str(pods.cgroup), str(pods.pin_dir)]
    agent += [f"/run/netns/{pods.netns[pod]}" for pod in ADDRESSES]
    session.serve_node("agent", agent + ["accelerated"] * accelerated)
