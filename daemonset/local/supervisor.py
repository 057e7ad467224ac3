"""The process that is a mesh: `python -m daemonset.local.supervisor --mesh NAME --index N [--no-mesh]`.

Started by `ambientctl up`, ended by `ambientctl down`. Killed, it leaves pods and agents running; `down`
and the next `up` find and remove them by their names.
"""

import argparse
import json
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from daemonset.local import cgroups, controlserver
from daemonset.local.addresses import Ranges
from daemonset.local.allocate import AddressConflict
from daemonset.local.compile import compile_objects
from daemonset.local.desired import BadManifests
from daemonset.local.folder import write_atomically
from daemonset.local.layout import Layout
from daemonset.local.mesh import Mesh
from daemonset.local.names import FABRIC_CGROUP, mesh_cgroup
from daemonset.local.rollout import UpgradeFailed
from daemonset.local.schedule import Unschedulable
from daemonset.local.status import mesh_status

log = logging.getLogger(__name__)


class Supervisor:
    """Answers the user's commands for one mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.scope = trio.CancelScope()

    async def run(self, ready: int) -> None:
        """Until `stop` or SIGTERM. `ready`: descriptor that gets a line when requests are answered."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._signals)
                await nursery.start(self.mesh.run)
                await nursery.start(controlserver.serve, self.mesh.layout.control, self._answer)
                nursery.start_soon(self._keep_state)
                os.write(ready, b"ready\n")
                os.close(ready)

    async def _signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                self._end()

    def _end(self) -> None:
        for pod in self.mesh.pods.values():
            pod.hurried = True
        for service in self.mesh.services():
            service.grace = 0  # nobody is left to be served; `down` has nothing to save
        self.scope.cancel()

    async def _keep_state(self) -> None:
        while True:
            status = mesh_status(self.mesh)
            write_atomically(self.mesh.layout.state, json.dumps(status, indent=1))
            await self.mesh.round_done.wait()

    async def _answer(self, request: dict[str, Any], reply: controlserver.Reply) -> None:
        match request.get("command"):
            case "status":
                await reply({"done": mesh_status(self.mesh)})
            case "stop":
                await reply({"done": os.getpid()})
                self._end()
            case "apply":
                await self._apply(request, reply)
            case "upgrade":
                await self._upgrade(request.get("nodes") or sorted(self.mesh.nodes), reply)
            case other:
                await reply({"error": [f"unknown command {other!r}"]})

    async def _apply(self, request: Mapping[str, Any], reply: controlserver.Reply) -> None:
        try:
            present = [node.spec for node in self.mesh.nodes.values()]
            desired = compile_objects(request["objects"], request.get("nodes"), present)
            notes = self.mesh.apply(desired)
        except BadManifests as error:
            await reply({"error": list(error.errors)})
            return
        except (AddressConflict, Unschedulable) as error:
            await reply({"error": [str(error)]})
            return
        await self._report(notes, float(request.get("wait") or 0), reply)

    async def _upgrade(self, nodes: Sequence[str], reply: controlserver.Reply) -> None:
        """One node after the other; the first that fails ends it."""
        for name in nodes:
            if name not in self.mesh.nodes:
                await reply({"error": [f"there is no node {name}"]})
                return
        for name in nodes:
            try:
                await self.mesh.upgrade(name)
            except UpgradeFailed as error:
                await reply({"error": [str(error)]})
                return
            await reply({"progress": f"node {name}: a new agent serves"})
        await reply({"done": list(nodes)})

    async def _report(self, notes: Sequence[str], seconds: float, reply: controlserver.Reply) -> None:
        """Streams notes and what is being done until all is as asked for, or until `seconds` have passed."""
        news, read_news = trio.open_memory_channel[str](1000)

        def tell(text: str) -> None:
            try:
                news.send_nowait(text)
            except trio.WouldBlock:
                log.warning("progress is not read; dropped: %s", text)

        for note in notes:
            tell(f"note: {note}")
        self.mesh.listeners.append(tell)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forward, read_news, reply)
                with trio.move_on_after(seconds):
                    while not self.mesh.concluded():
                        await self.mesh.round_done.wait()
                self.mesh.listeners.remove(tell)
                news.close()
            await reply({"done": {"problem": self.mesh.problem, "waiting": self._waiting()}})
        finally:
            if tell in self.mesh.listeners:
                self.mesh.listeners.remove(tell)

    async def _forward(self, news: "trio.MemoryReceiveChannel[str]", reply: controlserver.Reply) -> None:
        async for text in news:
            await reply({"progress": text})

    def _waiting(self) -> list[str]:
        """One line per agent and pod that is not as it should be."""
        lines = [
            f"node {name}: its agent does not run (ambientctl logs ztunnel/{name})"
            for name, node in self.mesh.nodes.items()
            if node.agent is not None and not node.agent_connected
        ]
        for key, pod in self.mesh.pods.items():
            if pod.ready or pod.finished:
                continue
            details = [f"{s.name}: {s.reason}" for s in pod.statuses.values() if s.reason and not s.ready]
            if pod.phase == "Running" and not details:
                details = ["running, not ready"]
            lines.append(f"pod {'/'.join(key)}: {pod.message or '; '.join(details) or pod.status_text}")
        return lines


def main() -> None:
    """Runs the supervisor; errors go to its log, which `ambientctl up` shows."""
    parser = argparse.ArgumentParser(prog="daemonset.local.supervisor")
    parser.add_argument("--mesh", required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--no-mesh", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    layout, mount = Layout(options.mesh), cgroups.find()
    cgroups.join(mesh_cgroup(mount, options.mesh) / FABRIC_CGROUP / "supervisor")
    os.chdir("/")
    mesh = Mesh(layout, Ranges(options.index), mount, with_mesh=not options.no_mesh)
    trio.run(Supervisor(mesh).run, options.ready_fd)


if __name__ == "__main__":
    main()
