"""Replacing a node's agent while it serves: the successor starts beside it, takes the pods, then the old one drains."""

import trio

from daemonset.local.node import Node
from daemonset.local.processes import Service

SUCCESSOR_SECONDS = 60.0
LOOK_SECONDS = 0.02


class UpgradeFailed(Exception):
    """The old agent serves on, or none does and one is being started; the text says what to look at."""


async def replace_agent(node: Node, successor: Service, nursery: trio.Nursery) -> None:
    """Returns when `successor` serves all pods of the node and the old agent has been asked to end.

    That one goes on for as long as connections are left that it carries, at most its own deadline.
    """
    former = node.agent
    assert former is not None
    assert node.zds is not None
    scope = trio.CancelScope()
    nursery.start_soon(_run, successor, scope)
    with trio.move_on_after(SUCCESSOR_SECONDS) as patience:
        while not (successor.pid and node.zds.serves(successor.pid)):
            if successor.restarts:
                scope.cancel()
                raise UpgradeFailed(f"the new agent ended ({successor.last_exit}): see {successor.log_file}")
            await trio.sleep(LOOK_SECONDS)
    if patience.cancelled_caught:
        scope.cancel()
        raise UpgradeFailed(f"no new agent within {SUCCESSOR_SECONDS:g} s: see {successor.log_file}")
    node.agent = successor
    node.former = [each for each in node.former if each.pid] + [former]
    former.retire()


async def _run(service: Service, scope: trio.CancelScope) -> None:
    with scope:
        await service.run()
