"""Questions passed on to the name server that the pod asked, from inside the pod's network namespace: what
the name server sees, and who may reach it, is as without us.

Every question has a socket of its own (a fresh port) and a random id; only the answer to just this question
from just this name server counts.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

import trio

from ebpf.dns import Address, open_upstream
from ztunnel.dns import wire

__all__ = ["TIMEOUT", "Upstream", "UpstreamError", "read_message"]

TIMEOUT = 5.0
"""Seconds until a name server counts as unreachable, as in Istio's ztunnel."""

_LARGEST = 65535
_STRANGE = 64

Asked = tuple[Address, int]


class UpstreamError(Exception):
    """No answer; the text is one word: timeout, unreachable, closed, forged."""


def _id() -> int:
    return random.SystemRandom().getrandbits(16)


@dataclass(slots=True)
class Upstream:
    """Asks name servers. `strange` counts messages that answered nothing we asked."""

    draw_id: Callable[[], int] = _id
    timeout: float = TIMEOUT
    strange: int = 0

    async def ask(self, query: wire.Query, asked: Asked, netns_fd: int, *, tcp: bool) -> bytes:
        """The answer, with the client's id. Over UDP an answer that was cut short is asked for again over TCP;
        it stays as it was if that fails or does not fit. UpstreamError."""
        number = self.draw_id()
        try:
            with trio.fail_after(self.timeout):
                if tcp:
                    answer = await self._by_tcp(query, asked, netns_fd, number)
                else:
                    answer = await self._by_udp(query, asked, netns_fd, number)
        except trio.TooSlowError:
            raise UpstreamError("timeout") from None
        except (OSError, trio.BrokenResourceError):
            raise UpstreamError("unreachable") from None
        return wire.with_id(answer, int.from_bytes(query.data[:2], "big"))

    async def _by_udp(self, query: wire.Query, asked: Asked, netns_fd: int, number: int) -> bytes:
        opened = open_upstream(netns_fd, asked[0].version, socket.SOCK_DGRAM)
        with trio.socket.from_stdlib_socket(opened) as made:
            await made.connect((str(asked[0]), asked[1]))
            await made.send(wire.with_id(query.data, number))
            answer = await self._matching(made, query, number)
        if not wire.is_truncated(answer):
            return answer
        try:
            whole = await self._by_tcp(query, asked, netns_fd, number)
        except (OSError, trio.BrokenResourceError, UpstreamError):
            return answer
        return whole if len(whole) <= query.limit else answer

    async def _matching(self, made: trio.socket.SocketType, query: wire.Query, number: int) -> bytes:
        for _ in range(_STRANGE):
            answer = await made.recv(_LARGEST)
            if wire.answers(answer, query, number):
                return answer
            self.strange += 1
        raise UpstreamError("forged")

    async def _by_tcp(self, query: wire.Query, asked: Asked, netns_fd: int, number: int) -> bytes:
        opened = open_upstream(netns_fd, asked[0].version, socket.SOCK_STREAM)
        with trio.socket.from_stdlib_socket(opened) as made:
            await made.connect((str(asked[0]), asked[1]))
            stream = trio.SocketStream(made)
            await stream.send_all(struct.pack("!H", len(query.data)) + wire.with_id(query.data, number))
            answer = await read_message(stream)
        if answer is None:
            raise UpstreamError("closed")
        if not wire.answers(answer, query, number):
            self.strange += 1
            raise UpstreamError("forged")
        return answer


async def read_message(stream: trio.SocketStream) -> bytes | None:
    """One message behind its length (RFC 1035 4.2.2); None at the end. trio.BrokenResourceError."""
    head = await _exactly(stream, 2)
    return await _exactly(stream, int.from_bytes(head, "big")) if head is not None else None


async def _exactly(stream: trio.SocketStream, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)
