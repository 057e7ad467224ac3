"""The control plane without its source: the large mesh in memory, served over TLS; commands come on stdin.

Run as `python -m tests.bench.control.server DATA NODES`. Answers are JSON lines: first the figures of the build,
then one for each command: `churn TURNS SIZE PAUSE`, `versions FILE`, `memory`.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from istiodlite.api import discovery_pb2
from istiodlite.ca.authority import Authority
from istiodlite.ca.caller import Caller
from istiodlite.ca.pods import PodIndex
from istiodlite.ca.service import Authenticator
from istiodlite.ca.serving import ServingCertificate
from istiodlite.ca.tokens import load_or_create_token_key, mint, verify
from istiodlite.metrics import Metrics
from istiodlite.registry import ADDRESS_TYPE, AUTHORIZATION_TYPE, MeshConfig, Registry
from istiodlite.server.grpc_thread import GrpcThread
from istiodlite.xds.server import PATH, DiscoveryService
from tests.bench.control.objects import churn, mesh
from tests.bench.process import process_rss

HOST = "127.0.0.1"


class Server:
    """Registry and streams as `istiodlite serve` wires them, without folder and debounce."""

    def __init__(self, data: Path, nodes: int) -> None:
        self._data, self._nodes, self._turn = data, nodes, 0
        objects = mesh(nodes)
        self._registry = Registry(MeshConfig())
        key = load_or_create_token_key(data)
        authority = Authority.load_or_create(data, "cluster.local")
        (data / "root.pem").write_bytes(authority.roots_pem)
        caller = Caller("istio-system", "ztunnel")
        (data / "token").write_text(mint(key, caller, datetime.datetime.now(datetime.UTC)))

        async def review(token: str) -> Caller:
            return verify(token, key.public_key(), datetime.datetime.now(datetime.UTC))

        discovery = DiscoveryService(Authenticator(review, Metrics()), Metrics())
        self._discovery = discovery
        serving = ServingCertificate(authority, lambda: ["localhost", HOST])
        self._grpc = GrpcThread((HOST, 0), serving, {PATH: discovery.handler()}, discovery.stop)
        begin, cpu = time.monotonic(), time.process_time()
        gc.disable()
        changes = self._registry.apply(objects)
        discovery.publish(changes, begin)
        for one in changes.changed:
            discovery.store.wire(one)
        # As `istiodlite serve` does after the first load.
        gc.enable()
        gc.freeze()
        self.built = {"wall_s": time.monotonic() - begin, "cpu_s": time.process_time() - cpu}
        self._pods = PodIndex().apply(objects)
        self.port = self._grpc.start()

    def versions(self, path: str) -> dict[str, Any]:
        """Writes what an agent that has everything says when it connects again."""
        for name, type_url in (("addresses", ADDRESS_TYPE), ("policies", AUTHORIZATION_TYPE)):
            known = {one.name: one.version for one in self._discovery.store.all(type_url)}
            request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, initial_resource_versions=known)
            Path(f"{path}.{name}").write_bytes(request.SerializeToString())
        return {}

    def churn(self, turns: str, size: str, pause: str) -> dict[str, Any]:
        """`turns` batches; of each the sequence number and the time at which the objects came."""
        begin, pushes = time.process_time(), []
        for _ in range(int(turns)):
            batch = churn(self._turn, int(size), self._nodes)
            self._turn += 1
            seen = time.monotonic()
            changes = self._registry.apply(batch)
            self._grpc.call(partial(self._discovery.publish, changes, seen)).result()
            pushes.append((self._discovery.store.sequence, seen))
            time.sleep(max(0.0, seen + float(pause) - time.monotonic()))
        return {"pushes": pushes, "cpu_s": time.process_time() - begin}

    def memory(self) -> dict[str, Any]:
        return {"mb": process_rss(os.getpid()), "clients": len(self._discovery.clients())}

    def serve(self) -> None:
        """Until the end of stdin."""
        print(json.dumps({"port": self.port, **self.built}), flush=True)
        for line in sys.stdin:
            name, *arguments = line.split()
            print(json.dumps(getattr(self, name)(*arguments)), flush=True)
        self._grpc.stop()


if __name__ == "__main__":
    Server(Path(sys.argv[1]), int(sys.argv[2])).serve()
