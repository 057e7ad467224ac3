"""Connections that live are decided again when something changes."""

from __future__ import annotations

import dataclasses

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hbone.engine import reason_code
from hbone.reasons import Reason
from tests.unit.ztunnel.agentbench import Bench
from tests.unit.ztunnel.doubles import workload
from tests.unit.ztunnel.pathbench import CLIENT, HERE, policy, tasks
from ztunnel.state.policy import Action, Policy, PolicyScope, Rule, StringMatcher
from ztunnel.state.snapshot import Update


@pytest.mark.trio
async def test_a_new_policy_cuts_the_connections_it_forbids_and_no_others(bench: Bench) -> None:
    guest = workload("guest", "10.0.0.8")
    await bench.know(CLIENT, HERE, guest)
    pod = await bench.enrol(HERE)
    async with tasks(bench):
        kept = bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        cut = bench.request(
            pod,
            "10.0.0.8",
            "10.0.0.3",
            "10.0.0.3:8080",
            peer_identity="spiffe://cluster.local/ns/shop/sa/guest",
        )
        await wait_all_tasks_blocked()
        only = StringMatcher(exact=frozenset({"cluster.local/ns/shop/sa/client"}))
        await bench.know(policies=(policy(Action.ALLOW, principals=only),))
        await wait_all_tasks_blocked()
        assert bench.engine.named("cut") == [
            {"token": cut, "reason_code": reason_code(Reason.POLICY_CHANGED)}
        ]
        assert bench.engine.calls[-1] == ("flush", {})
        line = bench.close(cut, "policy_changed")
        assert 'reason="policy_changed" policy="shop/allow-policy"' in line
        assert bench.flows.get(kept) is not None
        # Still watched: the next change is seen too.
        await bench.know(policies=(policy(Action.DENY),))
        await wait_all_tasks_blocked()
        assert [call["token"] for call in bench.engine.named("cut")] == [cut, kept]


@pytest.mark.trio
async def test_a_change_of_something_else_decides_nothing_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.know(CLIENT, HERE)
    pod = await bench.enrol(HERE)
    async with tasks(bench):
        bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        monkeypatch.setattr("ztunnel.flows.redecide.decide_inbound", lambda *_: 1 / 0)
        await bench.know(workload("stranger", "10.0.7.7", node="n9"))
        await wait_all_tasks_blocked()
        assert bench.engine.named("cut") == []


@pytest.mark.trio
async def test_a_policy_newly_listed_by_the_workload_cuts_open_connections(bench: Bench) -> None:
    """Istio's agent looks at the workload as it was when the connection began; here it counts as it is."""
    deny = Policy("shop", "mine", PolicyScope.WORKLOAD_SELECTOR, Action.DENY, (Rule(),))
    await bench.know(CLIENT, HERE, policies=(deny,))
    pod = await bench.enrol(HERE)
    async with tasks(bench):
        token = bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        await bench.know(workload("here", "10.0.0.3", authorization_policies=("shop/mine",)))
        await wait_all_tasks_blocked()
        assert [call["token"] for call in bench.engine.named("cut")] == [token]


@pytest.mark.trio
async def test_an_update_between_decision_and_notification_is_not_lost(bench: Bench) -> None:
    await bench.know(CLIENT, HERE)
    pod = await bench.enrol(HERE)
    async with tasks(bench):
        # Applied but not yet told to subscribers when the connection arrives, and the other way round.
        token = bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        await bench.store.apply(Update(policies=(policy(Action.DENY),)))
        late = bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        await wait_all_tasks_blocked()
        assert [call["token"] for call in bench.engine.named("cut")] == [token]
        assert [call["token"] for call in bench.engine.named("refuse")] == [late]


@pytest.mark.trio
async def test_ten_thousand_affected_connections_are_cut_without_stopping_the_loop(bench: Bench) -> None:
    await bench.know(CLIENT, HERE)
    pod = await bench.enrol(HERE)
    for _ in range(2000):
        bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
    async with tasks(bench):
        await bench.know(policies=(policy(Action.DENY),))
        turns = 0
        with trio.fail_after(30):
            while len(bench.engine.named("cut")) < 2000:
                turns += 1
                await trio.lowlevel.checkpoint()
        assert turns >= 5


LISTED = Policy("shop", "mine", PolicyScope.WORKLOAD_SELECTOR, Action.ALLOW, (Rule(),))

LISTING = workload("here", "10.0.0.3", authorization_policies=("shop/mine",))


@pytest.mark.trio
async def test_a_live_connection_survives_the_moment_between_workload_and_policy(
    bench: Bench, autojump_clock: MockClock
) -> None:
    await bench.know(CLIENT, HERE)
    pod = await bench.enrol(HERE)
    async with tasks(bench):
        bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        await bench.know(LISTING)
        await trio.sleep(1)
        await bench.know(policies=(LISTED,))
        await trio.sleep(60)
        assert bench.engine.named("cut") == []
        # It is watched by the policy that came.
        await bench.know(policies=(dataclasses.replace(LISTED, action=Action.DENY),))
        await trio.sleep(0.1)
        assert len(bench.engine.named("cut")) == 1


@pytest.mark.trio
async def test_a_policy_that_stays_missing_cuts_after_a_grace(
    bench: Bench, autojump_clock: MockClock
) -> None:
    await bench.know(CLIENT, HERE)
    pod = await bench.enrol(HERE)
    async with tasks(bench):
        token = bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        await bench.know(LISTING)
        await trio.sleep(1.9)
        assert bench.engine.named("cut") == []
        await trio.sleep(0.2)
        assert [call["token"] for call in bench.engine.named("cut")] == [token]
        assert 'policy="shop/mine"' in bench.close(token, "policy_changed")


@pytest.mark.trio
@pytest.mark.parametrize("comes", [True, False])
async def test_a_new_connection_waits_for_a_policy_on_its_way(
    bench: Bench, autojump_clock: MockClock, comes: bool
) -> None:
    await bench.know(CLIENT, LISTING)
    pod = await bench.enrol(HERE)
    async with tasks(bench):
        bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        await trio.sleep(1)
        assert bench.engine.named("refuse") == []
        if comes:
            await bench.know(policies=(LISTED,))
        await trio.sleep(1.5)
    refused = [call["reason_code"] for call in bench.engine.named("refuse")]
    assert refused == ([] if comes else [reason_code(Reason.POLICY_PENDING)])
    assert len(bench.engine.named("connect_plain")) == int(comes)
