"""A node agent as the control plane sees it: a grpcio client that talks delta xDS like ztunnel."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import struct_pb2

from istiodlite.api import authorization_pb2, ca_pb2, discovery_pb2, workload_pb2

ADDRESS = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION = "type.googleapis.com/istio.security.Authorization"
DELTA = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
CREATE = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
DEADLINE = 60.0


@dataclass
class Agent:
    """Where to connect and as whom."""

    address: str
    root: bytes
    token: str
    node: str = "n1"
    namespace: str = "istio-system"
    pod: str = "ztunnel-n1"
    name_override: str = ""
    ip: str = "10.0.0.1"
    said: dict[str, Any] = field(default_factory=dict)
    """More metadata of its node."""

    def channel(self) -> grpc.Channel:
        options: list[tuple[str, object]] = [("grpc.use_local_subchannel_pool", 1)]
        if self.name_override:
            options.append(("grpc.ssl_target_name_override", self.name_override))
        credentials = grpc.ssl_channel_credentials(self.root)
        return grpc.secure_channel(self.address, credentials, options)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        bearer = (("authorization", f"Bearer {self.token}"),) if self.token else ()
        return (*bearer, ("clusterid", "Kubernetes"))

    def node_message(self) -> discovery_pb2.Node:
        node = discovery_pb2.Node(
            id=f"ztunnel~{self.ip}~{self.pod}.{self.namespace}~{self.namespace}.svc.cluster.local"
        )
        node.metadata.update(
            {"NODE_NAME": self.node, "NAMESPACE": self.namespace, "NAME": self.pod, **self.said}
        )
        return node

    @contextlib.contextmanager
    def stream(self) -> Iterator[Stream]:
        with self.channel() as channel:
            stream = Stream(self, channel)
            try:
                yield stream
            finally:
                stream.close()

    def create_certificate(
        self, csr: str, impersonate: str | None = None, seconds: int = 0
    ) -> ca_pb2.IstioCertificateResponse:
        request = ca_pb2.IstioCertificateRequest(csr=csr, validity_duration=seconds)
        if impersonate is not None:
            request.metadata.CopyFrom(struct_pb2.Struct())
            request.metadata.update({"ImpersonatedIdentity": impersonate})
        with self.channel() as channel:
            method = channel.unary_unary(
                CREATE,
                request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
                response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
            )
            answer: ca_pb2.IstioCertificateResponse = method(
                request, metadata=self.metadata(), timeout=DEADLINE
            )
            return answer


@dataclass
class Stream:
    """One stream; `versions`, `workloads`, `services` and `policies` are what the agent knows by now."""

    agent: Agent
    channel: grpc.Channel
    versions: dict[str, dict[str, str]] = field(default_factory=lambda: {ADDRESS: {}, AUTHORIZATION: {}})
    workloads: dict[str, workload_pb2.Workload] = field(default_factory=dict)
    services: dict[str, workload_pb2.Service] = field(default_factory=dict)
    policies: dict[str, authorization_pb2.Authorization] = field(default_factory=dict)
    reading: bool = True

    def __post_init__(self) -> None:
        self._requests: queue.Queue[discovery_pb2.DeltaDiscoveryRequest | None] = queue.Queue()
        self._responses: queue.Queue[discovery_pb2.DeltaDiscoveryResponse | grpc.RpcError] = queue.Queue()
        method = self.channel.stream_stream(
            DELTA,
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DeltaDiscoveryResponse.FromString,
        )
        self._call: Any = method(iter(self._requests.get, None), metadata=self.agent.metadata())
        self._first = True
        if self.reading:
            self.read()

    def read(self) -> None:
        """Begins to read (by itself, unless made with reading=False)."""
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        try:
            for response in self._call:
                self._responses.put(response)
        except grpc.RpcError as error:
            self._responses.put(error)

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()

    def send(self, request: discovery_pb2.DeltaDiscoveryRequest) -> None:
        if self._first:
            request.node.CopyFrom(self.agent.node_message())
            self._first = False
        self._requests.put(request)

    def subscribe(self, type_url: str, **fields: Any) -> None:
        self.send(discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, **fields))

    def start(self, versions: dict[str, dict[str, str]] | None = None) -> None:
        """The start-up conversation: both types, wildcard, with what is kept from before."""
        for type_url in (ADDRESS, AUTHORIZATION):
            kept = (versions or {}).get(type_url, {})
            self.subscribe(type_url, initial_resource_versions=kept)

    def take(self, timeout: float = DEADLINE) -> discovery_pb2.DeltaDiscoveryResponse:
        """The next response, not acknowledged; a stream that ended raises its error."""
        got = self._responses.get(timeout=timeout)
        if isinstance(got, grpc.RpcError):
            raise got
        return got

    def receive(self, timeout: float = DEADLINE) -> discovery_pb2.DeltaDiscoveryResponse:
        """The next response, applied and acknowledged."""
        response = self.take(timeout)
        known = self.versions[response.type_url]
        for resource in response.resources:
            known[resource.name] = resource.version
            self._apply(response.type_url, resource)
        for name in response.removed_resources:
            known.pop(name, None)
            for table in (self.workloads, self.services, self.policies):
                table.pop(name, None)
        self.send(
            discovery_pb2.DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
        )
        return response

    def _apply(self, type_url: str, resource: discovery_pb2.Resource) -> None:
        assert resource.resource.type_url == type_url
        if type_url == AUTHORIZATION:
            self.policies[resource.name] = authorization_pb2.Authorization.FromString(resource.resource.value)
            return
        address = workload_pb2.Address.FromString(resource.resource.value)
        if address.HasField("workload"):
            self.workloads[resource.name] = address.workload
        else:
            self.services[resource.name] = address.service

    def refuse(self, response: discovery_pb2.DeltaDiscoveryResponse, message: str) -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=response.type_url, response_nonce=response.nonce
        )
        request.error_detail.message = message
        self.send(request)

    def until(self, condition: Callable[[Stream], bool]) -> None:
        """Receives until the condition holds."""
        deadline = time.monotonic() + DEADLINE
        while not condition(self):
            self.receive(max(0.01, deadline - time.monotonic()))

    def is_quiet(self, seconds: float) -> bool:
        """True if nothing comes for that long."""
        try:
            self._responses.get(timeout=seconds)
        except queue.Empty:
            return True
        return False
