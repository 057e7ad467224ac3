"""A node agent without its data plane: delta stream and state, as `ztunnel` wires them.

Run as `python -m tests.bench.control.agent PORT DATA NODE`. Answers are JSON lines: one when the first state is
there, then one for each line `since SECONDS` on stdin: what happened from then (monotonic) until now.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path

import trio

from istiodlite.api.discovery_pb2 import DeltaDiscoveryResponse, Node
from tests.bench.process import process_rss
from ztunnel.config import Endpoint
from ztunnel.control_plane import ControlPlane
from ztunnel.state.changes import Update
from ztunnel.store import Store
from ztunnel.xds.client import XdsClient
from ztunnel.xds.delta import DeltaSession, Received

_BEAT = 0.002


class _Timed(DeltaSession):
    """Notes the CPU time that each response takes, from bytes to an update."""

    took = 0.0

    def on_response(self, response: DeltaDiscoveryResponse | bytes) -> Received:
        begin = time.thread_time()
        try:
            return super().on_response(response)
        finally:
            self.took = time.thread_time() - begin


class _TimedStore(Store):
    def __init__(self, node: str, session: _Timed) -> None:
        super().__init__(node)
        self._session = session
        self.changes: list[tuple[float, int, float]] = []
        """when, resources, CPU seconds from bytes to the new snapshot (small batches only)"""

    async def apply(self, update: Update) -> None:
        begin = time.thread_time()
        await super().apply(update)
        size = len(update.workloads) + len(update.services)
        self.changes.append((time.monotonic(), size, self._session.took + time.thread_time() - begin))


class Agent:
    """The parts, and how late the event loop was."""

    def __init__(self, port: int, data: Path, node: str) -> None:
        described = Node(id="ztunnel~10.0.0.1~ztunnel-bench.istio-system~istio-system.svc.cluster.local")
        described.metadata.update({"NODE_NAME": node})
        session = _Timed(described)
        self.store = _TimedStore(node, session)
        plane = ControlPlane(
            Endpoint("localhost", port, tls=True),
            root_ca=str(data / "root.pem"),
            server_name="",
            token=str(data / "token"),
            cluster_id="Kubernetes",
        )
        self.client = XdsClient(plane, session, self.store)
        self.late: list[tuple[float, float]] = []

    async def _heartbeat(self) -> None:
        while True:
            wanted = time.monotonic() + _BEAT
            await trio.sleep_until(trio.current_time() + _BEAT)
            self.late.append((wanted, max(0.0, time.monotonic() - wanted)))

    def _since(self, begin: float) -> dict[str, object]:
        late = sorted(delay for when, delay in self.late if when >= begin)
        return {
            "late_p99_s": late[len(late) * 99 // 100],
            "late_max_s": late[-1],
            "beats": len(late),
            "changes": [[size, took] for when, size, took in self.store.changes if when >= begin],
            "mb": process_rss(os.getpid()),
        }

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._heartbeat)
            nursery.start_soon(self.store.run)
            begin, cpu = time.monotonic(), time.process_time()
            nursery.start_soon(self.client.run)
            await self.client.ready.wait()
            ready = {"ready_s": time.monotonic() - begin, "ready_cpu_s": time.process_time() - cpu}
            print(json.dumps({**ready, **self._since(begin)}), flush=True)
            gc.collect()
            gc.freeze()
            while line := (await trio.to_thread.run_sync(sys.stdin.readline)).split():
                print(json.dumps(self._since(float(line[1]))), flush=True)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    port, data, node = sys.argv[1:]
    trio.run(Agent(int(port), Path(data), node).run)
