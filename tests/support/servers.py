"""Small TCP applications for the far end of a tunnel, one thread for each connection."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from tests.support.ports import address, listening_socket


class Server:
    """Accepts connections and runs `handler` on each. Use as a context manager."""

    def __init__(
        self, handler: Callable[[socket.socket], None], *, receive_buffer: int = 0, host: str = "127.0.0.1"
    ) -> None:
        self._handler = handler
        self._listener = listening_socket(host, backlog=1024)
        if receive_buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.address = address(self._listener)
        self.connections: list[socket.socket] = []
        self.bytes = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def authority(self) -> str:
        """`ip:port`."""
        host, port = self.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._handler(sock)

    def close(self) -> None:
        """Close the listener and every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self.connections:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._thread.join(60)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sink(host: str = "127.0.0.1") -> Server:
    """Reads everything, says nothing, counts bytes; closes at the end of the stream."""

    def handler(sock: socket.socket) -> None:
        while chunk := sock.recv(1 << 18):
            server.bytes += len(chunk)
        sock.close()

    server = Server(handler, host=host)
    return server


def black_hole() -> Server:
    """Accepts and never reads."""
    return Server(lambda _: None, receive_buffer=4096)


def source(size: int = 1 << 40) -> Server:
    """Sends `size` octets, the low byte of their offset, as fast as they are taken; then FIN."""
    block = bytes(range(256)) * 256

    def handler(sock: socket.socket) -> None:
        left = size
        while left:
            left -= sock.send(block[: min(left, len(block))])
        sock.shutdown(socket.SHUT_WR)

    return Server(handler)


def echo(host: str = "127.0.0.1") -> Server:
    """Gives back what it gets, and FIN for FIN."""

    def handler(sock: socket.socket) -> None:
        while chunk := sock.recv(1 << 18):
            sock.sendall(chunk)
        sock.shutdown(socket.SHUT_WR)

    return Server(handler, host=host)
