"""A TCP proxy on loopback that misbehaves on demand: delay, drip, stall, cut, half-open, corrupt.

Faults are set while it runs and apply to what passes from then on.
"""

from __future__ import annotations

import contextlib
import enum
import heapq
import os
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

from tests.support.ports import address, listening_socket

CHUNK = 1 << 16
HIGH_WATER = 1 << 20


class Way(enum.IntEnum):
    """Direction of the bytes: from who connected, or back to them."""

    FORWARD = 0
    BACK = 1


@dataclass(slots=True)
class Faults:
    """What one direction suffers. Times in seconds, rates in bytes a second."""

    delay: float = 0.0
    rate: int = 0  # 0: as fast as it goes
    stalled: bool = False  # stop reading: back-pressure, as from a peer that hangs
    swallow: bool = False  # read and drop: a black hole that still acknowledges
    corrupt_at: int = -1  # flip one bit of the octet at this offset of the direction

    @property
    def drip(self) -> int:
        """Octets for one write: 1 when slow."""
        return 1 if 0 < self.rate < 1000 else CHUNK


@dataclass(slots=True)
class _Pipe:
    source: socket.socket
    sink: socket.socket
    way: Way
    queue: list[tuple[float, int, bytes]] = field(default_factory=list)  # heap of (due, number, octets)
    number: int = 0
    queued: int = 0
    passed: int = 0
    next_write: float = 0.0
    ended: bool = False  # source said FIN
    done: bool = False  # FIN passed on


class FaultProxy:
    """Forwards connections to `target`. One thread; use as a context manager."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.faults = {Way.FORWARD: Faults(), Way.BACK: Faults()}
        self.accepting = True
        self.connections = 0
        self._listener = listening_socket()
        self.address = address(self._listener)
        self._pipes: list[_Pipe] = []
        self._lock = threading.Lock()
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        self._running = True
        self._thread = threading.Thread(target=self._run, name="faultproxy", daemon=True)
        self._thread.start()

    def set(self, way: Way | None = None, **changes: float | bool | int) -> None:
        """Change faults of one direction or both, e.g. `set(Way.BACK, stalled=True)`."""
        for one in (way,) if way is not None else Way:
            for name, value in changes.items():
                setattr(self.faults[one], name, value)
        self._wake()

    def cut(self, *, reset: bool = True) -> int:
        """End every connection now, by RST or FIN both ways; how many there were."""
        with self._lock:
            pipes, self._pipes = self._pipes, []
        sockets = {id(s): s for pipe in pipes for s in (pipe.source, pipe.sink)}
        for sock in sockets.values():
            if reset:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        self._wake()
        return len(sockets) // 2

    def passed(self, way: Way) -> int:
        """Octets that have gone through living connections in this direction."""
        with self._lock:
            return sum(pipe.passed for pipe in self._pipes if pipe.way == way)

    def close(self) -> None:
        """Stop, and reset what is left."""
        self._running = False
        self._wake()
        self._thread.join(60)
        self.cut()
        self._listener.close()
        os.close(self._wake_r)
        os.close(self._wake_w)

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the thread

    def _wake(self) -> None:
        os.write(self._wake_w, b"x")

    def _run(self) -> None:
        while self._running:
            with selectors.DefaultSelector() as selector:
                self._register(selector)
                ready = selector.select(self._patience())
            for key, mask in ready:
                self._serve(key, mask)
            self._deliver()

    def _register(self, selector: selectors.BaseSelector) -> None:
        selector.register(self._wake_r, selectors.EVENT_READ, "wake")
        if self.accepting:
            selector.register(self._listener, selectors.EVENT_READ, "accept")
        with self._lock:
            pipes = list(self._pipes)
        now = time.monotonic()
        for pipe in pipes:
            faults = self.faults[pipe.way]
            if not (faults.stalled or pipe.ended or pipe.queued > HIGH_WATER):
                self._want(selector, pipe.source, selectors.EVENT_READ, pipe)
            if not faults.stalled and pipe.queue and pipe.queue[0][0] <= now and pipe.next_write <= now:
                self._want(selector, pipe.sink, selectors.EVENT_WRITE, pipe)

    @staticmethod
    def _want(selector: selectors.BaseSelector, sock: socket.socket, event: int, pipe: _Pipe) -> None:
        with contextlib.suppress(ValueError):  # closed by cut()
            try:
                key = selector.get_key(sock)
            except KeyError:
                selector.register(sock, event, {event: pipe})
            else:
                selector.modify(sock, key.events | event, {**key.data, event: pipe})

    def _patience(self) -> float:
        now = time.monotonic()
        with self._lock:
            waits = [max(p.queue[0][0], p.next_write) - now for p in self._pipes if p.queue]
        return max(0.0, min([0.5, *(w for w in waits if w > 0)]))

    def _serve(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.data == "wake":
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_r, 4096)
        elif key.data == "accept":
            self._accept()
        elif mask & selectors.EVENT_READ and selectors.EVENT_READ in key.data:
            self._read(key.data[selectors.EVENT_READ])

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self.target, timeout=30)
        except OSError:
            client.close()
            return
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections += 1
        with self._lock:
            self._pipes += [_Pipe(client, server, Way.FORWARD), _Pipe(server, client, Way.BACK)]

    def _read(self, pipe: _Pipe) -> None:
        faults = self.faults[pipe.way]
        try:
            chunk = pipe.source.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._abandon(pipe)
            return
        if not chunk:
            pipe.ended = True
        elif not faults.swallow:
            if 0 <= faults.corrupt_at - pipe.passed - pipe.queued < len(chunk):
                broken = bytearray(chunk)
                broken[faults.corrupt_at - pipe.passed - pipe.queued] ^= 0x10
                chunk = bytes(broken)
            pipe.number += 1
            heapq.heappush(pipe.queue, (time.monotonic() + faults.delay, pipe.number, chunk))
            pipe.queued += len(chunk)

    def _deliver(self) -> None:
        with self._lock:
            pipes = list(self._pipes)
        for pipe in pipes:
            faults = self.faults[pipe.way]
            if faults.stalled:
                continue
            try:
                self._write(pipe, faults)
            except OSError:
                self._abandon(pipe)

    def _write(self, pipe: _Pipe, faults: Faults) -> None:
        now = time.monotonic()
        while pipe.queue and pipe.queue[0][0] <= now and pipe.next_write <= now:
            due, number, chunk = pipe.queue[0]
            try:
                sent = pipe.sink.send(chunk[: faults.drip])
            except BlockingIOError:
                return
            pipe.passed += sent
            pipe.queued -= sent
            if faults.rate:
                pipe.next_write = now + sent / faults.rate
            if sent == len(chunk):
                heapq.heappop(pipe.queue)
            else:
                pipe.queue[0] = (due, number, chunk[sent:])
        if pipe.ended and not pipe.queue and not pipe.done:
            pipe.done = True
            pipe.sink.shutdown(socket.SHUT_WR)
            self._retire(pipe)

    def _retire(self, pipe: _Pipe) -> None:
        """Close both sockets once both directions are through."""
        with self._lock:
            pair = [p for p in self._pipes if p.source in (pipe.source, pipe.sink)]
            if not all(p.done for p in pair):
                return
            self._pipes = [p for p in self._pipes if p not in pair]
        pipe.source.close()
        pipe.sink.close()

    def _abandon(self, pipe: _Pipe) -> None:
        """A side broke: pass the break on."""
        with self._lock:
            self._pipes = [p for p in self._pipes if p.source not in (pipe.source, pipe.sink)]
        for sock in (pipe.source, pipe.sink):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
