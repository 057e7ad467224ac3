"""A plain TCP relay of two hops in one process: what two proxies cost when they do nothing.

`python -m tests.support.relay HOST PORT` prints its own address and relays to HOST:PORT until stdin ends.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys

from tests.support.ports import address, listening_socket


class Relay:
    """One thread, one selector; every connection to `front` goes through `middle` to the target."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.selector = selectors.DefaultSelector()
        self.front, self.middle = listening_socket(), listening_socket()
        self.selector.register(self.front, selectors.EVENT_READ, address(self.middle))
        self.selector.register(self.middle, selectors.EVENT_READ, target)
        self.selector.register(sys.stdin, selectors.EVENT_READ, None)

    def run(self) -> None:
        """Until stdin ends."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is sys.stdin:
                    return
                if isinstance(key.data, tuple):
                    self._accept(key.fileobj, key.data)  # type: ignore[arg-type]
                else:
                    self._move(key.fileobj, key.data)  # type: ignore[arg-type]

    def _accept(self, listener: socket.socket, target: tuple[str, int]) -> None:
        near, _ = listener.accept()
        far = socket.create_connection(target)
        for sock, other in ((near, far), (far, near)):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.selector.register(sock, selectors.EVENT_READ, other)

    def _move(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if chunk := source.recv(1 << 16):
                sink.sendall(chunk)
                return
        for sock in (source, sink):
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(sock)
            sock.close()


if __name__ == "__main__":
    relay = Relay((sys.argv[1], int(sys.argv[2])))
    sys.stdout.write("{}:{}\n".format(*address(relay.front)))
    sys.stdout.flush()
    relay.run()
