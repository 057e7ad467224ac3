"""Half-closes in all six orders: whose octets, and whose end, came first.

An order is four letters: `C` the client's octets, `c` its FIN, `S` and `s` the server's. Each step is taken when the
other side has seen the one before, so the order is the same for everybody on the way.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support import patterns
from tests.support.ports import address, listening_socket

ORDERS = ("CcSs", "CScs", "CSsc", "SCcs", "SCsc", "SsCc")
PATIENCE = 30.0


@contextmanager
def application(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A listener whose one connection `meet` takes."""
    with listening_socket(host) as listener:
        listener.settimeout(PATIENCE)
        yield listener


def authority(listener: socket.socket) -> str:
    """`ip:port`."""
    return "{}:{}".format(*address(listener))


@contextmanager
def meet(client: socket.socket, listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's end and the server's."""
    server, _ = listener.accept()
    with client, server:
        for sock in (client, server):
            sock.settimeout(PATIENCE)
        yield client, server


def play(order: str, client: socket.socket, server: socket.socket, size: int) -> None:
    """Every octet and every end arrives, whatever came before it."""
    for step in order:
        writer, reader = (client, server) if step in "Cc" else (server, client)
        if step.isupper():
            _carry(writer, reader, patterns.octets(ord(step), size))
        else:
            writer.shutdown(socket.SHUT_WR)
            assert reader.recv(1) == b"", f"{step} of {order}: octets that nobody sent"


def _carry(writer: socket.socket, reader: socket.socket, payload: bytes) -> None:
    sender = threading.Thread(target=writer.sendall, args=(payload,), daemon=True)
    sender.start()
    got = bytearray()
    while len(got) < len(payload):
        piece = reader.recv(1 << 18)
        assert piece, f"ended after {len(got)} octets of {len(payload)}"
        got += piece
    assert got == payload
    sender.join(PATIENCE)
