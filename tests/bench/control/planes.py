"""Ours and Istio's control plane, both as processes of their own that take the large mesh from one API server.

`ISTIOD_BIN` names a binary of istiod, `KUBECONFIG` the cluster; `cluster` has put the mesh there.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc

from istiodlite.api import discovery_pb2
from istiodlite.registry import ADDRESS_TYPE
from tests.bench.control import cluster
from tests.bench.control.objects import PODS, pod
from tests.bench.control.program import Program, program
from tests.bench.control.streams import PATH
from tests.bench.native import BuildError
from tests.bench.process import process_cpu, process_rss
from tests.bench.results import Sample
from tests.support.istiod import settings
from tests.support.ports import free_port

NAME = "istiod.istio-system.svc"
VARIANTS = ("ours", "istiod")
_AGENTS, _CHANGES = 50, 20
CASES = ("kube-ready-50000", f"kube-change-to-last-{_AGENTS}", "kube-rss-50000")
METHOD = {
    "kube rows": "ours as `istiodlite serve --kube` and istiod, in turn, with the same objects of one API server on the "
    "same machine; ready: from the start of the process until a new agent has all addresses (list, build, TLS, answer); "
    f"change: from sending a pod's new address to the API server until the last of {_AGENTS} agents has it, the 100 ms "
    "of quiet that both wait included; rss: after that",
}
_PATIENCE = 240.0
_NODES = 500


def absent() -> dict[str, str]:
    """Why there is no figure, by what is missing; empty if both can run."""
    if not os.environ.get("KUBECONFIG"):
        return {"ours": "KUBECONFIG is not set", "istiod": "KUBECONFIG is not set"}
    if not cluster.loaded(cluster.access()):
        reason = "the cluster has no mesh: python -m tests.bench.control.cluster puts it there (minutes)"
        return {"ours": reason, "istiod": reason}
    named = os.environ.get("ISTIOD_BIN")
    if not named:
        return {"istiod": "ISTIOD_BIN is not set"}
    return {} if os.access(named, os.X_OK) else {"istiod": f"ISTIOD_BIN={named} is not a program"}


def _ours(port: int, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "istiodlite", "serve", "--kube", "--kubeconfig", os.environ["KUBECONFIG"]),
        *("--listen", f"127.0.0.1:{port}", "--status-port", str(free_port()), "--webhook-port", "0"),
    ]


def _istiod(port: int, folder: Path) -> list[str]:
    (folder / "mesh").write_text("trustDomain: cluster.local\n")
    local = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    return [
        *(
            str(Path(os.environ["ISTIOD_BIN"]).resolve()),
            "discovery",
            "--kubeconfig",
            os.environ["KUBECONFIG"],
        ),
        *("--meshConfig", str(folder / "mesh"), "--networksConfig", str(folder / "networks")),
        *("--namespace", "istio-system", "--domain", "cluster.local", "--shutdownDuration", "0s"),
        *("--httpAddr", local[0], "--httpsAddr", "", "--grpcAddr", "", "--monitoringAddr", local[1]),
        *("--secureGRPCAddr", f"127.0.0.1:{port}"),
    ]


_COMMANDS = {"ours": _ours, "istiod": _istiod}


class Plane:
    """A running control plane. `ready_s`, `ready_cpu_s`: from its start until an agent had all addresses."""

    def __init__(self, variant: str, folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        self._connection = cluster.Connection(cluster.access())
        (folder / "token").write_text(cluster.token(self._connection))
        command: Sequence[str] = _COMMANDS[variant](self.port, folder)
        environment: Mapping[str, str] = {
            **os.environ,
            **(settings("istiod-bench") if variant == "istiod" else {}),
        }
        begin = time.monotonic()
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            self._until_answered(begin + _PATIENCE)
        except BaseException:
            self.stop()
            raise
        self.ready_s = time.monotonic() - begin
        self.ready_cpu_s = process_cpu(self.process.pid)

    def _until_answered(self, deadline: float) -> None:
        """An answer with less than everything does not count: it would be one of a control plane that is not ready."""
        self._until_listening(deadline)
        while not (root := cluster.root(self._connection)):
            self._check(deadline)
        (self.folder / "root.pem").write_bytes(root)
        while (count := self._answer(root)) < PODS:
            self._check(deadline)
        self.addresses = count

    def _until_listening(self, deadline: float) -> None:
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            self._check(deadline)

    def _check(self, deadline: float) -> None:
        if self.process.poll() is not None or time.monotonic() > deadline:
            raise BuildError(
                f"{self.process.args!r} does not serve: {(self.folder / 'log').read_text()[-500:]}"
            )
        time.sleep(0.02)

    def _answer(self, root: bytes) -> int:
        """How many resources the first answer about addresses has; 0 if there is none."""
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=ADDRESS_TYPE)
        request.node.id = "ztunnel~10.0.0.1~ztunnel-0.istio-system~istio-system.svc.cluster.local"
        request.node.metadata.update({"NODE_NAME": "node-0"})
        options = [("grpc.ssl_target_name_override", NAME), ("grpc.max_receive_message_length", -1)]
        bearer = (("authorization", f"Bearer {(self.folder / 'token').read_text()}"),)
        credentials = grpc.ssl_channel_credentials(root)
        with grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, options) as channel:
            method = channel.stream_stream(
                PATH,
                request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
                response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
            )
            try:
                for response in method(iter([request]), metadata=bearer):
                    return len(response.resources)
            except grpc.RpcError:
                pass
        return 0

    def rss(self) -> Sample:
        return Sample(process_rss(self.process.pid))

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def running(variant: str, folder: Path) -> Iterator[Plane]:
    plane = Plane(variant, folder)
    try:
        yield plane
    finally:
        plane.stop()


def _change(connection: cluster.Connection, agents: Program, turn: int) -> float:
    """A pod moves, or every second time goes back; how long until the last agent knew."""
    own = pod(turn // 2, _NODES)
    moved = replace(own, addresses=(f"11.0.0.{1 + turn // 2}",))
    begin = time.monotonic()
    connection.status(cluster.path_of(own), cluster.status_of(own if turn % 2 else moved))
    last: float = agents.ask(f"after {begin}")["last"]
    return last - begin


def measure(variant: str) -> Iterator[tuple[str, Sample]]:
    """Starts a control plane, gives it agents and changes. Raises BuildError."""
    connection = cluster.Connection(cluster.access())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="albench-plane-")))
        plane = stack.enter_context(running(variant, folder))
        yield CASES[0], Sample(plane.ready_s, plane.ready_cpu_s)
        arguments = (str(plane.port), str(folder), "-", str(_AGENTS), NAME)
        agents = stack.enter_context(program(list, "streams", *arguments))
        # The first pair comes while what so many new agents left behind is still being cleared away.
        took = sorted([_change(connection, agents, turn) for turn in range(_CHANGES + 2)][2:])
        p50, p99 = took[len(took) // 2], took[-1]
        yield CASES[1], Sample(p99, p50_us=p50 * 1e6, p99_us=p99 * 1e6)
        yield CASES[2], plane.rss()
