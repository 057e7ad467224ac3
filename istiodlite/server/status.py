"""Status over plain HTTP/1.1: /ready, /metrics, /debug/... GET only, one request a connection."""

import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

_log = logging.getLogger("istiodlite.status")
_MAX_REQUEST = 16 * 1024
_TIMEOUT = 10.0
_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed"}
_REASONS[503] = "Service Unavailable"


@dataclass(frozen=True, slots=True)
class Page:
    """An answer. `body` is text, or a value that is shown as JSON."""

    body: Any
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"

    def encode(self) -> bytes:
        body, kind = self.body, self.content_type
        if not isinstance(body, (str, bytes)):
            body, kind = json.dumps(body, indent=2, sort_keys=False) + "\n", "application/json"
        data = body.encode() if isinstance(body, str) else body
        head = (
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}\r\n"
            f"content-type: {kind}\r\ncontent-length: {len(data)}\r\n"
            "x-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
        )
        return head.encode() + data


Pages = Mapping[str, Callable[[], Awaitable[Page]]]


class StatusServer:
    """Serves `pages`; those under /debug/ only to clients on this machine, unless `open_debug`."""

    def __init__(self, pages: Pages, *, open_debug: bool = False) -> None:
        self._pages = pages
        self._open_debug = open_debug

    async def handle(self, stream: trio.SocketStream) -> None:
        """One connection. A client that misbehaves only ends its own."""
        try:
            with trio.move_on_after(_TIMEOUT):
                page = await self._answer(await _request_line(stream), stream)
                await stream.send_all(page.encode())
        except (trio.BrokenResourceError, trio.ClosedResourceError, ConnectionError):
            _log.debug("client went away")
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer(self, line: str, stream: trio.SocketStream) -> Page:
        parts = line.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            return Page("not an HTTP/1.1 request\n", 400)
        if parts[0] != "GET":
            return Page("only GET\n", 405)
        path = parts[1].partition("?")[0]
        if path.startswith("/debug/") and not self._open_debug and not _is_local(stream):
            return Page(
                "debug pages are for this machine only; ask from it, or start with --open-debug\n", 403
            )
        page = self._pages.get(path)
        if page is None:
            return Page("".join(f"{known}\n" for known in self._pages), 404)
        return await page()


def _is_local(stream: trio.SocketStream) -> bool:
    """The peer is loopback, or has the very address it talks to."""
    peer, own = stream.socket.getpeername()[0], stream.socket.getsockname()[0]
    address = ipaddress.ip_address(peer.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool(peer == own or address.is_loopback or (mapped is not None and mapped.is_loopback))


async def _request_line(stream: trio.SocketStream) -> str:
    """The first line, after the whole head was read."""
    data = b""
    while b"\r\n\r\n" not in data and len(data) < _MAX_REQUEST:
        chunk = await stream.receive_some(4096)
        if not chunk:
            break
        data += bytes(chunk)
    return data.partition(b"\r\n")[0].decode("latin-1")
