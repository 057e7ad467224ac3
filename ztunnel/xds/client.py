"""Moves the delta session's messages over gRPC, for as long as the agent lives.

grpcio has no trio loop: reading the stream blocks a thread, everything else happens in the trio thread.
What was received stays in force while there is no connection; reconnecting backs off from 10 ms to 15 s.
"""

from __future__ import annotations

import logging
import queue
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import grpc
import trio

from istiodlite.api.discovery_pb2 import DeltaDiscoveryRequest
from ztunnel import collector
from ztunnel.backoff import Backoff
from ztunnel.control_plane import ControlPlane
from ztunnel.logs import fields
from ztunnel.store import Store
from ztunnel.xds.delta import DeltaSession, ProtocolError, Received

__all__ = ["XdsClient"]

_log = logging.getLogger("ztunnel.xds")
_METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
_ROOTS_CHECK = 2.0
_ANSWERED = 100_000
_LASTED = 2.0
_LARGE = 64 * 1024
_HUGE = 4 * 1024 * 1024

# After these the server is there and only this stream ended (Istio's rule): no long wait.
_QUICK = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}

_Requests: TypeAlias = "queue.SimpleQueue[DeltaDiscoveryRequest | None]"


class XdsClient:
    """One delta stream at a time, fed by a session that outlives it."""

    def __init__(
        self,
        control_plane: ControlPlane,
        session: DeltaSession,
        store: Store,
        *,
        draw: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = trio.current_time,
    ) -> None:
        self._control_plane, self._session, self._store = control_plane, session, store
        self._draw, self._now = draw, monotonic
        self._requests: _Requests | None = None
        self._call: Any = None
        self._lock = trio.Lock()
        self._answered: set[str] = set()
        self._waiting: dict[str, trio.Event] = {}
        self.ready = trio.Event()
        self.connected = False
        self._lasted = False
        self.last_message: float | None = None
        self.messages: Counter[str] = Counter()
        self.message_bytes: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.terminations: Counter[str] = Counter()

    async def run(self) -> None:
        """Keep a stream until cancelled."""
        backoff = Backoff(first=0.01, cap=15.0)
        failing = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_roots)
            while True:
                error = await self._stream()
                cause, quick = _cause(error)
                self.terminations[cause] += 1
                # Not for every stream that came about: a server that accepts and drops would be dialled a
                # hundred times a second, by every agent of the mesh.
                if self._lasted:
                    backoff.reset()
                if error is not None and not failing:
                    _log.warning(
                        "control plane not reachable, state is kept",
                        extra=fields(server=self._control_plane.endpoint.target, error=_text(error)),
                    )
                failing = error is not None and not quick
                await trio.sleep(backoff.next(self._draw()))

    async def ask(self, name: str, timeout: float) -> bool:
        """On demand: ask for a resource by name or alias; True when it was answered (found or not)."""
        if name in self._answered:
            return True
        with trio.move_on_after(timeout):
            async with self._lock:
                request = self._session.demand(name)
                if request is None and name not in self._session.waiting:
                    return True
                event = self._waiting.setdefault(name, trio.Event())
                if request is not None and self._requests is not None:
                    self._requests.put(request)
            await event.wait()
            return True
        return False

    # One stream

    async def _stream(self) -> Exception | None:
        """Run one stream to its end; returns why it ended, None for a clean end."""
        requests: _Requests = queue.SimpleQueue()
        self._lasted = False
        try:
            call = await trio.to_thread.run_sync(self._open, requests, abandon_on_cancel=True)
        except (OSError, grpc.RpcError) as error:
            return error
        self._call, self._requests = call, requests
        begin = self._now()
        # What was not found may have come to be while there was no stream.
        self._answered.clear()
        try:
            for request in self._session.start():
                requests.put(request)
            return await self._read(call)
        finally:
            self._call = self._requests = None
            self._lasted = self.connected and self._now() - begin >= _LASTED
            self.connected = False
            requests.put(None)
            call.cancel()

    def _open(self, requests: _Requests) -> Any:
        stream = self._control_plane.channel().stream_stream(
            _METHOD,
            request_serializer=DeltaDiscoveryRequest.SerializeToString,
            # The session parses: the size is wanted for metrics, and a bad message is its to answer.
            response_deserializer=bytes,
        )
        return stream(_drain(requests), metadata=self._control_plane.metadata())

    async def _read(self, call: Any) -> Exception | None:
        while True:
            try:
                data = await trio.to_thread.run_sync(_next, call, abandon_on_cancel=True)
            except grpc.RpcError as error:
                return error
            if data is None:
                return None
            try:
                await self._take(data)
            except ProtocolError as error:
                return error
            except Exception as error:
                # State that cannot be taken over must not end the agent: what is known stays in force.
                _log.exception("a response was not taken over")
                return error

    async def _parse(self, data: bytes) -> Received:
        async with self._lock:
            return await self._convert(data)

    async def _convert(self, data: bytes) -> Received:
        # A first push may hold every workload of the mesh: that must not stop connections.
        if len(data) < _LARGE:
            return self._session.on_response(data)
        return await trio.to_thread.run_sync(self._session.on_response, data)

    async def _take(self, data: bytes) -> None:
        if len(data) < _HUGE:
            await self._received(await self._parse(data), len(data))
            return
        with collector.resting():
            await self._received(await self._parse(data), len(data))

    async def _received(self, received: Received, size: int) -> None:
        if not self.connected:
            self.connected = True
            _log.info("control plane connected", extra=fields(server=self._control_plane.endpoint.target))
        self.last_message = self._now()
        self.messages[received.type_url] += 1
        self.message_bytes[received.type_url] += size
        # State first: whoever is woken, and the server that sees the ACK, may rely on it.
        await self._store.apply(received.update)
        if self._requests is not None:
            self._requests.put(received.request)
        if len(self._answered) > _ANSWERED:
            self._answered.clear()
        for name in received.answered:
            self._answered.add(name)
            event = self._waiting.pop(name, None)
            if event is not None:
                event.set()
        for bad in received.rejected:
            self.rejected[received.type_url] += 1
            _log.warning("resource rejected", extra=fields(name=bad.name, error=bad.reason))
        if self._session.ready and not self.ready.is_set():
            _log.info("first state received", extra=fields(version=self._store.snapshot.version))
            self.ready.set()

    async def _watch_roots(self) -> None:
        """Begin a new stream when the file with the roots changes."""
        known = self._control_plane.roots_version()
        while True:
            await trio.sleep(_ROOTS_CHECK)
            version = self._control_plane.roots_version()
            if version != known and version is not None:
                known = version
                _log.info("roots changed, connecting again")
                if self._call is not None:
                    self._call.cancel()


def _drain(requests: _Requests) -> Iterator[DeltaDiscoveryRequest]:
    while (request := requests.get()) is not None:
        yield request


def _next(call: Any) -> bytes | None:
    """The stream's next message; None at its end."""
    data: bytes | None = next(call, None)
    return data


def _cause(error: Exception | None) -> tuple[str, bool]:
    """The `reason` label of istio_xds_connection_terminations_total, and whether to come back at once."""
    if error is None:
        return "Complete", True
    if not isinstance(error, grpc.Call):
        return ("ConnectionError" if isinstance(error, OSError) else "Error"), False
    code, text = error.code(), error.details() or ""
    if code in _QUICK:
        return "Reconnect", True
    if code is grpc.StatusCode.UNAVAILABLE:
        gone = "transport is closing" in text or "received prior goaway" in text.lower()
        return ("Reconnect", True) if gone else ("ConnectionError", False)
    return "Error", False


def _text(error: Exception) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name.lower()}: {error.details()}"
    return str(error)
