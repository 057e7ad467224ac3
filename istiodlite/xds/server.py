"""ADS (delta and state of the world) on gRPC. Runs wholly in one asyncio loop, so sessions and store need no locks.

grpc.aio in a thread of its own, because of measurements with many delta streams: pushing one change to 1000
streams took 75-90 ms and 120 us of CPU a stream, against 260 ms, 350 us and two threads a stream for
grpcio's synchronous server; at the few hundred streams of a large mesh only the former is cheap.

A slow agent holds nothing up and costs nothing: its stream is polled again only after its last response was
written, and then says in one response all that changed meanwhile.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any

import grpc

from istiodlite import memory
from istiodlite.api import discovery_pb2
from istiodlite.ca.caller import Caller
from istiodlite.ca.service import OPAQUE, Authenticator
from istiodlite.machines import HEALTH_TYPE, Registrar, machine_of
from istiodlite.metrics import Metrics
from istiodlite.registry import Changes
from istiodlite.registry.resource import short_type
from istiodlite.xds.identity import check_node
from istiodlite.xds.session import DeltaSession, Response
from istiodlite.xds.sotw import FullResponse, SotwSession
from istiodlite.xds.store import Store
from istiodlite.xds.stream import Answer, Session

PATH = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
SOTW_PATH = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
# A client that leaves a response unanswered for so long is stuck; it does better with a new stream.
ACK_LIMIT = 120.0
# So often the streams are looked through for such.
LOOK_INTERVAL = 2.0
# A client that asks without reading is not listened to beyond this many answers.
MAX_ANSWERS = 64
# What a stream is first told of a large mesh, and the list of versions it opens with, are megabytes. When a
# whole mesh connects at once, only a few of them are in memory at a time.
LARGE_BYTES = 1024 * 1024
LARGE_AT_ONCE = 4
# Beyond this a slow client no longer keeps the others waiting.
LARGE_PATIENCE = 10.0
OPENING_REQUESTS = 2
OPENING_PATIENCE = 0.25
# So long after the last opening of a herd the memory its megabytes took goes back to the system.
SETTLED = 2.0

_Request = discovery_pb2.DeltaDiscoveryRequest | discovery_pb2.DiscoveryRequest
_log = logging.getLogger("istiodlite.xds")


@dataclass(slots=True)
class Client:
    """One stream, as /debug/clients shows it."""

    number: int
    peer: str
    caller: Caller
    session: Session[Any]
    since: float
    wake: asyncio.Event
    answers: list[Answer] = field(default_factory=list)
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False
    refusal: str = ""
    status: grpc.StatusCode = grpc.StatusCode.PERMISSION_DENIED
    responses: int = 0

    def describe(self, now: float) -> dict[str, Any]:
        oldest = self.session.oldest_unacknowledged()
        return {
            "stream": self.number,
            "node": self.session.node_id,
            "nodeName": self.session.node_name,
            "peer": self.peer,
            "caller": str(self.caller),
            "connectedSeconds": round(now - self.since, 1),
            "responses": self.responses,
            "oldestUnacknowledgedSeconds": None if oldest is None else round(now - oldest, 3),
            "types": {
                short_type(type_url): {
                    "wildcard": one.wildcard,
                    "asked": sorted(one.asked)[:100],
                    "storeVersion": one.sequence,
                    "acknowledged": one.acknowledged,
                    "unacknowledged": len(one.unacknowledged),
                    "acks": one.acks,
                    "nacks": one.nacks,
                    "lastNack": one.last_nack,
                }
                for type_url, one in self.session.subscriptions.items()
            },
        }


class DiscoveryService:
    """Store, streams and their handler. All methods belong to the loop's thread."""

    def __init__(
        self, authenticator: Authenticator, metrics: Metrics, machines: Registrar | None = None
    ) -> None:
        self.store = Store()
        self._machines = machines
        self._authenticator = authenticator
        self._metrics = metrics
        self._clients: dict[int, Client] = {}
        self._count = 0
        # When the change of each sequence number was seen; only the latest ones matter.
        self._seen: dict[int, float] = {}
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._opening = asyncio.Semaphore(LARGE_AT_ONCE)
        self._settled: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None

    def handler(self) -> "grpc.RpcMethodHandler[Any, Any]":
        """Of DeltaAggregatedResources."""

        async def stream(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await self._stream(DeltaSession(self.store), context)

        return grpc.stream_stream_rpc_method_handler(
            stream,
            request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
            response_serializer=Response.serialize,
        )

    def sotw_handler(self) -> "grpc.RpcMethodHandler[Any, Any]":
        """Of StreamAggregatedResources."""

        async def stream(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await self._stream(SotwSession(self.store), context)

        return grpc.stream_stream_rpc_method_handler(
            stream,
            request_deserializer=discovery_pb2.DiscoveryRequest.FromString,
            response_serializer=FullResponse.serialize,
        )

    def publish(self, changes: Changes, seen: float) -> None:
        """Takes a batch and wakes all streams. `seen`: when its first change was noticed (monotonic)."""
        sequence = self.store.apply(changes)
        self._seen[sequence] = seen
        while len(self._seen) > 64:
            del self._seen[next(iter(self._seen))]
        for client in self._clients.values():
            client.wake.set()

    def stop(self) -> None:
        """Ends all streams in good order, so that agents go and look for another control plane at once."""
        for client in self._clients.values():
            self._end(client, grpc.StatusCode.UNAVAILABLE, "the control plane stops; connect again")

    @staticmethod
    def _end(client: Client, status: grpc.StatusCode, reason: str) -> None:
        client.refusal, client.status = reason, status
        client.wake.set()

    def clients(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        return [client.describe(now) for client in self._clients.values()]

    async def _stream(self, session: Session[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        caller = await self._authenticator.caller(tuple(context.invocation_metadata() or ()), context.peer())
        if caller is None:
            self._metrics.refused_streams.labels(grpc.StatusCode.UNAUTHENTICATED.name.lower()).inc()
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, OPAQUE)
            return
        self._count += 1
        client = Client(
            number=self._count,
            peer=context.peer(),
            caller=caller,
            session=session,
            since=time.monotonic(),
            wake=asyncio.Event(),
        )
        self._clients[client.number] = client
        if self._watch is None:
            self._look_after()
        self._metrics.streams.inc()
        reader = asyncio.create_task(self._read(client, context))
        try:
            await self._write(client, context)
        finally:
            reader.cancel()
            if self._machines is not None:
                self._machines.disconnect(client.number)
            del self._clients[client.number]
            self._metrics.streams.dec()
            _log.info("stream %d closed node=%s", client.number, client.session.node_id)
        if client.refusal:
            self._metrics.refused_streams.labels(client.status.name.lower()).inc()
            _log.warning("ended stream peer=%s caller=%s: %s", client.peer, caller, client.refusal)
            await context.abort(client.status, client.refusal)

    async def _read(self, client: Client, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            # The end of the stream is a sentinel of grpc's own, not a request.
            while isinstance(request := await self._next(client, context), _Request):
                if request.type_url == HEALTH_TYPE:
                    self._on_health(client, request)
                    continue
                if not client.session.node_id and not await self._admit(client, request.node):
                    break
                self._on_request(client, request)
                del request
                # Most are acknowledgements, after which there is nothing to say.
                if client.answers or client.refusal or client.session.behind:
                    client.wake.set()
                while len(client.answers) >= MAX_ANSWERS:
                    client.drained.clear()
                    await client.drained.wait()
        except grpc.aio.AioRpcError as error:
            _log.info("stream %d broke: %s", client.number, error.code())
        finally:
            client.ended = True
            client.wake.set()

    async def _next(self, client: Client, context: grpc.aio.ServicerContext[Any, Any]) -> object:
        if len(client.session.subscriptions) >= OPENING_REQUESTS:
            return await context.read()
        await self._opening.acquire()
        held = [self._opening]

        def release() -> None:
            if held:
                held.pop().release()

        # A client that is silent must not keep others waiting.
        asyncio.get_running_loop().call_later(OPENING_PATIENCE, release)
        try:
            return await context.read()
        finally:
            release()
            self._tidy_when_settled()

    def _tidy_when_settled(self) -> None:
        if self._settled is not None:
            self._settled.cancel()
        loop = asyncio.get_running_loop()
        self._settled = loop.call_later(SETTLED, loop.run_in_executor, None, memory.give_back)

    def _on_request(self, client: Client, request: _Request) -> None:
        session = client.session
        client.answers.extend(session.on_request(request, time.monotonic()))
        for nack in session.nacks:
            self._metrics.rejects.labels(short_type(nack.type_url)).inc()
            _log.warning(
                "NACK node=%s type=%s nonce=%s names=%s: %s",
                session.node_id,
                nack.type_url,
                nack.nonce,
                ",".join(nack.names),
                nack.message,
            )
        session.nacks.clear()

    async def _admit(self, client: Client, node: discovery_pb2.Node) -> bool:
        """Who it is, before anything is answered; a machine that asks for it gets its WorkloadEntry."""
        refusal = check_node(node, client.caller)
        if refusal:
            self._end(client, grpc.StatusCode.PERMISSION_DENIED, refusal)
            return False
        _log.info("stream %d node=%s caller=%s", client.number, node.id, client.caller)
        refusal = await self._register(client, node)
        if refusal:
            self._end(client, grpc.StatusCode.FAILED_PRECONDITION, refusal)
        return not refusal

    async def _register(self, client: Client, node: discovery_pb2.Node) -> str:
        machine = machine_of(node, client.caller)
        if machine is None:
            return ""
        if self._machines is None:
            return "machines cannot register with a folder of objects; write a WorkloadEntry there"
        return await asyncio.wrap_future(self._machines.connect(client.number, machine, client.caller))

    def _on_health(self, client: Client, request: _Request) -> None:
        """Of one that is not registered it says nothing."""
        if self._machines is not None:
            ill = request.HasField("error_detail")
            self._machines.health(client.number, request.error_detail.message if ill else None)

    async def _write(self, client: Client, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        while not client.ended and not client.refusal:
            await client.wake.wait()
            client.wake.clear()
            while client.answers and not client.refusal:
                await self._send(client, context, client.answers.pop(0))
                client.drained.set()
            for response in client.session.poll(time.monotonic()):
                await self._send(client, context, response)
                seen = self._seen.get(response.sequence)
                if seen is not None:
                    self._metrics.convergence.observe(time.monotonic() - seen)

    def _look_after(self) -> None:
        """Ends streams that are stuck. One timer for all: one for each wait would cost more than most of what is sent."""
        now = time.monotonic()
        for client in self._clients.values():
            oldest = client.session.oldest_unacknowledged()
            if oldest is not None and now - oldest > ACK_LIMIT:
                reason = f"a response was not acknowledged for {ACK_LIMIT:.0f} s; connect again"
                self._end(client, grpc.StatusCode.DEADLINE_EXCEEDED, reason)
        again = asyncio.get_running_loop().call_later
        self._watch = again(LOOK_INTERVAL, self._look_after) if self._clients else None

    async def _send(
        self,
        client: Client,
        context: grpc.aio.ServicerContext[Any, Any],
        response: Answer,
    ) -> None:
        kind = short_type(response.type_url)
        self._metrics.pushes.labels(kind).inc()
        self._metrics.pushed.labels(kind).inc(response.count)
        client.responses += 1
        try:
            if len(response.encoded) < LARGE_BYTES:
                async with asyncio.timeout(ACK_LIMIT):
                    await context.write(response)
                return
            async with self._large:
                writing = asyncio.ensure_future(context.write(response))
                await asyncio.wait((writing,), timeout=LARGE_PATIENCE)
            await asyncio.wait_for(writing, ACK_LIMIT)
        except TimeoutError:
            reason = f"a response was not read for {ACK_LIMIT:.0f} s; connect again"
            self._end(client, grpc.StatusCode.DEADLINE_EXCEEDED, reason)
