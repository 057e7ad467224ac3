"""The applications of the mixed mesh, run inside its pods: `python app.py serve`, or one of the clients below.

A client prints one JSON object. Everything is checked octet by octet by the client itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import socketserver
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.support import patterns

ECHO, DIGEST, WHO, EARLY = 7000, 7001, 7002, 7003
EARLY_SIZE = 3_000_000


# -- servers


class _Handler(socketserver.BaseRequestHandler):
    request: socket.socket

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.serve()

    def serve(self) -> None:
        raise NotImplementedError


class Echo(_Handler):
    """Gives back what it gets, and FIN for FIN."""

    def serve(self) -> None:
        while chunk := self.request.recv(1 << 18):
            self.request.sendall(chunk)
        self.request.shutdown(socket.SHUT_WR)


class Digest(_Handler):
    """Answers only after the client's FIN: the SHA-256 of what came."""

    def serve(self) -> None:
        digest = hashlib.sha256()
        while chunk := self.request.recv(1 << 18):
            digest.update(chunk)
        self.request.sendall(digest.digest())
        self.request.shutdown(socket.SHUT_WR)


class Who(_Handler):
    """The client's address as the application sees it."""

    def serve(self) -> None:
        self.request.sendall(self.client_address[0].removeprefix("::ffff:").encode())


class Early(_Handler):
    """Sends and says FIN at once, then reads to the end: the server's half-close first."""

    def serve(self) -> None:
        self.request.sendall(patterns.octets(1, EARLY_SIZE))
        self.request.shutdown(socket.SHUT_WR)
        while self.request.recv(1 << 18):
            pass


class _Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = daemon_threads = True
    request_queue_size = 512


def serve() -> None:
    """All servers, until killed."""
    for port, handler in ((DIGEST, Digest), (WHO, Who), (EARLY, Early)):
        threading.Thread(target=_Server(("::", port), handler).serve_forever, daemon=True).start()
    _Server(("::", ECHO), Echo).serve_forever()


# -- clients


def exchange(host: str, streams: str, size: str) -> dict[str, object]:
    """`streams` echoes of `size` pseudo-random octets at once."""
    began = time.monotonic()
    patterns.many((host, ECHO), int(streams), int(size))
    return {"seconds": time.monotonic() - began}


def hold(host: str, streams: str) -> dict[str, object]:
    """`streams` connections that are all open at the same time, then used."""
    socks = [socket.create_connection((host, ECHO), timeout=20) for _ in range(int(streams))]
    for number, sock in enumerate(socks):
        sock.sendall(b"%05d" % number)
    echoed = sum(sock.recv(5, socket.MSG_WAITALL) == b"%05d" % n for n, sock in enumerate(socks))
    for sock in socks:
        sock.close()
    return {"echoed": echoed}


def half_close(host: str, size: str) -> dict[str, object]:
    """The client's FIN first; the answer comes after it."""
    patterns.half_close((host, DIGEST), int(size))
    return {}


def early_fin(host: str, size: str) -> dict[str, object]:
    """The server's FIN first; the client goes on sending."""
    with socket.create_connection((host, EARLY), timeout=20) as sock:
        whole = patterns.read_all(sock, 1) == patterns.octets(1, EARLY_SIZE)
        sock.sendall(patterns.octets(2, int(size)))
        sock.shutdown(socket.SHUT_WR)
    return {"whole": whole}


def who(host: str) -> dict[str, object]:
    """The address that the server saw, and what the client thinks of itself."""
    with socket.create_connection((host, WHO), timeout=30) as sock:
        own = sock.getsockname()[0]
        return {"seen": patterns.read_all(sock, 1).decode(), "own": own}


def attempt(host: str, port: str, patience: str = "10") -> dict[str, object]:
    """How one connection ends: what came back for four octets, or the error. `patience` in seconds."""
    began = time.monotonic()
    try:
        with socket.create_connection((host, int(port)), timeout=float(patience)) as sock:
            sock.sendall(b"ping")
            got = sock.recv(4)
            return {"got": got.decode(), "seconds": time.monotonic() - began}
    except OSError as error:
        return {"error": type(error).__name__, "seconds": time.monotonic() - began}


def ticker(host: str) -> None:
    """One connection, a line every 20 ms; prints what is echoed and, last, how it ended."""
    with socket.create_connection((host, ECHO), timeout=20) as sock:
        number = 0
        try:
            while True:
                number += 1
                line = b"%07d\n" % number
                sock.sendall(line)
                got = sock.recv(8, socket.MSG_WAITALL)
                if got != line:
                    print("end", "EOF" if not got else repr(got), flush=True)
                    return
                print("ok", number, flush=True)
                time.sleep(0.02)
        except OSError as error:
            print("end", type(error).__name__, flush=True)


def load(host: str, seconds: str) -> dict[str, object]:
    """One short connection after another for a while; how many failed, and how."""
    done, failed, end = 0, [], time.monotonic() + float(seconds)
    while time.monotonic() < end:
        time.sleep(0.02)
        found = attempt(host, str(ECHO))
        if found.get("got") == "ping":
            done += 1
        else:
            failed.append(str(found.get("error", "EOF")))
    return {"done": done, "failed": failed}


def attempts(host: str) -> None:
    """One short connection after another, a line of JSON for each, until killed."""
    while True:
        print(json.dumps(attempt(host, str(ECHO), "60")), flush=True)
        time.sleep(0.02)


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    answer = globals()[command](*words)
    if answer is not None:
        print(json.dumps(answer), flush=True)
