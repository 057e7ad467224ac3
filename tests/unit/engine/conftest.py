"""Two engines in this process: pods' outbound on one side, their HBONE listener on the other."""

from __future__ import annotations

import contextlib
import hashlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from hbone.engine import (
    REASONS,
    Accepted,
    Address,
    Closed,
    ConnectRequested,
    Engine,
    EngineConfig,
    Event,
    ListenerKind,
)
from tests.support.pki import Authority, Credential, spiffe
from tests.support.ports import address, listening_socket

E = TypeVar("E")
Decide = Callable[["Host", Any], None]

SERVER_URI = spiffe("server")
CLIENT_URI = spiffe("client")
DEADLINE = 60.0


class Host:
    """An engine and a thread that plays its owner: takes events, lets `decide` answer, remembers."""

    def __init__(self, decide: Decide, **config: Any) -> None:
        self.engine = Engine(EngineConfig(**{"workers": 2, **config}))
        self.decide = decide
        self.events: list[Event] = []
        self._news = threading.Condition()
        self._stop_read, self._stop_write = socket.socketpair()
        self._thread = threading.Thread(target=self._own, daemon=True)
        self._thread.start()

    def _own(self) -> None:
        while True:
            stop = self._stop_read.fileno()
            ready, _, _ = select.select([self.engine.event_fd, stop], [], [])
            if stop in ready:
                return
            batch = self.engine.take()
            for event in batch:
                if isinstance(event, (Accepted, ConnectRequested)):
                    self.decide(self, event)
            self.engine.flush()
            self._remember(batch)

    def _remember(self, batch: list[Event]) -> None:
        with self._news:
            self.events += batch
            self._news.notify_all()

    def listen(self, kind: ListenerKind, tag: int = 1, identity: int = 0, host: str = "127.0.0.1") -> Address:
        """A listener of the engine's own; where it listens."""
        with listening_socket(host) as sock:
            self.engine.listen(sock.fileno(), kind, 0, tag, identity)
            return address(sock)

    def all(self, kind: type[E]) -> list[E]:
        with self._news:
            found: list[E] = [e for e in self.events if isinstance(e, kind)]
            return found

    def wait(self, kind: type[E], count: int = 1, timeout: float = DEADLINE) -> list[E]:
        """The events of a kind, once there are at least `count`."""
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                found: list[E] = [e for e in self.events if isinstance(e, kind)]
                if len(found) >= count:
                    return found
                left = deadline - time.monotonic()
                assert left > 0, f"{len(found)} of {count} {kind.__name__}; {self.events[-5:]}"
                self._news.wait(left)

    def closed(self, count: int = 1) -> list[Closed]:
        return self.wait(Closed, count)

    def reasons(self, count: int = 1) -> list[str]:
        return [REASONS[e.reason_code] for e in self.closed(count)]

    def stop(self) -> None:
        """Idempotent."""
        if not self._thread.is_alive():
            return
        self._stop_write.send(b"x")
        self._thread.join()
        self.engine.stop()
        while batch := self.engine.take():
            self._remember(batch)
        self._stop_read.close()
        self._stop_write.close()


def split_authority(authority: str) -> Address:
    host, _, port = authority.rpartition(":")
    return host.strip("[]"), int(port)


def deliver(host: Host, event: ConnectRequested) -> None:
    """The inbound verdict: plain TCP to what the CONNECT names."""
    host.engine.connect_plain(event.token, split_authority(event.authority), netns=0)


class Mesh:
    """client -> `out` -> HBONE -> `into` -> application. Dial `entry`."""

    def __init__(self, app: Address, out: dict[str, Any], into: dict[str, Any], bind: str) -> None:
        ca = Authority.root()
        self.ca = ca
        self.app = app
        self.sans: tuple[str, ...] = (SERVER_URI,)
        self.netns = 0
        self.headers: tuple[tuple[str, str], ...] = (("baggage", "k8s.namespace.name=default"),)
        self.into = Host(deliver, **into)
        self.out = Host(self.to_tunnel, **out)
        self.set_identity(self.into, ca.leaf(SERVER_URI))
        self.set_identity(self.out, ca.leaf(CLIENT_URI))
        self.hbone = self.into.listen(ListenerKind.HBONE, tag=7, identity=1, host=bind)
        self.entry = self.out.listen(ListenerKind.OUTBOUND, tag=3, host=bind)

    @staticmethod
    def set_identity(
        host: Host, credential: Credential, domains: tuple[str, ...] = ("cluster.local",)
    ) -> None:
        host.engine.set_identity(1, credential.chain_pem, credential.key_pem, credential.roots_pem, domains)

    def to_tunnel(self, host: Host, event: Accepted) -> None:
        ip, port = self.app
        host.engine.connect_tunnel(
            event.token,
            self.hbone,
            netns=self.netns,
            identity=1,
            sans=self.sans,
            authority=f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}",
            headers=self.headers,
        )

    def dial(self) -> socket.socket:
        return dial(self.entry)

    def stop(self) -> None:
        self.out.stop()
        self.into.stop()


def dial(where: Address) -> socket.socket:
    sock = socket.create_connection(where, timeout=DEADLINE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def expect_reset(where: Address) -> None:
    """A connection that is made and then reset (which may happen before connect() has returned)."""
    with pytest.raises(ConnectionResetError), dial(where) as sock:
        sock.recv(1)


class App:
    """A server whose connections run `serve` in threads."""

    def __init__(self, serve: Callable[[socket.socket], None], host: str = "127.0.0.1") -> None:
        self._listener = listening_socket(host)
        self.address = address(self._listener)
        self._serve = serve
        self._open: list[socket.socket] = []
        self._running: list[threading.Thread] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._open.append(sock)
                thread = threading.Thread(target=self._run, args=(sock,), daemon=True)
                self._running.append(thread)
                thread.start()

    def _run(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            self._serve(sock)

    def wait_served(self) -> None:
        """Until every connection's `serve` is over."""
        for thread in self._running:
            thread.join(DEADLINE)
            assert not thread.is_alive()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            sock.close()


def echo(sock: socket.socket) -> None:
    """Sends everything back, then passes the EOF on."""
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def pattern(size: int, seed: int) -> bytes:
    """Bytes in which any displacement shows."""
    block = hashlib.shake_128(struct.pack("<I", seed)).digest(65521)
    return (block * (size // len(block) + 1))[:size]


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(1 << 18):
        parts.append(data)
    return b"".join(parts)


def exchange(sock: socket.socket, payload: bytes) -> bytes:
    """Sends the payload and EOF while reading what comes; what came until EOF."""

    def send() -> None:
        sock.sendall(payload)
        sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    received = read_all(sock)
    sender.join()
    return received


@pytest.fixture
def start_app() -> Iterator[Callable[..., App]]:
    apps: list[App] = []

    def start(serve: Callable[[socket.socket], None] = echo, host: str = "127.0.0.1") -> App:
        apps.append(App(serve, host))
        return apps[-1]

    yield start
    for app in apps:
        app.stop()


@pytest.fixture
def start_host() -> Iterator[Callable[..., Host]]:
    hosts: list[Host] = []

    def start(decide: Decide, **config: Any) -> Host:
        hosts.append(Host(decide, **config))
        return hosts[-1]

    yield start
    for host in hosts:
        host.stop()


@pytest.fixture
def start_mesh(start_app: Callable[..., App]) -> Iterator[Callable[..., Mesh]]:
    meshes: list[Mesh] = []

    def start(
        serve: Callable[[socket.socket], None] = echo,
        *,
        host: str = "127.0.0.1",
        app: Address | None = None,
        out: dict[str, Any] | None = None,
        into: dict[str, Any] | None = None,
        **config: Any,
    ) -> Mesh:
        where = app or start_app(serve, host).address
        meshes.append(Mesh(where, {**config, **(out or {})}, {**config, **(into or {})}, host))
        return meshes[-1]

    yield start
    for mesh in meshes:
        mesh.stop()
