"""Keeps pods' listeners open in another process while the agent is away, so that clients wait in a queue.

`FdStore` is the agent's end; `python -m ebpf.fdstore` is the store. Both are the same user's (root's), and check
it. A store that is gone is done without; when it comes back it is told everything again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from ebpf.fdstore import protocol
from ebpf.fdstore.protocol import ProtocolError, Verb

__all__ = ["FdStore"]

log = logging.getLogger(__name__)
_PATIENCE: Final = 1.0


class FdStore:
    """A connection to the store on `path`. Raises nothing: what fails is logged and is as if nothing was kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sock: socket.socket | None = None
        self._told = False
        self._connect()

    def take(self, cookie: int) -> list[int]:
        """Listeners that an agent which has died left for this pod; empty if there are none. The caller's."""
        answer, fds = self._ask(protocol.encode(Verb.TAKE, cookie))
        if answer == (Verb.HERE, cookie):
            return fds
        protocol.close(fds)
        return []

    def keep(self, cookie: int, fds: Sequence[int]) -> None:
        """Hold copies of a pod's listeners, in place of what is held for it."""
        self._send(protocol.encode(Verb.KEEP, cookie), fds)

    def forget(self, cookie: int) -> None:
        """Close what this agent had the store keep for a pod."""
        self._send(protocol.encode(Verb.FORGET, cookie))

    def clear(self) -> bool:
        """Close everything, whoever brought it; whether a store was there."""
        answer, fds = self._ask(protocol.encode(Verb.CLEAR))
        protocol.close(fds)
        return answer is not None

    def renew(self, pods: Callable[[], Mapping[int, Sequence[int]]]) -> None:
        """Connect again if the store went away, and have it keep all `pods` has; to be called now and then."""
        if self._sock is not None and self._is_alive(self._sock):
            return
        self.close()
        if self._connect():
            for cookie, fds in pods().items():
                self.keep(cookie, fds)

    def close(self) -> None:
        """Leave; what is kept may be taken by another agent."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _connect(self) -> bool:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(_PATIENCE)
        try:
            sock.connect(str(self._path))
            if not protocol.is_own(sock):
                raise OSError(errno.EPERM, "the store is another user's")
        except OSError as error:
            sock.close()
            self._fail(error)
            return False
        self._sock, self._told = sock, False
        return True

    @staticmethod
    def _is_alive(sock: socket.socket) -> bool:
        """Whether there is nothing to read: unasked the store says nothing, so it would be the end. (A `recv` would wait:
        Python waits for sockets with a time-out whatever the flags.)"""
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return not poll.poll(0)

    def _send(self, packet: bytes, fds: Sequence[int] = ()) -> bool:
        if self._sock is None:
            return False
        try:
            protocol.send(self._sock, packet, fds)
        except OSError as error:
            self._fail(error)
            return False
        return True

    def _ask(self, packet: bytes) -> tuple[tuple[Verb, int] | None, list[int]]:
        if not self._send(packet) or self._sock is None:
            return None, []
        fds: list[int] = []
        try:
            answer, fds = protocol.receive(self._sock)
            return protocol.decode(answer, len(fds)), fds
        except (OSError, ProtocolError) as error:
            protocol.close(fds)
            self._fail(error)
            return None, []

    def _fail(self, error: Exception) -> None:
        with contextlib.suppress(OSError):
            self.close()
        if not self._told:
            log.warning("listeners are not kept for a crash: %s: %s", self._path, error)
        self._told = True
