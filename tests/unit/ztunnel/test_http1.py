"""The HTTP pages over real connections: what is answered, what is refused, what is bounded."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import h11
import pytest
import trio
from trio.testing import MockClock

from ztunnel import admin, http1
from ztunnel.readiness import Readiness


async def echo(request: http1.Request) -> http1.Response:
    if request.path == "/boom":
        raise RuntimeError("secret detail")
    return http1.Response(200, f"{request.method} {request.path} {dict(request.query)}")


@asynccontextmanager
async def serving(handler: http1.Handler) -> AsyncIterator[Callable[[], Awaitable[trio.SocketStream]]]:
    listener = http1.listen("127.0.0.1", 0, setting="STATS_PORT")
    port = listener.socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(http1.serve, [listener], handler)
        yield lambda: trio.open_tcp_stream("127.0.0.1", port)
        nursery.cancel_scope.cancel()


async def ask(
    stream: trio.SocketStream, target: str, method: str = "GET", host: str = "localhost", body: bytes = b""
) -> tuple[int, bytes]:
    conn = h11.Connection(h11.CLIENT)
    headers = [("host", host), ("content-length", str(len(body)))]
    data = conn.send(h11.Request(method=method, target=target, headers=headers)) or b""
    if body:
        data += conn.send(h11.Data(data=body)) or b""
    data += conn.send(h11.EndOfMessage()) or b""
    await stream.send_all(data)
    status, got = 0, b""
    while True:
        event = conn.next_event()
        if event is h11.NEED_DATA:
            conn.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            got += event.data
        elif isinstance(event, h11.EndOfMessage):
            return status, got


@pytest.mark.trio
async def test_several_requests_over_one_connection() -> None:
    async with serving(echo) as connect:
        stream = await connect()
        assert await ask(stream, "/a?x=1&y=") == (200, b"GET /a {'x': '1', 'y': ''}")
        assert await ask(stream, "/b", "POST", body=b"ignored") == (200, b"POST /b {}")
        assert await ask(stream, "/c", "HEAD") == (200, b"")
        assert await ask(stream, "/d") == (200, b"GET /d {}")


@pytest.mark.trio
async def test_a_failing_page_tells_nothing_and_the_server_goes_on() -> None:
    async with serving(echo) as connect:
        stream = await connect()
        status, body = await ask(stream, "/boom")
        assert status == 500
        assert b"secret" not in body
        assert (await ask(stream, "/after"))[0] == 200


@pytest.mark.trio
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 20_000, b"431"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n" + b"a" * 80_000, b"413"),
    ],
)
async def test_malformed_or_oversized_requests_get_an_error_and_the_end(sent: bytes, status: bytes) -> None:
    async with serving(echo) as connect:
        stream = await connect()
        with trio.fail_after(60):
            await stream.send_all(sent)
            answer = b""
            while data := await stream.receive_some(65536):
                answer += data
        assert answer.startswith(b"HTTP/1.1 " + status)


@pytest.mark.trio
async def test_a_head_that_does_not_come_is_not_waited_for(autojump_clock: MockClock) -> None:
    async with serving(echo) as connect:
        stream = await connect()
        await stream.send_all(b"GET / HT")
        assert await stream.receive_some(100) == b""
        assert trio.current_time() < 3


@pytest.mark.trio
async def test_a_taken_port_is_one_line_naming_port_and_remedy() -> None:
    taken = http1.listen("127.0.0.1", 0, setting="STATS_PORT")
    port = taken.socket.getsockname()[1]
    with pytest.raises(http1.BindError) as raised:
        http1.listen("127.0.0.1", port, setting="STATS_PORT")
    assert str(raised.value) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; stop what uses the port or set STATS_PORT"
    )
    successor = http1.listen("127.0.0.1", port, setting="STATS_PORT", shared=True)
    await successor.aclose()
    await taken.aclose()


@pytest.mark.trio
async def test_admin_pages_answer_to_localhost_only_and_change_things_by_post_only() -> None:
    pages, quits = admin.Admin(), []

    async def leave(_request: http1.Request) -> http1.Response:
        quits.append(1)
        return http1.Response(200)

    pages.page("POST", "/quitquitquit", "leave", leave)
    pages.page("GET", "/connections", "live", admin.json_page(lambda query: {"asked": dict(query)}))
    async with serving(pages) as connect:
        stream = await connect()
        assert (await ask(stream, "/quitquitquit"))[0] == 405
        assert (await ask(stream, "/quitquitquit", "POST", host="evil.example:15000"))[0] == 403
        assert (await ask(stream, "/nothing"))[0] == 404
        assert quits == []
        status, body = await ask(stream, "/connections?a=b", host="127.0.0.1:15000")
        assert (status, json.loads(body)) == (200, {"asked": {"a": "b"}})
        assert b"/quitquitquit" in (await ask(stream, "/", host="[::1]:15000"))[1]
        assert (await ask(stream, "/quitquitquit", "POST"))[0] == 200
    assert quits == [1]


@pytest.mark.trio
async def test_readiness_names_what_is_pending() -> None:
    readiness, state = Readiness(), {"xds": False, "zds": False}
    readiness.require("state manager", lambda: state["xds"])
    readiness.require("proxy manager", lambda: state["zds"])
    async with serving(admin.readiness_pages(readiness.answer)) as connect:
        stream = await connect()
        assert await ask(stream, "/healthz/ready") == (
            500,
            b"not ready, pending: state manager, proxy manager\n",
        )
        state.update(xds=True, zds=True)
        assert await ask(stream, "/healthz/ready") == (200, b"ready\n")
        assert (await ask(stream, "/"))[0] == 404
