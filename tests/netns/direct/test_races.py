"""Policy flips under load: no allowed connection is lost, none that is denied gets through or lives on.

`AMBIENT_TEST_FLIPS=10000` in the environment: so many flips one upon another, in each of the two tests (a quarter of an
hour).
"""

from __future__ import annotations

import bisect
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
FLIPS = int(os.environ.get("AMBIENT_TEST_FLIPS", "0"))
DENIED, ALLOWED = (0.004, 0.004) if FLIPS else (0.15, 0.1)
"""How long each answer stands, in seconds."""
GRACE = 1.0 if FLIPS else 0.1
"""For an answer that was on its way when its connection was ended."""
ASKS = {"client": 20, "guest": 100_000 if FLIPS else 400}
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
    mine: list[Attempt] = []
    theirs: list[Attempt] = []

    def loads() -> tuple[Any, Any]:
        return (
            client.start(apps.load, to, SECONDS, ASKS["client"]),
            guest.start(apps.load, to, SECONDS, ASKS["guest"]),
        )

    async def flip(agent: Agent) -> None:
        await agent.apply(update(allow("client")))
        in_force = time.monotonic()
        await trio.sleep(DENIED)
        denied.append((in_force, time.monotonic()))
        await agent.apply(update(allow("client", "guest")))
        await trio.sleep(ALLOWED)

    async def main() -> None:
        agent = Agent(capture, pods, writer)
        async with agent.running(lab):
            with trio.fail_after(60):
                while client.call(apps.exchange, to).tag != "app":
                    await trio.sleep(0.02)
            while not denied or len(denied) < FLIPS:
                finishing = loads()
                end = time.monotonic() + SECONDS
                while time.monotonic() < end:
                    await flip(agent)
                await agent.apply(update(allow("client")))  # ends what the guest has left
                for finish, attempts in zip(finishing, (mine, theirs), strict=True):
                    ok, result = await trio.to_thread.run_sync(finish)
                    assert ok, result
                    attempts.extend(result)
                await agent.apply(update(allow("client", "guest")))

    trio.run(main)
    print(f"{len(denied)} flips, {len(mine)} connections always allowed, {len(theirs)} allowed now and then")
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
    assert direct > 100, f"{direct} of {len(attempts)} went direct"


def assert_none_leaked(attempts: list[Attempt], denied: list[tuple[float, float]]) -> None:
    """Of the client that is allowed now and then."""
    direct = [attempt for attempt in attempts if attempt.tag == "app"]
    assert any(attempt.answered for attempt in direct), "it was never let through"
    assert any(attempt.end == "ECONNABORTED" for attempt in direct), "none of its connections was ever ended"
    assert len(denied) > 10
    starts = [start for start, _ in denied]
    for attempt in direct:
        following = bisect.bisect(starts, attempt.began)
        if following:
            start, end = denied[following - 1]
            new = attempt.answered and attempt.answered <= end
            assert not new, f"{attempt} got through while it was denied from {start} to {end}"
        if following < len(starts):
            lived = attempt.last > starts[following] + GRACE
            assert not lived, f"{attempt} lived on after it was denied at {starts[following]}"
