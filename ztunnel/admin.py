"""The HTTP pages: admin (loopback only), metrics, readiness.

Pods cannot reach the admin port: it is bound to the loopback addresses of the agent's own network namespace,
requests under a foreign `Host` are refused (DNS rebinding), and what changes anything needs POST.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ztunnel import logs
from ztunnel.http1 import Request, Response

__all__ = ["Admin", "Page", "metrics_pages", "readiness_pages"]

Page = Callable[[Request], Awaitable[Response]]

_LOCAL_HOSTS = {"localhost", "127.0.0.1", "[::1]", "::1"}


class Admin:
    """Pages by path."""

    def __init__(self) -> None:
        self._pages: dict[str, tuple[str, str, Page]] = {}

    def page(self, method: str, path: str, text: str, page: Page) -> None:
        """Add a page; `text` says on the index what it is."""
        self._pages[path] = (method, text, page)

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        if _host(request.headers.get("host", "")) not in _LOCAL_HOSTS:
            return Response(403, "this port answers to localhost only\n")
        if request.path == "/":
            return Response(200, self._index(), "text/html; charset=utf-8")
        found = self._pages.get(request.path)
        if found is None:
            return Response(404, f"no page {request.path}; / lists them\n")
        method, _, page = found
        if request.method not in (method, "HEAD" if method == "GET" else method):
            return Response(405, f"use {method}\n", headers=[("allow", method)])
        return await page(request)

    def _index(self) -> str:
        rows = "".join(
            f"<tr><td>{method}</td><td><code>{path}</code></td><td>{text}</td></tr>\n"
            for path, (method, text, _) in sorted(self._pages.items())
        )
        return f"<!doctype html><title>ztunnel</title><h1>ztunnel</h1>\n<table>\n{rows}</table>\n"


def _host(header: str) -> str:
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdigit() else header).lower()


def as_json(value: Any, status: int = 200) -> Response:
    """A JSON answer, indented for people."""
    return Response(status, json.dumps(value, indent=2) + "\n", "application/json")


def json_page(read: Callable[[Mapping[str, str]], Any]) -> Page:
    """A page that shows what `read` returns for the query."""

    async def page(request: Request) -> Response:
        return as_json(read(request.query))

    return page


def logging_page(default: str) -> Page:
    """`?level=info,xds=debug` sets, `?reset` goes back to the start's levels, no query shows."""

    async def page(request: Request) -> Response:
        try:
            if "reset" in request.query:
                logs.reset_levels(default)
            elif "level" in request.query:
                logs.set_levels(request.query["level"])
        except ValueError as error:
            return Response(400, f"{error}\n")
        return Response(200, f"current log level is {logs.levels()}\n")

    return page


def metrics_pages(render: Callable[[str], tuple[bytes, str]]) -> Page:
    """/metrics and /stats/prometheus."""

    async def page(request: Request) -> Response:
        if request.path not in ("/metrics", "/stats/prometheus"):
            return Response(404, "metrics are at /metrics\n")
        body, content_type = render(request.headers.get("accept", ""))
        return Response(200, body, content_type)

    return page


def readiness_pages(answer: Callable[[], tuple[int, str]]) -> Page:
    """/healthz/ready."""

    async def page(request: Request) -> Response:
        if request.path != "/healthz/ready":
            return Response(404, "readiness is at /healthz/ready\n")
        return Response(*answer())

    return page
