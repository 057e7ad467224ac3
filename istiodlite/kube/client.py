"""HTTP to the API server: JSON requests and the lines of a watch.

On httpx2, the maintained continuation of httpx (whose last release is of 2024): one pool serves lists, watches
and reviews, on trio and, for the certificate service, on asyncio. Proxies and CA bundles of the environment
are ignored on purpose: credentials go where the kubeconfig says and nowhere else.
"""

import contextlib
import json
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Self

import httpx2

from istiodlite.kube.access import Access, AccessError

# An object is at most a few MiB (etcd's limit is 1.5 MiB of protobuf), a page has at most 500.
MAX_LINE = 32 * 1024 * 1024
MAX_BODY = 1024 * 1024 * 1024
_CONNECT, _WRITE, _READ = 10.0, 30.0, 60.0
# API servers send a bookmark about every minute. One that is silent for longer than two of them is thought to
# hang; if it does not, going on from the last version costs one request.
_SILENCE = 150.0
# A dead peer is noticed on an idle watch after 15 + 3 * 5 s, and on a request under way after 30 s.
_SOCKET_OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
]


class ApiError(Exception):
    """A request that did not do what it should.

    `code` is the HTTP status, 0 if there was no answer; `reason` the API's word (NotFound, Expired, ...);
    `retry_after` seconds, 0 if the server did not say.
    """

    def __init__(self, code: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.retry_after = code, reason, message, retry_after


class KubeClient:
    """Requests as one user. Belongs to the event loop in which it is first used."""

    def __init__(self, access: Access, user_agent: str = "istiodlite") -> None:
        """Raises AccessError."""
        self.access, self._user_agent = access, user_agent
        self._stamp = access.stamp()
        self._http = self._open()

    def _open(self) -> httpx2.AsyncClient:
        limits = httpx2.Limits(max_connections=64, max_keepalive_connections=4, keepalive_expiry=30.0)
        transport = httpx2.AsyncHTTPTransport(
            verify=self.access.tls() if self.access.server.startswith("https:") else False,
            trust_env=False,
            limits=limits,
            socket_options=_SOCKET_OPTIONS,
        )
        return httpx2.AsyncClient(
            base_url=self.access.server,
            transport=transport,
            trust_env=False,
            timeout=httpx2.Timeout(_READ, connect=_CONNECT, write=_WRITE),
            headers={"user-agent": self._user_agent, "accept": "application/json"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    def renew(self) -> None:
        """Takes up CA and client certificate again if their files changed; requests under way go on.

        To be called after failures. Keeps what it has where the new files are not usable.
        """
        stamp = self.access.stamp()
        if stamp == self._stamp:
            return
        with contextlib.suppress(AccessError):
            self._http, self._stamp = self._open(), stamp

    async def get(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        """The JSON of `path`. Raises ApiError."""
        return await self.send("GET", path, parameters=parameters)

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        parameters: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Any:
        """A request with an optional JSON body; the JSON of the answer. Raises ApiError."""
        async with self._answer(method, path, parameters, body, content_type=content_type) as response:
            data = await _body(response)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise ApiError(response.status_code, "Garbled", "the answer is not JSON") from None

    async def ready(self) -> bool:
        """Whether the server has loaded all it serves. A server that does not let us ask counts as ready."""
        try:
            async with self._answer("GET", "/readyz", None, None):
                return True
        except ApiError as error:
            return error.code in (401, 403, 404)

    @contextlib.asynccontextmanager
    async def lines(self, path: str, parameters: Mapping[str, str]) -> AsyncGenerator[AsyncIterator[bytes]]:
        """The lines of a watch, as they come. Entering and iterating raise ApiError."""
        async with self._answer("GET", path, parameters, None, watch=True) as response:
            yield _lines(response)

    @contextlib.asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None,
        body: Any,
        *,
        watch: bool = False,
        content_type: str = "",
    ) -> AsyncGenerator[httpx2.Response]:
        """A response whose status says success. Raises ApiError, also for what goes wrong while reading."""
        http = self._http
        try:
            request = http.build_request(
                method,
                path,
                params=parameters,
                json=body,
                headers=self._authorization() | ({"content-type": content_type} if body is not None else {}),
                extensions=self._extensions(watch),
            )
            response = await http.send(request, stream=True)
            try:
                if response.status_code >= 400:
                    raise _status_error(response, await _body(response))
                yield response
            finally:
                await response.aclose()
        except AccessError as error:
            raise ApiError(0, "Credentials", str(error)) from None
        except httpx2.HTTPError as error:
            raise ApiError(0, "Unreachable", self._unreachable(error)) from None

    def _authorization(self) -> dict[str, str]:
        token = self.access.bearer()
        return {"authorization": f"Bearer {token}"} if token else {}

    def _extensions(self, watch: bool) -> dict[str, Any]:
        read = _SILENCE if watch else _READ
        extensions: dict[str, Any] = {
            "timeout": {"connect": _CONNECT, "pool": _CONNECT, "write": _WRITE, "read": read}
        }
        if self.access.tls_name:
            extensions["sni_hostname"] = self.access.tls_name
        return extensions

    def _unreachable(self, error: Exception) -> str:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            return f"{self.access.server}: its certificate is not accepted ({cause.verify_message}); check the CA"
        what = str(error) or type(error).__name__
        return f"{self.access.server}: {what}; check that the API server is up and reachable"


async def _body(response: httpx2.Response) -> bytes:
    parts, size = [], 0
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MAX_BODY:
            raise ApiError(response.status_code, "Garbled", f"the answer has more than {MAX_BODY} bytes")
        parts.append(part)
    return b"".join(parts)


async def _lines(response: httpx2.Response) -> AsyncIterator[bytes]:
    """Splits at line feeds only: JSON may hold what Unicode calls a line end."""
    pending: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes():
        *whole, rest = part.split(b"\n")
        for line in whole:
            yield b"".join([*pending, line])
            pending, size = [], 0
        if rest:
            pending.append(rest)
            size += len(rest)
        if size > MAX_LINE:
            raise ApiError(200, "Garbled", f"a watch event has more than {MAX_LINE} bytes")
    if pending:
        raise ApiError(0, "Unreachable", "the connection ended in the middle of an event")


def _status_error(response: httpx2.Response, data: bytes) -> ApiError:
    try:
        status = json.loads(data)
    except (ValueError, RecursionError):
        status = None
    if not isinstance(status, dict):
        text = data[:200].decode("utf-8", "replace").strip()
        status = {"message": " ".join(text.split()) or response.reason_phrase}
    return error_of(status, response.status_code, response.headers.get("retry-after", ""))


def error_of(status: Mapping[str, Any], code: int = 0, retry_after: str = "") -> ApiError:
    """A metav1.Status (an error's body, or the object of an ERROR event) as an error."""
    told = status.get("code")
    details = status.get("details")
    seconds = details.get("retryAfterSeconds", 0) if isinstance(details, dict) else 0
    if retry_after.isdigit():
        seconds = int(retry_after)
    message = " ".join(str(status.get("message") or "no reason given").split())
    return ApiError(
        code or (told if isinstance(told, int) else 0),
        str(status.get("reason") or ""),
        message[:500],
        float(min(seconds, 300)) if isinstance(seconds, (int, float)) else 0.0,
    )
