"""Byte-exact exchanges: pseudo-random octets in pieces of random size, checked octet by octet."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import threading

from tests.support.servers import Server

PIECE = 1 << 17


def octets(seed: int, size: int) -> bytes:
    """The same octets for the same seed."""
    return random.Random(seed).randbytes(size)


def write_in_pieces(sock: socket.socket, payload: bytes, seed: int) -> None:
    """Send everything in pieces of random size, then FIN."""
    draw, at = random.Random(seed ^ 0x5EED), 0
    while at < len(payload):
        size = draw.choice((1, 13, 1000, 16_384, 16_385, PIECE))
        sock.sendall(payload[at : at + size])
        at += size
    sock.shutdown(socket.SHUT_WR)


def read_all(sock: socket.socket, seed: int) -> bytes:
    """Read to the end in draughts of random size."""
    draw, got = random.Random(seed ^ 0xD12A), bytearray()
    while chunk := sock.recv(draw.choice((7, 4096, 1 << 16, 1 << 20))):
        got += chunk
    return bytes(got)


def exchange(address: tuple[str, int], seed: int, size: int, *, timeout: float = 30.0) -> None:
    """Through an echo server: the same octets and then the end of the stream must come back."""
    payload = octets(seed, size)
    with socket.create_connection(address, timeout=timeout) as sock:
        problems: list[BaseException] = []

        def write() -> None:
            try:
                write_in_pieces(sock, payload, seed)
            except OSError as problem:
                problems.append(problem)

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        got = read_all(sock, seed)
        writer.join(timeout)
    assert not problems, f"writing failed: {problems[0]!r}"
    assert len(got) == size, f"{len(got)} octets of {size} came back"
    if got != payload:
        first = next(at for at, (a, b) in enumerate(zip(got, payload, strict=True)) if a != b)
        raise AssertionError(f"octet {first} of {size} differs")


def many(address: tuple[str, int], streams: int, size: int) -> None:
    """Several exchanges at once; the first failure is raised."""
    problems: list[BaseException] = []

    def one(seed: int) -> None:
        try:
            exchange(address, seed, size)
        except BaseException as problem:  # raised by the caller's thread
            problems.append(problem)

    threads = [threading.Thread(target=one, args=(seed,), daemon=True) for seed in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "an exchange hangs"
    if problems:
        raise problems[0]


def digest_server(host: str = "127.0.0.1") -> Server:
    """Reads to the end of the stream, and only then answers: the SHA-256 of what came, and FIN."""

    def handler(sock: socket.socket) -> None:
        digest = hashlib.sha256()
        while chunk := sock.recv(1 << 18):
            digest.update(chunk)
        sock.sendall(digest.digest())
        sock.shutdown(socket.SHUT_WR)

    return Server(handler, host=host)


def half_close(address: tuple[str, int], size: int) -> None:
    """Send, FIN, and get the answer that is only given after the FIN."""
    payload = octets(size, size)
    with socket.create_connection(address, timeout=20) as sock:
        write_in_pieces(sock, payload, size)
        assert read_all(sock, size) == hashlib.sha256(payload).digest()


def early_fin_server(size: int) -> Server:
    """Sends `size` octets and FIN at once, then reads to the end and counts in `Server.bytes`."""

    def handler(sock: socket.socket) -> None:
        sock.sendall(octets(1, size))
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while chunk := sock.recv(1 << 18):
                server.bytes += len(chunk)

    server = Server(handler)
    return server
