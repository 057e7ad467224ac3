"""A control plane under the test's control, over real gRPC: what it says is scripted."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from istiodlite.api import ca_pb2, discovery_pb2
from ztunnel.config import Endpoint
from ztunnel.control_plane import ControlPlane

DELTA = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
CREATE = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
Request = discovery_pb2.DeltaDiscoveryRequest
Response = discovery_pb2.DeltaDiscoveryResponse


@dataclass
class Scripted:
    """`drop`: end each stream at its first request. `say` gives what a stream is told at its start; more
    goes out by `push`. `sign` answers certificate requests with raw bytes or a chain."""

    say: Callable[[int], list[Response]] = lambda _: []
    drop: bool = False
    sign: Callable[[ca_pb2.IstioCertificateRequest], bytes] = lambda _: b""
    streams: int = 0
    requests: queue.Queue[Request] = field(default_factory=queue.Queue)
    port: int = 0
    _out: queue.Queue[Response | None] = field(default_factory=queue.Queue)

    def push(self, response: Response | None) -> None:
        """None ends the stream."""
        self._out.put(response)

    def answer_to(self, nonce: str) -> Request:
        """The ACK or NACK of a response."""
        while True:
            request = self.requests.get(timeout=10)
            if request.response_nonce == nonce:
                return request

    def stream(self, incoming: Iterator[Request], context: grpc.ServicerContext) -> Iterator[Response]:
        self.streams += 1
        number = self.streams
        if self.drop:
            next(incoming)
            return
        threading.Thread(target=self._hear, args=(incoming,), daemon=True).start()
        yield from self.say(number)
        while (response := self._out.get()) is not None:
            yield response

    def _hear(self, incoming: Iterator[Request]) -> None:
        try:
            for request in incoming:
                self.requests.put(request)
        except grpc.RpcError:
            pass

    def plane(self) -> ControlPlane:
        """As an agent sees it."""
        where = Endpoint("127.0.0.1", self.port, tls=False)
        return ControlPlane(where, root_ca="", server_name="", token="", cluster_id="Kubernetes")


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, script: Scripted) -> None:
        self._script = script

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method == DELTA:
            return grpc.stream_stream_rpc_method_handler(
                self._script.stream, Request.FromString, Response.SerializeToString
            )
        return grpc.unary_unary_rpc_method_handler(
            lambda request, _: self._script.sign(request),
            ca_pb2.IstioCertificateRequest.FromString,
            lambda data: data,
        )


@contextmanager
def serving(script: Scripted) -> Iterator[Scripted]:
    """On a port of loopback."""
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((_Handlers(script),))
    script.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield script
    finally:
        script.push(None)
        server.stop(0).wait(60)
