"""Policy flips under load: no allowed connection is lost, none that is denied gets through or lives on."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import trio

from ebpf.capture import Capture
from tests.netns.capture import apps
from tests.netns.capture.apps import Attempt, Dial
from tests.netns.capture.lab import Lab
from tests.netns.direct.harness import NAMES, PORT, VIP, Agent, LocalPod, LocalPods, allow
from tests.unit.state.builders import update
from ztunnel.direct import keeper as keeper_module
from ztunnel.logs import LineWriter

pytestmark = pytest.mark.root

SECONDS = 8.0
GRACE = 0.1
"""For an answer that was on its way when its connection was ended."""
ASKS = {"client": 20, "guest": 400}
"""Questions on one connection. The guest's live longer than a change takes, so that each change finds one open."""


@pytest.mark.parametrize("at_once", [200, 0], ids=["at once", "in slices"])
def test_policy_flips_under_load(
    lab: Lab, capture: Capture, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`at once`: pairs are compared; `in slices`: all pairs leave first, as with changes that concern many pods."""
    monkeypatch.setattr(keeper_module, "_AT_ONCE", at_once)
    enrolled = [capture.enrol(pod.network()) for pod in lab.pods]
    for pod in enrolled:
        lab.servers.serve(pod.outbound, "outbound")
        lab.servers.serve(pod.inbound, "inbound")
    client, server, guest = (lab.app(pod) for pod in lab.pods)
    server.call(apps.serve, PORT, "app")
    pods = LocalPods(map(LocalPod, enrolled, NAMES))
    to = Dial((VIP, 80))
    denied: list[tuple[float, float]] = []
    writer = LineWriter(os.open(os.devnull, os.O_WRONLY))
    began_load: list[Any] = []

    async def main() -> None:
        agent = Agent(capture, pods, writer)
        async with agent.running(lab):
            with trio.fail_after(60):
                while client.call(apps.exchange, to).tag != "app":
                    await trio.sleep(0.02)
            began_load.append(client.start(apps.load, to, SECONDS, ASKS["client"]))
            began_load.append(guest.start(apps.load, to, SECONDS, ASKS["guest"]))
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                await agent.apply(update(allow("client")))
                in_force = time.monotonic()
                await trio.sleep(0.15)
                denied.append((in_force, time.monotonic()))
                await agent.apply(update(allow("client", "guest")))
                await trio.sleep(0.1)

    trio.run(main)
    (ok, mine), (also, theirs) = (finish() for finish in began_load)
    assert ok, mine
    assert also, theirs
    writer.close()
    lab.stop_agent()
    assert_none_lost(mine)
    assert_none_leaked(theirs, denied)
    for app in (client, server, guest):
        app.close()
        lab.forget_app(app)


def assert_none_lost(attempts: list[Attempt]) -> None:
    """Of the client that is always allowed."""
    assert len(attempts) > 200
    assert [attempt for attempt in attempts if attempt.end != "ok"] == []
    assert {attempt.tag for attempt in attempts} <= {"app", "outbound"}
    direct = sum(attempt.tag == "app" for attempt in attempts)
    assert direct > len(attempts) / 2, f"{direct} of {len(attempts)} went direct"


def assert_none_leaked(attempts: list[Attempt], denied: list[tuple[float, float]]) -> None:
    """Of the client that is allowed now and then."""
    ends = {(attempt.tag, attempt.end) for attempt in attempts}
    assert ("app", "ok") in ends, "it was never let through"
    assert ("app", "ECONNABORTED") in ends, "none of its connections was ever ended"
    assert len(denied) > 10
    for start, end in denied:
        for attempt in attempts:
            if attempt.tag != "app":
                continue
            new = start <= attempt.began and attempt.answered and attempt.answered <= end
            assert not new, f"{attempt} got through while it was denied from {start} to {end}"
            lived = attempt.began < start and attempt.last > start + GRACE
            assert not lived, f"{attempt} lived on after it was denied at {start}"
