"""The application in a pod: a process inside the pod's namespace and cgroup which does as it is told.

Started as `python -m tests.netns.capture.apps NETNS CGROUP`; takes pickled (function, arguments) on stdin and
answers (True, result) or (False, error text) on stdout.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import pickle
import random
import select
import socket
import struct
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ebpf import netns
from tests.netns.capture import uring

MPTCP = 262
TIMEOUT = 30.0
Peer = tuple[str, int]
_held: dict[str, socket.socket] = {}


@dataclass(frozen=True)
class Dial:
    """One connection to make. `how`: blocking, nonblocking, fastopen-sendto, fastopen-connect, uring, uring-worker."""

    to: Peer
    how: str = "blocking"
    protocol: int = 0
    mapped: bool = False
    source: Peer | None = None
    device: str | None = None
    mark: int | None = None
    onward: bool = False

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.to[0] or self.mapped else socket.AF_INET


@dataclass(frozen=True)
class Answer:
    """Who answered; what both ends took for the connection's addresses."""

    tag: str
    server_local: Peer
    server_peer: Peer
    client_local: Peer
    client_peer: Peer


def plain(address: tuple[Any, ...]) -> Peer:
    """(ip, port), IPv4 unmapped."""
    return str(address[0]).removeprefix("::ffff:"), int(address[1])


def _prepare(dial: Dial) -> socket.socket:
    made = socket.socket(dial.family, socket.SOCK_STREAM, dial.protocol)
    made.settimeout(TIMEOUT)
    if dial.onward:
        v4 = dial.family == socket.AF_INET
        made.setsockopt(*((socket.SOL_IP, 19) if v4 else (socket.IPPROTO_IPV6, 75)), 1)
    if dial.device:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, dial.device.encode())
    if dial.mark is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, dial.mark)
    if dial.source:
        made.bind(dial.source)
    return made


def _connect(made: socket.socket, dial: Dial) -> None:
    to = (f"::ffff:{dial.to[0]}", dial.to[1]) if dial.mapped else dial.to
    if dial.how.startswith("fastopen"):
        _connect_fast(made, dial.how, to)
        return
    if dial.how.startswith("uring"):
        made.setblocking(True)
        uring.connect(made.fileno(), dial.family, to, uring.IOSQE_ASYNC if dial.how == "uring-worker" else 0)
        made.settimeout(TIMEOUT)
    elif dial.how == "nonblocking":
        made.setblocking(False)
        assert made.connect_ex(to) == errno.EINPROGRESS
        select.select([], [made], [], TIMEOUT)
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        made.setblocking(True)
        made.settimeout(TIMEOUT)
    else:
        made.connect(to)
    made.send(b"?")


def _connect_fast(made: socket.socket, how: str, to: Peer) -> None:
    """With the kernel's own timeout: Python's would make the socket non-blocking."""
    made.setblocking(True)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("=qq", int(TIMEOUT), 0))
    if how == "fastopen-sendto":
        made.sendto(b"?", socket.MSG_FASTOPEN, to)
    else:
        made.setsockopt(socket.IPPROTO_TCP, 30, 1)
        made.connect(to)
        made.send(b"?")
    made.settimeout(TIMEOUT)


def _ask(made: socket.socket) -> Answer:
    text = made.recv(1000).decode()
    if not text:
        raise ConnectionError("closed without an answer")
    tag, local, peer = text.split("|")
    ends = (plain(made.getsockname()), plain(made.getpeername()))
    return Answer(tag, _peer(local), _peer(peer), *ends)


def _peer(text: str) -> Peer:
    host, _, port = text.rpartition(" ")
    return host, int(port)


def exchange(dial: Dial) -> Answer:
    """Connect, ask, close."""
    with _prepare(dial) as made:
        _connect(made, dial)
        return _ask(made)


def outcome(dial: Dial, timeout: float = 1.5) -> str:
    """What a connect and one question come to: "answered", "timeout", or the errno's name."""
    with _prepare(dial) as made:
        made.settimeout(timeout)
        try:
            _connect(made, dial)
            return "answered" if made.recv(1000) else "closed"
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return errno.errorcode[error.errno or 0]


def io_uring_refusal() -> str:
    """Why the kernel refuses io_uring; empty if it does not."""
    return uring.refusal()


def hold(name: str, dial: Dial) -> None:
    """Connect, ask once, and keep the connection under a name."""
    made = _prepare(dial)
    _connect(made, dial)
    _ask(made)
    _held[name] = made


def ask_held(name: str) -> Answer:
    """Ask again on a kept connection."""
    _held[name].send(b"?")
    return _ask(_held[name])


def end_held(name: str) -> str:
    """How a kept connection ends: "closed", or the errno's name; waits for it."""
    with _held.pop(name) as made:
        try:
            return "closed" if made.recv(1) == b"" else "data"
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return errno.errorcode[error.errno or 0]


def hold_silent(name: str, dial: Dial) -> None:
    """Connect, and keep the connection under a name without having asked."""
    made = _prepare(dial)
    made.connect(dial.to)
    _held[name] = made


def hold_deferred(name: str, dial: Dial) -> None:
    """Connect so that the SYN leaves with the first data only, and keep the socket under a name."""
    made = _prepare(dial)
    made.setblocking(True)
    for option in (34, 30):  # TCP_FASTOPEN_NO_COOKIE, TCP_FASTOPEN_CONNECT
        made.setsockopt(socket.IPPROTO_TCP, option, 1)
    made.connect(dial.to)
    _held[name] = made


def answer_held(name: str) -> Answer:
    """What the other end says on a kept connection without being asked."""
    return _ask(_held[name])


def drop_held(name: str) -> None:
    """Close a kept connection."""
    _held.pop(name).close()


def drop_all() -> list[str]:
    """Close all that is kept; their names."""
    names = list(_held)
    for name in names:
        drop_held(name)
    return names


def push_and_pull(name: str, size: int) -> int:
    """Send so many bytes over a kept connection and read as many; how many came back."""
    made, sent, got = _held[name], 0, 0
    made.setblocking(False)
    while got < size:
        readable, writable, _ = select.select([made], [made] if sent < size else [], [], TIMEOUT)
        if not readable and not writable:
            break
        if writable:
            sent += made.send(b"x" * min(65536, size - sent))
        if readable:
            got += len(made.recv(65536))
    made.settimeout(TIMEOUT)
    return got


def drain_held(name: str) -> int:
    """Read a kept connection to its end and close it; how many bytes came."""
    with _held.pop(name) as made:
        return sum(len(data) for data in iter(lambda: made.recv(65536), b""))


def reconnect_held(name: str, dial: Dial) -> Answer:
    """Disconnect a kept connection with AF_UNSPEC and connect its socket again."""
    with _held.pop(name) as made:
        assert ctypes.CDLL(None).connect(made.fileno(), bytes(16), 16) == 0
        _connect(made, dial)
        return _ask(made)


def serve(port: int, tag: str) -> None:
    """Answer on a port, here in the pod: to one byte like all servers of the lab, else with the same bytes."""
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    threading.Thread(target=_accept, args=(listener, tag), daemon=True).start()


def _accept(listener: socket.socket, tag: str) -> None:
    while True:
        accepted, _ = listener.accept()
        threading.Thread(target=_answer, args=(accepted, tag), daemon=True).start()


def _received(accepted: socket.socket) -> bytes:
    """What comes next. An accelerated socket may say "try again" though it blocks."""
    while True:
        with contextlib.suppress(BlockingIOError):
            return accepted.recv(1 << 16)


def _answer(accepted: socket.socket, tag: str) -> None:
    with accepted:
        try:
            (own, own_port), (peer, peer_port) = plain(accepted.getsockname()), plain(accepted.getpeername())
            told = f"{tag}|{own} {own_port}|{peer} {peer_port}".encode()
            while data := _received(accepted):
                accepted.sendall(told if data == b"?" else data)
        except OSError as error:
            endings.append(errno.errorcode[error.errno or 0])


_PATTERN = random.Random(1).randbytes(1 << 16).replace(b"?", b"!") * 6


def pour(name: str, seed: int, size: int, finish: bool = False) -> int:
    """Send so many bytes over a kept connection in pieces of all sizes, now and then without reading, and if asked to then
    say that this was all; how many came back until the first that is wrong, or the end."""
    made, sent, got, dice = _held[name], 0, 0, random.Random(seed)
    made.setblocking(False)
    while got < size:
        readable, writable, _ = select.select([made], [made] if sent < size else [], [], TIMEOUT)
        if not readable and not writable:
            break
        if writable:
            piece = min(dice.choice((1, 7, 1000, 4096, 65536, 250_000)), size - sent)
            sent += made.send(_PATTERN[sent & 0xFFFF :][:piece])
            if finish and sent == size:
                made.shutdown(socket.SHUT_WR)
        if readable and dice.random() < 0.7:
            data = made.recv(dice.choice((1, 50, 3000, 65536, 250_000)))
            if not data or data != _PATTERN[got & 0xFFFF :][: len(data)]:
                break
            got += len(data)
    made.settimeout(TIMEOUT)
    return got


Reader = Callable[[socket.socket, int], bytes]
READERS: dict[str, Reader] = {
    "all": lambda made, size: made.recv(size, socket.MSG_WAITALL),
    "least": lambda made, size: made.recv(size),
    "peek": lambda made, size: made.recv(len(made.recv(size, socket.MSG_PEEK))),
}
"""How an application reads: all that it asks for; the same by SO_RCVLOWAT; having looked before."""


def _patient(made: socket.socket, how: str, size: int) -> None:
    """For a reader: blocking in the kernel, which gives up in the end."""
    made.setblocking(True)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", int(TIMEOUT), 0))
    if how == "least":
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)


def serve_readers(port: int, how: str, size: int) -> None:
    """Answer on a port, here in the pod, with the same bytes, which are read in this way."""
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)

    def answer(accepted: socket.socket) -> None:
        with accepted:
            _patient(accepted, how, size)
            while True:
                with contextlib.suppress(BlockingIOError):
                    data = READERS[how](accepted, size)
                    if not data:
                        return
                    accepted.sendall(data)

    def accept() -> None:
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def read_in(name: str, how: str, size: int, least: int) -> int:
    """Read so many bytes of what `stuff` sent from a kept connection, in this way; how many came until the first that is
    wrong or long in coming."""
    made, got = _held[name], 0
    _patient(made, how, size)
    while got < least:
        began, data = time.monotonic(), b""
        with contextlib.suppress(BlockingIOError):
            data = READERS[how](made, size)
        if data != _PATTERN[got & 0xFFFF :][: len(data)] or time.monotonic() - began > TIMEOUT - 1:
            break
        got += len(data)
    return got


def unread_by_tcp(name: str) -> int:
    """Bytes sent over a kept connection that the other end's TCP has not acknowledged."""
    return int(struct.unpack("=i", fcntl.ioctl(_held[name], termios.TIOCOUTQ, bytes(4)))[0])


def stuff(name: str, at: int, most: int) -> int:
    """Send what follows the first `at` bytes over a kept connection whose other end does not read, until there is no room;
    how many bytes."""
    made, sent = _held[name], 0
    made.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while sent < most:
            sent += made.send(_PATTERN[(at + sent) & 0xFFFF :][:65536])
    made.settimeout(TIMEOUT)
    return sent


def say(name: str, at: int, size: int) -> None:
    """Send so many bytes of what `stuff` sends, which follow the first `at`, over a kept connection."""
    _held[name].sendall(_PATTERN[at & 0xFFFF :][:size])


_listening: list[socket.socket] = []


def listen_only(port: int) -> None:
    """Listen on a port, and take nothing."""
    _listening.append(socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True))


def accept_held(name: str) -> None:
    """Keep the next connection to the port of `listen_only` under a name."""
    _held[name], _ = _listening[-1].accept()
    _held[name].settimeout(TIMEOUT)


def read_held(name: str, at: int, size: int) -> int:
    """Read so many bytes that follow the first `at` of what `stuff` sent; how many came until the first that is wrong."""
    got = 0
    while got < size and (data := _held[name].recv(100_000)):
        if data != _PATTERN[(at + got) & 0xFFFF :][: len(data)]:
            break
        got += len(data)
    return got


def reset_held(name: str) -> None:
    """Close a kept connection with a reset."""
    with _held.pop(name) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))


endings: list[str] = []


def how_served_ended() -> list[str]:
    """Errors with which connections of `serve` ended so far."""
    return list(endings)


def half_close(name: str, size: int) -> int:
    """Send so many bytes over a kept connection, say that this was all, read to the end; how many came."""
    made = _held[name]
    sender = threading.Thread(target=made.sendall, args=(b"x" * size,))
    sender.start()
    got = 0
    while got < size:
        got += len(made.recv(1 << 16))
    sender.join()
    made.shutdown(socket.SHUT_WR)
    with _held.pop(name):
        return got + sum(len(data) for data in iter(lambda: made.recv(1 << 16), b""))


@dataclass(frozen=True)
class Attempt:
    """One connection of a load: when (CLOCK_MONOTONIC) it began, was first and last answered; by whom; its end."""

    began: float
    answered: float
    last: float
    tag: str
    end: str


def load(dial: Dial, seconds: float, asks: int) -> list[Attempt]:
    """One connection after another; so many questions on each that the application itself answers."""
    found: list[Attempt] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        began, answered, last, tag, end = time.monotonic(), 0.0, 0.0, "", "ok"
        try:
            with _prepare(dial) as made:
                _connect(made, dial)
                tag = _ask(made).tag
                answered = last = time.monotonic()
                for _ in range(asks - 1 if tag == "app" else 0):
                    made.send(b"?")
                    _ask(made)
                    last = time.monotonic()
        except OSError as error:
            end = errno.errorcode.get(error.errno or 0, str(error))
        found.append(Attempt(began, answered, last, tag, end))
    return found


def spoof(to: Peer, source: Peer) -> str:
    """Connect from an address that is not ours."""
    v6 = ":" in to[0]
    with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM) as made:
        made.setsockopt(*((socket.IPPROTO_IPV6, 75) if v6 else (socket.SOL_IP, 19)), 1)
        made.settimeout(1)
        try:
            made.bind(source)
            made.connect(to)
            made.send(b"?")
            return _ask(made).tag
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return errno.errorcode[error.errno or 0]


def connect_twice(first: Dial, second: Dial) -> tuple[Peer, Answer]:
    """Connect, disconnect with AF_UNSPEC, connect the same socket elsewhere."""
    with _prepare(first) as made:
        made.connect(first.to)
        peer = plain(made.getpeername())
        assert ctypes.CDLL(None).connect(made.fileno(), bytes(16), 16) == 0
        _connect(made, second)
        return peer, _ask(made)


def device_after_connect(dial: Dial) -> str:
    """The device the socket is bound to after connecting."""
    with _prepare(dial) as made:
        _connect(made, dial)
        _ask(made)
        return made.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0").decode()


def ask_udp(to: Peer, mark: int = 0) -> tuple[str, Peer, int]:
    """A datagram's answer over a connected socket (with this mark before), the peer, the socket's mark."""
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        if mark:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        made.connect(to)
        answer, _ = _repeat(made, lambda: made.send(b"?"))
        mark = made.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
        return answer.decode(), plain(made.getpeername()), mark


def _repeat(made: socket.socket, send: Callable[[], object]) -> tuple[bytes, tuple[Any, ...]]:
    """Send until something comes back, as resolvers do."""
    for _ in range(60):
        send()
        if select.select([made], [], [], 0.5)[0]:
            break
    made.setblocking(False)
    return made.recvfrom(65536)


def hold_question(name: str, to: Peer) -> None:
    """Send a datagram once, and keep the socket under a name."""
    made = _held[name] = socket.socket(socket.AF_INET6 if ":" in to[0] else socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(TIMEOUT)
    made.connect(to)
    made.send(b"?")


def held_answer(name: str) -> str:
    """What comes back to a kept question."""
    with _held.pop(name) as made:
        return made.recv(1000).decode()


def ask_unconnected(to: Peer, device: str | None = None, mapped: bool = False) -> tuple[str, Peer]:
    """A datagram's answer, and who it comes from, over a socket that is not connected; "timeout" if none."""
    with socket.socket(
        socket.AF_INET6 if ":" in to[0] or mapped else socket.AF_INET, socket.SOCK_DGRAM
    ) as made:
        if device:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        where = (f"::ffff:{to[0]}", to[1]) if mapped else to
        data, sender = _repeat(made, lambda: made.sendto(b"?", where))
        return data.decode(), plain(sender)


def never_answered(to: Peer, seconds: float) -> bool:
    """Whether a datagram over a socket that is not connected gets no answer for so long."""
    with socket.socket(socket.AF_INET6 if ":" in to[0] else socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.settimeout(seconds)
        made.sendto(b"?", to)
        try:
            made.recv(1)
        except TimeoutError:
            return True
        return False


def serve_names(address: str, tag: str) -> None:
    """Answer datagrams at port 53, here in the pod."""
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind((address, 53))
    _held[f"names {address}"] = made
    threading.Thread(target=_answer_datagrams, args=(made, tag), daemon=True).start()


def _answer_datagrams(made: socket.socket, tag: str) -> None:
    while True:
        _, sender = made.recvfrom(1000)
        made.sendto(tag.encode(), sender)


def exchange_many(dial: Dial, times: int) -> int:
    """How many of the exchanges reached the true destination as the server saw it."""
    return sum(exchange(dial).server_local == dial.to for _ in range(times))


def who_answers(dial: Dial, times: int) -> Counter[str]:
    """How often which server answered; the client sees the destination that it asked for."""
    answers = [exchange(dial) for _ in range(times)]
    assert {answer.client_peer for answer in answers} == {dial.to}
    return Counter(answer.tag for answer in answers)


def open_descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def main() -> None:
    """Serve until stdin ends."""
    name, cgroup = sys.argv[1:]
    (Path(cgroup) / "cgroup.procs").write_text("0")
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
    with netns.inside(fd):
        os.close(fd)
        while True:
            try:
                function, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301
            except EOFError:
                break
            pickle.dump(_attempt(function, arguments), sys.stdout.buffer)
            sys.stdout.buffer.flush()
    for made in _held.values():
        made.close()


def _attempt(function: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    found: Callable[..., Any] = globals()[function]
    try:
        return True, found(*arguments)
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    # Pickled classes carry the module's real name, not __main__.
    from tests.netns.capture import apps

    apps.main()
