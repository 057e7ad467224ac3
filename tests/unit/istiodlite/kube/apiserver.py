"""An API server that obeys the test: real sockets, TLS, HTTP/1.1 and chunked watches, faults on demand.

Lists, pages, watches from a version, bookmarks, 410 for what was compacted, create and replace behave as the
real one's; `Fault`s make it do what a real one cannot be made to do. Sends all of an object as it was put.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h11
import trio

from istiodlite.kube import Access
from istiodlite.kube.access import Pem
from istiodlite.sources.kube.kinds import WATCHED
from tests.support import pki

PATHS = {kind.kind: kind.path("v1") for kind in WATCHED} | {
    "ConfigMap": "/api/v1/configmaps",
    "Secret": "/api/v1/secrets",
}
TOKEN = "scripted-token"
REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
_NAMESPACED = re.compile(r"(/api/v1|/apis/[^/]+/[^/]+)/namespaces/([^/]+)/([^/]+)(?:/([^/]+))?$")
Body = dict[str, Any]


async def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Waits for a condition, at most so long."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.002)


def status(code: int, reason: str = "", message: str = "", **more: Any) -> Body:
    return {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message, **more}


@dataclass
class Fault:
    """For the next requests whose path and `verb` (list, watch, post, put) fit: an answer (`answer` with
    headers), raw bytes in place of watch events (`raw`), waiting for `gate`, or closing at once (`cut`)."""

    verb: str
    kind: str = ""
    times: int = 1
    answer: Body | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    raw: bytes | None = None
    gate: trio.Event | None = None
    cut: bool = False


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    verb: str
    authorization: str
    content_type: str = ""


class ApiServer:
    """Owned by the test; all methods that change something are immediate."""

    def __init__(self, folder: Path, *, tls: bool = True) -> None:
        self.version = 100
        self.oldest = 0
        self.objects: dict[str, dict[tuple[str, str], Body]] = {path: {} for path in PATHS.values()}
        self.history: list[tuple[int, str, str, Body]] = []
        self.faults: list[Fault] = []
        self.missing: set[str] = set()
        self.reviews: dict[str, Body] = {}
        self.requests: list[Request] = []
        self.ready = True
        self.page_limit = 10_000
        # So many requests for a further page are answered with 410.
        self.forget_tokens = 0
        self.watchers: dict[int, tuple[str, trio.MemorySendChannel[bytes | None]]] = {}
        self.conversations: set[trio.CancelScope] = set()
        self.port = 0
        self._tls: ssl.SSLContext | None = None
        self.access = Access("")
        self._count = 0
        self._snapshots: dict[tuple[str, str], list[Body]] = {}
        if tls:
            root = pki.Authority.root()
            leaf = root.leaf(dns=("localhost",), ips=("127.0.0.1",))
            self._tls = leaf.ssl_context(server=True, alpn=("http/1.1",))
            self._tls.verify_mode = ssl.CERT_NONE
            self._ca = folder / "ca.crt"
            self._ca.write_bytes(root.pem)

    @asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[ApiServer]:
        """Open until the block ends; a further call (with the same port) is the server come back."""
        listeners = await trio.open_tcp_listeners(port or self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        scheme = "http" if self._tls is None else "https"
        self.access = Access(
            f"{scheme}://127.0.0.1:{self.port}",
            authority=None if self._tls is None else Pem(self._ca),
            token=TOKEN,
            origin="test",
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._connection, listeners)
            yield self
            nursery.cancel_scope.cancel()
        self.watchers.clear()

    def put(self, body: Body) -> Body:
        """Creates or changes an object; a spec of what the test wants, with kind and metadata."""
        path = PATHS[body["kind"]]
        meta = body["metadata"]
        key = (meta.get("namespace", ""), meta["name"])
        self.version += 1
        stored = {**body, "metadata": {**meta, "resourceVersion": str(self.version)}}
        event = "MODIFIED" if key in self.objects[path] else "ADDED"
        self.objects[path][key] = stored
        self._record(path, event, stored)
        return stored

    def delete(self, kind: str, namespace: str, name: str) -> None:
        path = PATHS[kind]
        self.version += 1
        gone = self.objects[path].pop((namespace, name))
        self._record(
            path, "DELETED", {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.version)}}
        )

    def bookmark(self, kind: str) -> None:
        self.version += 1
        body = {"kind": kind, "metadata": {"resourceVersion": str(self.version)}}
        self._send(PATHS[kind], _line("BOOKMARK", body))

    def compact(self) -> None:
        """Versions before now are forgotten: watches from them get 410."""
        self.oldest = self.version
        self.history.clear()

    def raw(self, kind: str, data: bytes) -> None:
        """Bytes on the open watches of a kind."""
        self._send(PATHS[kind], data)

    def end_watches(self, kind: str = "") -> None:
        """In good order, as when timeoutSeconds are over."""
        self._send(PATHS[kind] if kind else "", None)

    def drop(self) -> None:
        """Cuts every connection in the middle."""
        for scope in list(self.conversations):
            scope.cancel()

    def count(self, verb: str, kind: str) -> int:
        return sum(one.verb == verb and one.path == PATHS[kind] for one in self.requests)

    def watched(self, kind: str) -> bool:
        return any(path == PATHS[kind] for path, _ in self.watchers.values())

    def _record(self, path: str, event: str, body: Body) -> None:
        self.history.append((self.version, path, event, body))
        self._send(path, _line(event, body))

    def _send(self, path: str, data: bytes | None) -> None:
        for where, channel in list(self.watchers.values()):
            if path in ("", where):
                channel.send_nowait(data)

    async def _connection(self, raw: trio.SocketStream) -> None:
        stream: trio.abc.Stream = raw
        if self._tls is not None:
            stream = trio.SSLStream(raw, self._tls, server_side=True, https_compatible=True)
        with trio.CancelScope() as scope:
            self.conversations.add(scope)
            try:
                await self._talk(_Http(stream))
            except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
                pass
            finally:
                self.conversations.discard(scope)
        await trio.aclose_forcefully(raw)

    async def _talk(self, http: _Http) -> None:
        while (head := await http.request()) is not None:
            request, body = head
            self.requests.append(request)
            fault = self._fault(request)
            if fault is not None:
                if fault.gate is not None:
                    await fault.gate.wait()
                if fault.cut:
                    return
                if fault.answer is not None:
                    await http.answer(fault.answer["code"], fault.answer, fault.headers)
                    continue
            if request.authorization != f"Bearer {TOKEN}":
                await http.answer(401, status(401, "Unauthorized", "Unauthorized"))
            elif request.verb == "watch":
                await self._watch(http, request, fault.raw if fault is not None else None)
            else:
                await http.answer(*self._answer(request, body))

    def _fault(self, request: Request) -> Fault | None:
        for fault in self.faults:
            plural = PATHS[fault.kind].rpartition("/")[2] if fault.kind else ""
            # Objects are created in a namespace's collection.
            fits = (
                request.path.endswith(f"/{plural}")
                if request.verb == "post"
                else request.path == PATHS.get(fault.kind)
            )
            fits = fits or not fault.kind
            if fault.verb == request.verb and fits and fault.times:
                fault.times -= 1
                return fault
        return None

    def _answer(self, request: Request, body: Body) -> tuple[int, Body]:
        if request.path == "/readyz":
            return (200, {}) if self.ready else (500, status(500, "", "not ready"))
        if request.path == REVIEWS:
            review = self.reviews.get(body["spec"]["token"], {"authenticated": False, "error": "unknown"})
            return 201, {**body, "status": review}
        if request.verb in ("post", "put"):
            return self._write(request, body)
        if request.verb == "patch":
            return self._patch(request, body)
        if request.verb == "delete":
            return self._remove(request, body)
        if (found := _NAMESPACED.match(request.path)) is not None:
            one = self.objects[f"{found[1]}/{found[3]}"].get((found[2], found[4]))
            return (200, one) if one is not None else (404, status(404, "NotFound", f"{found[4]} not found"))
        if request.path not in self.objects or request.path in self.missing:
            return 404, status(404, "NotFound", "the server could not find the requested resource")
        return self._list(request)

    def _list(self, request: Request) -> tuple[int, Body]:
        """Pages of one list are of one version, whatever changes meanwhile."""
        start = 0
        if token := request.query.get("continue"):
            version, _, place = token.partition(":")
            start = int(place)
            if self.forget_tokens or int(version) < self.oldest:
                self.forget_tokens -= 1
                return 410, status(410, "Expired", "The provided continue parameter is too old")
            items = self._snapshots[request.path, version]
        else:
            version = str(self.version)
            objects = self.objects[request.path]
            items = [objects[key] for key in sorted(objects) if _selected(request, objects[key])]
            self._snapshots[request.path, version] = items
        limit = len(items)
        if "limit" in request.query:
            limit = min(int(request.query["limit"]), self.page_limit)
        metadata: Body = {"resourceVersion": version}
        if start + limit < len(items):
            metadata["continue"] = f"{version}:{start + limit}"
        return 200, {"kind": "List", "metadata": metadata, "items": items[start : start + limit]}

    def _write(self, request: Request, body: Body) -> tuple[int, Body]:
        found = _NAMESPACED.match(request.path)
        assert found is not None
        key = (found[2], body["metadata"]["name"])
        present = self.objects[f"{found[1]}/{found[3]}"].get(key)
        if request.verb == "post":
            if present is not None:
                return 409, status(409, "AlreadyExists", "already exists")
            return 201, self.put(body)
        if present is None:
            return 404, status(404, "NotFound", "not found")
        if body["metadata"].get("resourceVersion") not in (None, present["metadata"]["resourceVersion"]):
            return 409, status(409, "Conflict", "the object has been modified")
        return 200, self.put(body)

    def _remove(self, request: Request, body: Body) -> tuple[int, Body]:
        """With the preconditions that were named."""
        found = _NAMESPACED.match(request.path)
        assert found is not None
        present = self.objects[f"{found[1]}/{found[3]}"].get((found[2], found[4]))
        if present is None:
            return 404, status(404, "NotFound", "not found")
        for name, value in (body or {}).get("preconditions", {}).items():
            if present["metadata"].get(name) != value:
                return 409, status(409, "Conflict", "the object has been modified")
        self.delete(present["kind"], found[2], found[4])
        return 200, status(200)

    def _patch(self, request: Request, body: Body) -> tuple[int, Body]:
        """A JSON merge patch of annotations, or of the status subresource: conditions and addresses as whole lists;
        and annotations, which pods take there, too."""
        found = _NAMESPACED.match(request.path.removesuffix("/status"))
        assert found is not None
        assert request.content_type == "application/merge-patch+json"
        assert request.path.endswith("/status") or body.keys() == {"metadata"}
        present = self.objects[f"{found[1]}/{found[3]}"].get((found[2], found[4]))
        if present is None:
            return 404, status(404, "NotFound", "not found")
        meta = present["metadata"]
        for name in ("resourceVersion", "uid"):
            if body["metadata"].get(name, meta.get(name)) != meta.get(name):
                return 409, status(409, "Conflict", "the object has been modified")
        annotations = {**meta.get("annotations", {}), **body["metadata"].get("annotations", {})}
        merged = {
            **meta,
            "annotations": {key: value for key, value in annotations.items() if value is not None},
        }
        told = {**present.get("status", {}), **body.get("status", {})}
        return 200, self.put({**present, "metadata": merged if annotations else meta, "status": told})

    async def _watch(self, http: _Http, request: Request, raw: bytes | None) -> None:
        if request.path in self.missing:
            await http.answer(404, status(404, "NotFound", "gone"))
            return
        await http.begin()
        version = int(request.query["resourceVersion"])
        if version < self.oldest:
            await http.chunk(_line("ERROR", status(410, "Expired", "too old resource version")))
            await http.end()
            return
        if raw is not None:
            await http.chunk(raw)
        send, receive = trio.open_memory_channel[bytes | None](1000)
        for at, path, event, body in self.history:
            if at > version and path == request.path:
                send.send_nowait(_line(event, body))
        self._count += 1
        number = self._count
        self.watchers[number] = (request.path, send)
        try:
            async for data in receive:
                if data is None:
                    break
                if not request.query.get("fieldSelector") or _selected(request, _object(data)):
                    await http.chunk(data)
            await http.end()
        finally:
            self.watchers.pop(number, None)


def _selected(request: Request, body: Body) -> bool:
    """Whether an object fits the request's field selector, which names one field at most."""
    field, _, wanted = request.query.get("fieldSelector", "").partition("=")
    value: Any = body
    for part in field.split(".") if field else ():
        value = value.get(part, {})
    return not field or not body or value == wanted


def _object(line: bytes) -> Body:
    """Of a watch event; bookmarks and what is no event at all fit every selector."""
    event = json.loads(line)
    return event["object"] if event["type"] != "BOOKMARK" else {}


def _line(event: str, body: Body) -> bytes:
    return json.dumps({"type": event, "object": body}).encode() + b"\n"


class _Http:
    """One connection's server side."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._h11 = h11.Connection(h11.SERVER)

    async def _event(self) -> Any:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self._stream.receive_some(65536))
        return event

    async def request(self) -> tuple[Request, Body] | None:
        if self._h11.our_state is h11.DONE:
            self._h11.start_next_cycle()
        head = await self._event()
        if not isinstance(head, h11.Request):
            return None
        data = b""
        while isinstance(event := await self._event(), h11.Data):
            data += event.data
        parts = urlsplit(head.target.decode())
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        method = head.method.decode()
        verb = method.lower() if method != "GET" else "watch" if query.get("watch") else "list"
        headers = {bytes(name): bytes(value).decode() for name, value in head.headers}
        request = Request(method, parts.path, query, verb, headers.get(b"authorization", ""))
        request.content_type = headers.get(b"content-type", "")
        return request, json.loads(data) if data else {}

    async def _send(self, event: Any) -> None:
        await self._stream.send_all(self._h11.send(event))

    async def answer(self, code: int, body: Body, headers: list[tuple[str, str]] | None = None) -> None:
        data = json.dumps(body).encode()
        own = [("content-type", "application/json"), ("content-length", str(len(data))), *(headers or [])]
        await self._send(h11.Response(status_code=code, headers=own))
        await self._send(h11.Data(data=data))
        await self._send(h11.EndOfMessage())

    async def begin(self) -> None:
        headers = [("content-type", "application/json"), ("transfer-encoding", "chunked")]
        await self._send(h11.Response(status_code=200, headers=headers))

    async def chunk(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def end(self) -> None:
        await self._send(h11.EndOfMessage())
