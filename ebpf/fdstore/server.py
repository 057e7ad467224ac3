"""The store's process: holds listeners for agents that may die, and nothing else.

An entry belongs to the connection that brought it. Only when that has ended may another one take it; if nobody
does within `hold` seconds it is closed, so that neither a namespace nor clients wait for ever.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ebpf.fdstore import protocol
from ebpf.fdstore.protocol import ProtocolError, Verb

HOLD: Final = 60.0


class StoreError(Exception):
    """The store cannot start; one line with advice."""


@dataclass(slots=True)
class _Entry:
    fds: list[int]
    owner: socket.socket | None
    until: float = math.inf


class Store:
    """Entries by namespace cookie. One thread."""

    def __init__(self, hold: float = HOLD) -> None:
        self._hold = hold
        self._entries: dict[int, _Entry] = {}
        self._selector = selectors.DefaultSelector()

    def serve(self, path: Path) -> None:
        """Listen on `path` and serve for ever. StoreError."""
        with _listen(path) as listener:
            self._selector.register(listener, selectors.EVENT_READ)
            while True:
                for key, _ in self._selector.select(self._patience()):
                    assert isinstance(key.fileobj, socket.socket)
                    if key.fileobj is listener:
                        self._welcome(listener)
                    else:
                        self._hear(key.fileobj)
                self._expire(time.monotonic())

    def _patience(self) -> float | None:
        earliest = min((entry.until for entry in self._entries.values()), default=math.inf)
        return None if earliest == math.inf else max(0.0, earliest - time.monotonic())

    def _expire(self, now: float) -> None:
        for cookie in [cookie for cookie, entry in self._entries.items() if entry.until <= now]:
            self._drop(cookie)

    def _welcome(self, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        sock.setblocking(False)
        if protocol.is_own(sock):
            self._selector.register(sock, selectors.EVENT_READ)
        else:
            sock.close()

    def _hear(self, sock: socket.socket) -> None:
        fds: list[int] = []
        try:
            packet, fds = protocol.receive(sock)
            if packet:
                verb, cookie = protocol.decode(packet, len(fds))
                kept, fds = fds, []
                self._do(sock, verb, cookie, kept)
                return
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            protocol.close(fds)
        self._part(sock)

    def _part(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        sock.close()
        for entry in self._entries.values():
            if entry.owner is sock:
                entry.owner, entry.until = None, time.monotonic() + self._hold

    def _do(self, sock: socket.socket, verb: Verb, cookie: int, fds: list[int]) -> None:
        match verb:
            case Verb.KEEP:
                self._drop(cookie)
                self._entries[cookie] = _Entry(fds, sock)
            case Verb.FORGET:
                if cookie in self._entries and self._entries[cookie].owner is sock:
                    self._drop(cookie)
            case Verb.TAKE:
                self._give(sock, cookie)
            case Verb.CLEAR:
                for each in list(self._entries):
                    self._drop(each)
                protocol.send(sock, protocol.encode(Verb.NOTHING))
            case _:
                raise ProtocolError(f"{verb.name} is an answer")

    def _give(self, sock: socket.socket, cookie: int) -> None:
        entry = self._entries.get(cookie)
        if entry is None or (entry.owner is not None and not _has_ended(entry.owner)):
            protocol.send(sock, protocol.encode(Verb.NOTHING, cookie))
            return
        protocol.send(sock, protocol.encode(Verb.HERE, cookie), entry.fds)
        entry.owner, entry.until = sock, math.inf

    def _drop(self, cookie: int) -> None:
        entry = self._entries.pop(cookie, None)
        if entry is not None:
            protocol.close(entry.fds)


def _has_ended(owner: socket.socket) -> bool:
    """Whether an agent is gone of which the end has not been read yet."""
    try:
        return owner.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        return probe.connect_ex(str(path)) == 0


@contextlib.contextmanager
def _listen(path: Path) -> Iterator[socket.socket]:
    """In a directory that is nobody else's; a socket that a dead store left is replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = path.parent.stat()
    if place.st_uid != os.geteuid() or stat.S_IMODE(place.st_mode) & 0o077:
        raise StoreError(f"{path.parent} has to be ours alone: chown it to root, chmod 700")
    if _answers(path):
        raise StoreError(f"a store serves on {path} already")
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(8)
        yield listener
