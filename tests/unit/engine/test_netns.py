"""Onward sockets inside another network namespace, and with the client's source address."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from hbone.engine import REASONS, Accepted, Closed, Established, ListenerKind
from tests.support.ports import wait_until
from tests.unit.engine.conftest import Host, dial, exchange, expect_reset

T = TypeVar("T")
pytestmark = pytest.mark.root


@pytest.fixture
def netns() -> Iterator[int]:
    """A descriptor of a fresh namespace whose loopback is up."""
    name = f"eng-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def inside(netns: int, make: Callable[[], T]) -> T:
    """What `make` gives in a thread that has entered the namespace."""
    result: list[T] = []

    def run() -> None:
        os_setns(netns)
        result.append(make())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


def os_setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, 0x40000000):
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def answering(netns: int) -> Iterator[tuple[tuple[str, int], list[str]]]:
    """An echo server in the namespace; its address and the peers it saw."""
    listener = inside(netns, lambda: socket.create_server(("127.0.0.1", 0)))
    peers: list[str] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, peer = listener.accept()
                peers.append(peer[0])
                with sock:
                    sock.sendall(sock.recv(100))

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname(), peers
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def held(netns: int) -> int:
    """How many descriptors of this process refer to the namespace."""
    inode = os.fstat(netns).st_ino
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += link.stat().st_ino == inode
    return count


@pytest.mark.parametrize("source", [None, "127.0.0.77"])
def test_onward_socket_is_opened_in_the_namespace(
    start_host: Callable[..., Host], netns: int, source: str | None
) -> None:
    with answering(netns) as (where, peers):
        handle = 0

        def decide(host: Host, event: Accepted) -> None:
            host.engine.connect_plain(event.token, where, netns=handle, source_ip=source, mark=0x53A)

        host = start_host(decide)
        before = held(netns)
        handle = host.engine.add_netns(netns)
        assert held(netns) == before + 1
        entry = host.listen(ListenerKind.INBOUND)
        with dial(entry) as sock:
            assert exchange(sock, b"hello") == b"hello"
        assert peers == [source or "127.0.0.1"]
        (established,) = host.wait(Established)
        assert established.local is not None
        assert established.local[0] == peers[0]
        host.wait(Closed)
        host.engine.remove_netns(handle)
        wait_until(lambda: held(netns) == before, "the namespace is let go")
        expect_reset(entry)  # the verdict now names a namespace that is gone
        assert REASONS[host.wait(Closed, 2)[1].reason_code] == "connect_unreachable"
        handle = 0  # the workers are at home again
        expect_reset(entry)
        assert REASONS[host.wait(Closed, 3)[2].reason_code] == "connect_refused"


def threads_in(netns: int) -> int:
    """How many threads of this process are in the namespace."""
    inode = os.fstat(netns).st_ino
    return sum(Path(f"/proc/self/task/{task}/ns/net").stat().st_ino == inode for task in threads())


def threads() -> list[str]:
    return os.listdir("/proc/self/task")


def test_worker_leaves_a_namespace_that_was_removed(start_host: Callable[..., Host], netns: int) -> None:
    """A worker stays where its last socket was made; it must not keep a pod's namespace alive for that."""
    before, threads_before = held(netns), threads_in(netns)
    with answering(netns) as (where, _):
        handle = 0

        def decide(host: Host, event: Accepted) -> None:
            host.engine.connect_plain(event.token, where, netns=handle)

        host = start_host(decide, workers=1)
        handle = host.engine.add_netns(netns)
        entry = host.listen(ListenerKind.INBOUND)
        with dial(entry) as live, dial(entry) as other:
            assert exchange(live, b"hello") == b"hello"
            host.wait(Established, 2)
            assert threads_in(netns) == threads_before + 1
            host.engine.remove_netns(handle)
            wait_until(lambda: threads_in(netns) == threads_before, "the worker left")
            assert exchange(other, b"hello") == b"hello"  # what was connected goes on
            wait_until(lambda: held(netns) == before, "the namespace is let go")


def test_worker_goes_between_namespaces(start_host: Callable[..., Host], netns: int) -> None:
    """Onward sockets alternate between a pod's namespace and the engine's own: each lands where it should."""
    with answering(netns) as (away, _), contextlib.closing(socket.create_server(("127.0.0.1", 0))) as near:
        targets: list[tuple[tuple[str, int], int]] = []

        def decide(host: Host, event: Accepted) -> None:
            where, namespace = targets[-1]
            host.engine.connect_plain(event.token, where, netns=namespace)

        host = start_host(decide, workers=1)
        handles = [host.engine.add_netns(netns), host.engine.add_netns(netns)]
        entry = host.listen(ListenerKind.INBOUND)
        for handle in (handles[0], handles[0], handles[1]):
            targets.append((away, handle))
            with dial(entry) as sock:
                assert exchange(sock, b"away") == b"away"
            targets.append((near.getsockname(), 0))
            with dial(entry), near.accept()[0] as served:
                assert served.getpeername()[0] == "127.0.0.1"
