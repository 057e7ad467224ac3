"""Who talks to whom in tests of the way from the engine's event to its verdict."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from tests.unit.ztunnel.agentbench import Bench
from tests.unit.ztunnel.doubles import service, workload
from ztunnel.state.model import Membership, Port
from ztunnel.state.policy import Action, Clause, Match, Policy, PolicyScope, Rule

CLIENT = workload("client", "10.0.0.1")

WEB = workload(
    "web",
    "10.0.0.2",
    node="n2",
    services=(Membership("shop/web.shop.svc.cluster.local", (Port(80, 8080),)),),
)

WEB_SERVICE = service("web", "10.1.0.1", Port(80, 8080))

HERE = workload("here", "10.0.0.3")


def policy(action: Action, **match: Any) -> Policy:
    rules = (Rule((Clause((Match(**match),)),)),) if match else (Rule(),)
    return Policy("shop", f"{action.value.lower()}-policy", PolicyScope.NAMESPACE, action, rules)


@asynccontextmanager
async def tasks(bench: Bench) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.carrier.run)
        nursery.start_soon(bench.store.run)
        nursery.start_soon(bench.redecider.run)
        await wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()
