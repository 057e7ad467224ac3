"""The nodes' lives: made, run with their programs, upgraded, taken away."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import trio

from daemonset.local import network
from daemonset.local.addresses import NODES, Ranges, next_number
from daemonset.local.desired import NodeSpec
from daemonset.local.layout import Layout
from daemonset.local.node import Node
from daemonset.local.rollout import UpgradeFailed, replace_agent
from daemonset.local.roster import Roster
from daemonset.local.zdsserver import ZdsServer


def timestamp() -> str:
    """Now, as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Host(Protocol):
    """What the nodes need of the mesh."""

    def changed(self) -> None:
        """Something about a node changed."""

    def announce(self, text: str) -> None:
        """Tells the user."""

    def publish(self) -> None:
        """Writes the objects now: the control plane has to know an agent before that one asks."""


class Nodes:
    """See the module. `with_mesh` False: nodes without an agent."""

    def __init__(
        self,
        layout: Layout,
        ranges: Ranges,
        cgroup_mount: Path,
        host: Host,
        roster: Roster,
        *,
        with_mesh: bool,
    ) -> None:
        self.present: dict[str, Node] = {}
        self._layout, self._ranges, self._cgroup_mount = layout, ranges, cgroup_mount
        self._host, self._roster, self._with_mesh = host, roster, with_mesh

    def connected(self) -> bool:
        """Whether every agent there is has come for its pods."""
        return all(node.agent_connected for node in self.present.values() if node.agent is not None)

    async def add(self, spec: NodeSpec, nursery: trio.Nursery) -> None:
        """Makes a node and starts its programs in `nursery`. Raises OSError."""
        number = next_number({n.number for n in self.present.values()}, NODES)
        assert number is not None  # the mesh takes over no manifests with more
        node = Node(spec, number, self._ranges, self._layout, self._cgroup_mount, timestamp())
        await trio.to_thread.run_sync(lambda: node.make(with_mesh=self._with_mesh))
        others = [n.number for n in self.present.values()]
        await trio.to_thread.run_sync(network.set_pod_routes, node.netns, others, self._ranges)
        for other in self.present.values():
            await trio.to_thread.run_sync(network.set_pod_routes, other.netns, [number], self._ranges)
        self.present[spec.name] = node
        await nursery.start(self._run, node)
        self._host.announce(f"node {spec.name}: {node.addresses[0]}, pods in {self._ranges.pods(number)[0]}")
        self._host.changed()

    async def _run(self, node: Node, task_status: trio.TaskStatus[None]) -> None:
        with node.scope:
            async with trio.open_nursery() as nursery:
                node.programs = nursery
                node.names = node.name_server(self._host.changed)
                nursery.start_soon(node.names.run)
                if self._with_mesh:
                    await self._start_agent(node, nursery)
                task_status.started()

    async def _start_agent(self, node: Node, nursery: trio.Nursery) -> None:
        node.zds = self._zds_server(node)
        await nursery.start(node.zds.serve)
        node.keeper = node.fd_store(self._host.changed)
        if node.keeper is not None:
            nursery.start_soon(node.keeper.run)
        node.agent = node.agent_service(self._host.changed)
        self._host.publish()
        nursery.start_soon(node.agent.run)

    def _zds_server(self, node: Node) -> ZdsServer:
        def connected(present: bool) -> None:
            node.agent_connected = present
            self._host.changed()

        roster = self._roster
        return ZdsServer(
            node.folder / "zds.sock",
            lambda: roster.wanted_on(node.name),
            roster.netns_of,
            roster.heard,
            connected,
        )

    async def upgrade(self, name: str) -> None:
        """A new agent for a node, without interruption. Raises UpgradeFailed."""
        node = self.present[name]
        if node.agent is None or node.programs is None:
            raise UpgradeFailed(f"node {name} has no agent")
        if node.upgrading:
            raise UpgradeFailed(f"the agent of node {name} is being replaced already")
        node.upgrading = True
        try:
            await replace_agent(node, node.agent_service(self._host.changed), node.programs)
        finally:
            node.upgrading = False
            self._host.changed()

    async def remove(self, name: str) -> None:
        """Ends a node's programs and takes it away. Raises OSError."""
        node = self.present.pop(name)
        node.scope.cancel()
        for other in self.present.values():
            await trio.to_thread.run_sync(network.drop_pod_routes, other.netns, node.number, self._ranges)
        for service in node.services():
            if service.process is not None:
                await service.process.wait()
        await trio.to_thread.run_sync(node.unmake)
        shutil.rmtree(node.folder, ignore_errors=True)
        self._host.announce(f"node {name}: removed")
        self._host.changed()
