"""What tests of resumption do with a mesh whose connections have a tunnel each."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

from hbone.engine import Address
from tests.unit.engine.conftest import App, Mesh, dial, expect_reset

ROOM = 100
_HEADER = 5
_PRE_SHARED_KEY = 41


def resumed(mesh: Mesh) -> tuple[int, int]:
    """How many handshakes the client's side and the server's side resumed."""
    out, into = (host.engine.stats()["handshakes_resumed"] for host in (mesh.out, mesh.into))
    return out, into


def talk(mesh: Mesh, stack: contextlib.ExitStack) -> None:
    """One more tunnel, which stays open."""
    sock = stack.enter_context(mesh.dial())
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"


def refused(mesh: Mesh) -> str:
    """The reason for which one more tunnel is not to be had."""
    done = len(mesh.out.closed(0))
    expect_reset(mesh.entry)
    return mesh.out.reasons(done + 1)[-1]


def read_record(sock: socket.socket) -> bytes:
    """A whole TLS record, as it came."""
    header = sock.recv(_HEADER, socket.MSG_WAITALL)
    return header + sock.recv(int.from_bytes(header[3:]), socket.MSG_WAITALL)


class HelloRelay(App):
    """Between two engines: notes every ClientHello, and passes on what `change` makes of it."""

    def __init__(self, target: Address) -> None:
        self.hellos: list[bytes] = []
        self.change: Callable[[bytes], bytes] = bytes
        self._target = target
        super().__init__(self._relay)

    def __enter__(self) -> HelloRelay:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _relay(self, near: socket.socket) -> None:
        with dial(self._target) as far:
            hello = read_record(near)
            self.hellos.append(hello)
            far.sendall(self.change(hello))
            back = threading.Thread(target=_pass_on, args=(far, near), daemon=True)
            back.start()
            _pass_on(near, far)
            back.join()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def takes_session(where: Address, hello: bytes) -> bool:
    """Whether the server's answer to this ClientHello takes the session it offers (RFC 8446 4.1.3, 4.2.11)."""
    with dial(where) as sock:
        sock.sendall(hello)
        answer = read_record(sock)
    at = _HEADER + 4 + 2 + 32  # records' and message's header, version, random
    at += 1 + answer[at] + 3  # session, suite, compression
    end = at + 2 + int.from_bytes(answer[at : at + 2])
    at += 2
    kinds = []
    while at < end:
        kind, size = struct.unpack_from("!HH", answer, at)
        kinds.append(kind)
        at += 4 + size
    return _PRE_SHARED_KEY in kinds
