"""A small HTTP/1.1 server on trio and h11 for metrics, readiness and admin pages.

Bounded everywhere: request head 8 KiB, body 64 KiB, 2 s to send a head, 64 connections at once.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

import h11
import trio

__all__ = ["BindError", "Handler", "Request", "Response", "listen", "serve"]

_log = logging.getLogger("ztunnel.http")
_HEAD_LIMIT = 8 * 1024
_BODY_LIMIT = 64 * 1024
_HEAD_SECONDS = 2.0
_IDLE_SECONDS = 75.0
_CONNECTIONS = 64
_LINGER_SECONDS = 1.0
_LINGER_READS = 16


class BindError(Exception):
    """A port cannot be opened; the text names the port and what to do."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: `path` without query, header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Response:
    """One answer."""

    status: int
    body: bytes | str = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Sequence[tuple[str, str]] = field(default=())

    @property
    def data(self) -> bytes:
        """The body in bytes."""
        return self.body.encode() if isinstance(self.body, str) else self.body


Handler = Callable[[Request], Awaitable[Response]]


def listen(address: str, port: int, *, setting: str, shared: bool = False) -> trio.SocketListener:
    """Open one listener ("::" takes both families); raises BindError.

    Another process may share the port later if it asks for it with `shared`; without, a port in use is an error.
    """
    try:
        if not shared:
            # Every listener lets itself be shared, so that a successor can open the same port. Whether
            # somebody is there already, only a socket that does not share can tell.
            _bound(address, port, share=False).close()
        sock = _bound(address, port, share=True)
        sock.listen(128)
        sock.setblocking(False)
    except OSError as error:
        shown = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        raise BindError(
            f"cannot listen on {shown}: {error.strerror}; stop what uses the port or set {setting}"
        ) from None
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def _bound(address: str, port: int, *, share: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address == "::" else 1)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock


async def serve(listeners: Sequence[trio.SocketListener], handler: Handler) -> None:
    """Answer requests until cancelled."""
    limit = trio.CapacityLimiter(_CONNECTIONS)

    async def connection(stream: trio.SocketStream) -> None:
        async with stream, limit:
            try:
                await _connection(stream, handler)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    await trio.serve_listeners(connection, list(listeners))


async def _connection(stream: trio.SocketStream, handler: Handler) -> None:
    conn = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_LIMIT)
    wait = _HEAD_SECONDS
    while True:
        request = None
        try:
            with trio.move_on_after(wait) as scope:
                request = await _request(conn, stream)
            if scope.cancelled_caught or request is None:
                return
            response = await _answer(handler, request)
        except h11.RemoteProtocolError as error:
            response = Response(error.error_status_hint or 400, "bad request\n")
        await _send(conn, stream, response, body=request is None or request.method != "HEAD")
        if conn.our_state is not h11.DONE or conn.their_state is not h11.DONE:
            await _linger(stream)
            return
        conn.start_next_cycle()
        wait = _IDLE_SECONDS


async def _linger(stream: trio.SocketStream) -> None:
    """Take what the client still sends: closing on unread data would reset the answer away."""
    await stream.send_eof()
    with trio.move_on_after(_LINGER_SECONDS):
        for _ in range(_LINGER_READS):
            if not await stream.receive_some(64 * 1024):
                return


async def _request(conn: h11.Connection, stream: trio.SocketStream) -> Request | None:
    """Read one whole request; None when the client left."""
    head: h11.Request | None = None
    size = 0
    while True:
        event = conn.next_event()
        if event is h11.NEED_DATA:
            conn.receive_data(await stream.receive_some(16 * 1024))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > _BODY_LIMIT:
                raise h11.RemoteProtocolError("body too large", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return _parsed(head)
        else:
            return None


def _parsed(head: h11.Request) -> Request:
    parts = urlsplit(head.target.decode("ascii"))
    return Request(
        head.method.decode("ascii"),
        parts.path,
        dict(parse_qsl(parts.query, keep_blank_values=True)),
        {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers},
    )


async def _answer(handler: Handler, request: Request) -> Response:
    try:
        return await handler(request)
    except Exception:
        _log.exception("request failed")
        return Response(500, "internal error, see the log\n")


async def _send(conn: h11.Connection, stream: trio.SocketStream, response: Response, *, body: bool) -> None:
    if conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    data = response.data
    headers = [("content-type", response.content_type), ("content-length", str(len(data)))]
    if conn.their_state is not h11.DONE:
        headers.append(("connection", "close"))
    out = conn.send(h11.Response(status_code=response.status, headers=[*headers, *response.headers])) or b""
    if body:
        out += conn.send(h11.Data(data=data)) or b""
    out += conn.send(h11.EndOfMessage()) or b""
    await stream.send_all(out)
