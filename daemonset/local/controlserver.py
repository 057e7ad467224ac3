"""The supervisor's end of its socket; see `control` for the protocol."""

import json
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

log = logging.getLogger(__name__)
Reply = Callable[[dict[str, Any]], Awaitable[None]]
Handler = Callable[[dict[str, Any], Reply], Awaitable[None]]
REQUEST_LIMIT = 64 * 1024 * 1024


async def serve(
    path: Path, handler: Handler, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answers requests until cancelled."""
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(16)

    async def conversation(stream: trio.SocketStream) -> None:
        async def reply(value: dict[str, Any]) -> None:
            await stream.send_all(json.dumps(value).encode() + b"\n")

        try:
            await handler(json.loads(await _line(stream)), reply)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the user has gone; what was begun goes on
        except* Exception:  # a bad request must not end the mesh
            log.exception("request failed")

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, conversation, [trio.SocketListener(listener)])
        task_status.started()


async def _line(stream: trio.SocketStream) -> bytes:
    parts: list[bytes] = []
    size = 0
    while size < REQUEST_LIMIT:
        part = await stream.receive_some(1 << 20)
        parts.append(part)
        size += len(part)
        if not part or part.endswith(b"\n"):
            break
    return b"".join(parts)
