"""Loopback sockets and ports for tests."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path


def listening_socket(host: str = "127.0.0.1", port: int = 0, *, backlog: int = 512) -> socket.socket:
    """A TCP listener on a port the kernel chooses; use the socket itself, so that nobody takes the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(backlog)
    return sock


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago: only for programs that cannot be handed a socket.

    Below the range from which the kernel takes the ports of outgoing connections: of those, another test's
    connection may take one before the program listens.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(lowest // 2, lowest)
        with contextlib.suppress(OSError), listening_socket(host, port):
            return port


def closed_address(host: str = "127.0.0.1") -> tuple[str, int]:
    """An address where a connection is refused."""
    return host, free_port(host)


def address(sock: socket.socket) -> tuple[str, int]:
    """(ip, port) a socket is bound to."""
    host, port = sock.getsockname()[:2]
    return str(host), int(port)


def wait_until(
    condition: Callable[[], bool], what: str, *, timeout: float = 30.0, every: float = 0.005
) -> None:
    """Poll until the condition holds, or fail saying what never happened."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(every)


def wait_listening(port: int, host: str = "127.0.0.1", *, timeout: float = 30.0) -> None:
    """Until something accepts on the port."""

    def accepts() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return True
        return False

    wait_until(accepts, f"a listener on {host}:{port}", timeout=timeout, every=0.02)
