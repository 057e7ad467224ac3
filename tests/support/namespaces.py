"""Network namespaces without a name, as pods have them. Needs root."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import struct
import threading
from ipaddress import IPv4Address

from ebpf import netlink, netns, trial

OWN = IPv4Address("10.77.1.1")
AHEAD = 8


def new_namespace() -> int:
    """A pod's, with an address; only the descriptor that is returned keeps it."""
    found: list[int] = []

    def make() -> None:
        netns.unshare()
        trial.bring_loopback_up()
        with netlink.Netlink() as link:
            body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, 1)
            link.create(netlink.NEW_ADDRESS, body + netlink.attributes({1: OWN.packed, 2: OWN.packed}))
        found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return found[0]


class Namespaces:
    """Made ahead in a thread, as a container runtime does beside the CNI agent."""

    def __init__(self) -> None:
        self._made: queue.Queue[int] = queue.Queue(AHEAD)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._make)
        self._thread.start()

    def _make(self) -> None:
        while not self._ended.is_set():
            self._made.put(new_namespace())

    def take(self) -> int:
        """A descriptor, the caller's."""
        return self._made.get(timeout=60)

    def close(self) -> None:
        self._ended.set()
        while self._thread.is_alive() or not self._made.empty():
            with contextlib.suppress(queue.Empty):
                os.close(self._made.get(timeout=0.1))
        self._thread.join()
