"""The whole agent while pods come and go: every one is taken in and gets its certificate, and nothing is left of it.

`AMBIENT_TEST_AGENT_CHURN=2000` in the environment: so many pods come and go, twice, and memory is looked at, too (some
minutes; with `--timeout 0`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.process import process_rss
from tests.support.churn import Held, Node, node

pytestmark = pytest.mark.root

LONG = int(os.environ.get("AMBIENT_TEST_AGENT_CHURN", "0"))
FIRST, THEN = (LONG, LONG) if LONG else (20, 60)
ALIVE = 10
FEW = 8
"""That come and go whatever pods do, or come late: a leak is one for each pod at the least."""
GROWTH = 8.0
"""Megabytes."""
FORGOTTEN = 180.0
NOBODY = "198.51.100.1"
CONNECT = f"import socket; s = socket.socket(); s.settimeout(60); s.connect_ex(('{NOBODY}', 80))"


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Node]:
    with node(tmp_path, FIRST + THEN + 1) as made:
        yield made


def is_as_before(now: Held, before: Held) -> bool:
    few = all(is_now <= was + FEW for is_now, was in zip(now.counts(), before.counts(), strict=True))
    return few and (now.pins, now.entries) == (before.pins, before.entries)


def test_pods_that_come_and_go_leave_nothing_in_the_agent(one: Node) -> None:
    with one.pod() as stays:
        others, before = one.certificates(), one.held()
        print(one.churn(FIRST, ALIVE))
        memory = settled(one, others, FIRST, before)
        print(one.churn(THEN, ALIVE))
        grown = settled(one, others, FIRST + THEN, before) - memory
        print(f"the agent has {memory:.0f} MB, grown by {grown:.1f} MB")
        assert grown < GROWTH or not LONG
        connect_out(stays, one.agent.cgroup)
        one.agent.until(lambda: f"dst.addr={NOBODY}:80 " in one.agent.log, "the pod that stayed is captured")


def settled(one: Node, others: int, pods: int, before: Held) -> float:
    """All have got what they had to, and have gone; the agent's memory then."""
    one.agent.until(lambda: one.issued() >= others + pods or bool(LONG), "a certificate for each pod")
    one.agent.until(lambda: is_as_before(one.held(), before), "nothing is left of the pods")
    deadline = time.monotonic() + FORGOTTEN
    while LONG and one.certificates() > others:
        assert time.monotonic() < deadline, f"{one.certificates()} certificates are kept"
        time.sleep(1)
    return process_rss(one.pid)


def connect_out(netns_fd: int, cgroup: Path) -> None:
    """Out of a pod, to where nobody is."""
    inside = cgroup / "pods"  # only below the agent's cgroup anything is captured
    inside.mkdir()
    enter = f"nsenter --net=/proc/{os.getpid()}/fd/{netns_fd} {sys.executable}"
    try:
        command = f'echo $$ > {inside}/cgroup.procs; exec {enter} -c "{CONNECT}"'
        subprocess.run(["sh", "-c", command], check=True, timeout=120)
    finally:
        inside.rmdir()
