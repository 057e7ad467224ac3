"""HTTPS for reviews: POST /validate. One trio task a connection; h11 speaks HTTP/1.1."""

import datetime
import json
import logging
import os
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import h11
import trio

from istiodlite.ca.serving import ServingCertificate, ServingPair
from istiodlite.webhook.review import BadReview

_log = logging.getLogger("istiodlite.webhook")
PATH = "/validate"
# etcd takes 1.5 MiB; an update's review holds the old object and the new one.
MAX_BODY = 8 * 1024 * 1024
_IDLE, _REQUEST = 60.0, 10.0
Handler = Callable[[Any], Awaitable[dict[str, Any]]]


class WebhookServer:
    """`handle` answers a review; its BadReview becomes status 400."""

    def __init__(self, serving: ServingCertificate, handle: Handler) -> None:
        self._serving, self._handle = serving, handle
        self._pair: ServingPair | None = None
        self._context: ssl.SSLContext | None = None

    async def connection(self, raw: trio.SocketStream) -> None:
        """One connection with as many requests as the client likes. A bad client only ends its own."""
        stream = trio.SSLStream(raw, self._tls(), server_side=True, https_compatible=True)
        try:
            with trio.fail_after(_REQUEST):
                await stream.do_handshake()
            http = h11.Connection(h11.SERVER)
            while await self._exchange(stream, http):
                http.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, OSError) as error:
            _log.debug("client went away: %s", error)
        except h11.RemoteProtocolError as error:
            _log.debug("not HTTP/1.1: %s", error)
        finally:
            await trio.aclose_forcefully(stream)

    def _tls(self) -> ssl.SSLContext:
        """The certificate of this moment."""
        pair = self._serving.current(datetime.datetime.now(datetime.UTC))
        if self._context is None or pair is not self._pair:
            self._context, self._pair = _context(pair), pair
        return self._context

    async def _exchange(self, stream: trio.SSLStream[trio.SocketStream], http: h11.Connection) -> bool:
        """One request and its answer; whether another may follow."""
        with trio.fail_after(_IDLE):
            head = await _event(stream, http)
        if not isinstance(head, h11.Request):
            return False
        with trio.fail_after(_REQUEST):
            status, body = await self._answer(stream, http, head)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            kind = b"text/plain" if isinstance(body, bytes) else b"application/json"
            headers = [(b"content-type", kind), (b"content-length", str(len(data)).encode())]
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=data),
                h11.EndOfMessage(),
            ):
                await stream.send_all(http.send(event) or b"")
        return status == 200 and http.our_state is h11.DONE and http.their_state is h11.DONE

    async def _answer(
        self, stream: trio.SSLStream[trio.SocketStream], http: h11.Connection, head: h11.Request
    ) -> tuple[int, Any]:
        if head.target.partition(b"?")[0] != PATH.encode():
            return 404, f"only {PATH}\n".encode()
        if head.method != b"POST":
            return 405, b"only POST\n"
        data = bytearray()
        while isinstance(event := await _event(stream, http), h11.Data):
            data += event.data
            if len(data) > MAX_BODY:
                return 413, f"a review has at most {MAX_BODY} bytes\n".encode()
        if not isinstance(event, h11.EndOfMessage):
            return 400, b"the request broke off\n"
        try:
            return 200, await self._handle(json.loads(data))
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, BadReview) else "the body is not JSON"
            return 400, f"{reason}\n".encode()


async def _event(stream: trio.SSLStream[trio.SocketStream], http: h11.Connection) -> Any:
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(bytes(await stream.receive_some(65536)))
    return event


def _context(pair: ServingPair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # Python's ssl reads keys from files only; this one has no name and is gone with the descriptor.
    with tempfile.TemporaryFile() as file:
        file.write(pair.key_pem + pair.chain_pem)
        file.flush()
        context.load_cert_chain(Path(f"/proc/{os.getpid()}/fd/{file.fileno()}"))
    return context
