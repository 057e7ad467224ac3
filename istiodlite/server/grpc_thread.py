"""The gRPC server in a thread with an asyncio loop of its own."""

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import grpc

from istiodlite.ca.service import utc_now
from istiodlite.ca.serving import ServingCertificate, ServingPair
from istiodlite.server.config import StartError

_log = logging.getLogger("istiodlite.grpc")
_T = TypeVar("_T")

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.so_reuseport", 0),
    # Agents ping every 30 s; the server's defaults would take that for abuse and drop them.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A whole mesh connects at once after a restart; the default drops calls of such a herd at random.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 40_000),
    # A connection keeps room for one reading, and agents read much and say little after their first megabytes.
    ("grpc.experimental.tcp_max_read_buffer_size", 8 * 1024),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 64 * 1024),
]
_STOP_GRACE = 1.0


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    def __init__(self, handlers: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]) -> None:
        self._handlers = handlers

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        return self._handlers.get(handler_call_details.method)


def _credentials(serving: ServingCertificate) -> grpc.ServerCredentials:
    shown: list[ServingPair] = []

    def configuration(pair: ServingPair) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(pair.key_pem, pair.chain_pem)])

    def fetch() -> Any:
        """Asked by gRPC at every handshake; None keeps what it has."""
        pair = serving.current(utc_now())
        if shown and shown[-1] is pair:
            return None
        shown[:] = [pair]
        return configuration(pair)

    first = serving.current(utc_now())
    shown.append(first)
    return grpc.dynamic_ssl_server_credentials(configuration(first), fetch, False)


class GrpcThread:
    """`start` returns when the port is bound or raises StartError; `call` runs things in the loop.

    `on_stop` runs in the loop before the server stops, to end streams that would go on for ever.
    """

    def __init__(
        self,
        listen: tuple[str, int],
        serving: ServingCertificate,
        handlers: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"],
        on_stop: Callable[[], None],
    ) -> None:
        self._on_stop = on_stop
        self._listen = listen
        self._serving = serving
        self._handlers = handlers
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._bound: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="grpc", daemon=True)

    def start(self) -> int:
        """The port (of interest where 0 was asked for)."""
        self._thread.start()
        return self._bound.result()

    def call(self, function: Callable[[], _T]) -> "concurrent.futures.Future[_T]":
        """Runs a function in the loop's thread."""
        result: concurrent.futures.Future[_T] = concurrent.futures.Future()

        def run() -> None:
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return result

    def join(self) -> None:
        """Returns when the thread has ended."""
        self._thread.join()

    def stop(self) -> None:
        """Ends all streams and joins the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(_STOP_GRACE * 5)
        elif not self._loop.is_closed():
            # Never started; left to the end of the process it would complain there.
            self._loop.close()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:
            _log.exception("the gRPC server failed")
            if not self._bound.done():
                self._bound.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((_Handlers(self._handlers),))
        host, port = self._listen
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        credentials = _credentials(self._serving)
        try:
            bound = server.add_secure_port(where, credentials)
            if bound == 0:
                raise RuntimeError("not bound")
        except RuntimeError:
            message = f"cannot listen on {where}: the port is taken or the address is not ours; use --listen"
            self._bound.set_exception(StartError(message))
            return
        await server.start()
        self._bound.set_result(bound)
        await self._stopping.wait()
        self._on_stop()
        await server.stop(_STOP_GRACE)
        # What still runs after the grace time was cancelled; let it end before the loop does.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=_STOP_GRACE)
