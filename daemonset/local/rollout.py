"""Replacing a node's agent while it serves: the successor starts beside it, takes the pods, then the old one drains."""

import trio

from daemonset.local.node import Node
from daemonset.local.processes import Service

FORMER_SECONDS = 10.0
SUCCESSOR_SECONDS = 60.0
LOOK_SECONDS = 0.02


class UpgradeFailed(Exception):
    """The old agent serves on, or none does and one is being started; the text says what to look at."""


async def replace_agent(node: Node, successor: Service, nursery: trio.Nursery) -> None:
    """Returns when `successor` serves all pods of the node and the old agent has been asked to end.

    That one goes on for as long as connections are left that it carries, at most its own deadline. One that does not
    serve has nothing to hand over: it is ended first, since of two agents that start at once each would take pods from
    the other, and the new one stays whatever becomes of it.
    """
    former = node.agent
    assert former is not None
    scope = trio.CancelScope()
    with trio.move_on_after(FORMER_SECONDS):
        while not _serves(node, former):
            await trio.sleep(LOOK_SECONDS)
    hands_over = _serves(node, former)
    if not hands_over:
        _succeed(node, former, successor)
    nursery.start_soon(_run, successor, scope)
    try:
        await _start(node, successor)
    except UpgradeFailed:
        if hands_over:
            scope.cancel()
        raise
    if hands_over:
        _succeed(node, former, successor)


async def _start(node: Node, successor: Service) -> None:
    with trio.move_on_after(SUCCESSOR_SECONDS) as patience:
        while not _serves(node, successor):
            if successor.restarts:
                raise UpgradeFailed(f"the new agent ended ({successor.last_exit}): see {successor.log_file}")
            await trio.sleep(LOOK_SECONDS)
    if patience.cancelled_caught:
        raise UpgradeFailed(f"no new agent within {SUCCESSOR_SECONDS:g} s: see {successor.log_file}")


def _serves(node: Node, agent: Service) -> bool:
    assert node.zds is not None
    return bool(agent.pid) and node.zds.serves(agent.pid)


def _succeed(node: Node, former: Service, successor: Service) -> None:
    node.agent = successor
    node.former = [each for each in node.former if each.pid] + [former]
    former.retire()


async def _run(service: Service, scope: trio.CancelScope) -> None:
    with scope:
        await service.run()
