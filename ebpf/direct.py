"""The direct path: which pairs of local pods may talk plain TCP in the kernel, and which connections do.

Off unless `enable` is called. Pairs count only while `renew` keeps their lease ahead of the clock: without a
living agent every new connection goes to the proxy, and there it waits. Any thread may call.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from ebpf import bpf, maps, netns, pairs, sockets
from ebpf.errors import CaptureError, CaptureReason
from ebpf.loader import Kernel
from ebpf.pairs import Backend, DirectConnection, DirectEvent, PairKey
from ebpf.turbo import Turbo

_SO_COOKIE: Final = 57

LEASE: Final = 5.0
"""Seconds for which pairs count after a `renew`."""


class Direct:
    """The direct path of one node; `Capture.direct` holds it. OSError as the kernel answers."""

    def __init__(self, kernel: Kernel, cgroup: Path | None) -> None:
        """Start with no pairs: what a former agent allowed rests on what it knew."""
        self._kernel, self._cgroup = kernel, cgroup
        self.turbo = Turbo(kernel, cgroup)
        self._lock = threading.Lock()
        self._pairs: dict[PairKey, Backend] = {}
        self._of_slot: dict[int, set[PairKey]] = defaultdict(set)
        self._admitted: set[int] = set()
        self.refused = 0
        self.end_lease()
        self.audit()

    def enable(self) -> None:
        """Attach what direct connections need. CaptureError if the kernel cannot do it, or could not take a
        permission back."""
        if self._cgroup is None:
            raise CaptureError(
                CaptureReason.UNSUPPORTED,
                "the direct path needs the connect hook, which this capture does without",
                "see why variant B does not work, or leave SAME_NODE_ENCRYPTION at always",
            )
        _require_destroy()
        self._kernel.attach_direct(self._cgroup)

    def disable(self) -> None:
        """No new direct connections, and nothing attached; what is open goes on, unobserved."""
        self.suspend()
        self._kernel.detach_direct()
        self.turbo.enabled = False
        self.turbo.sweep()

    def suspend(self) -> None:
        """No new direct connections until the next `renew`; pairs are forgotten."""
        with self._lock:
            self.end_lease()
            self._remove(list(self._pairs))

    def audit(self) -> int:
        """Put the kernel's pairs right, in which another agent (during an upgrade) may have had its hand; how
        many were not as they should be."""
        fd = self._kernel.maps["direct_pairs"]
        with self._lock:
            wanted = {key.encode(): backend.encode() for key, backend in self._pairs.items()}
            there = list(bpf.map_keys(fd, pairs.KEY_SIZE))
            strange = [key for key in there if key not in wanted]
            for key in strange:
                bpf.map_delete(fd, key)
            missing = wanted.keys() - set(there)
            for key in missing:
                bpf.map_update(fd, key, wanted[key])
        self.turbo.sweep()
        return len(strange) + len(missing)

    def renew(self, seconds: float = LEASE) -> None:
        """Let pairs count for so long from now."""
        until = time.monotonic_ns() + int(seconds * 1e9)
        bpf.map_update(self._kernel.maps["direct_until"], maps.u32(0), maps.u64(until))

    def set_pairs(self, added: Mapping[PairKey, Backend], removed: Iterable[PairKey] = ()) -> None:
        """Change the pairs: removals first. Pairs of pods that are not enrolled are ignored; what finds no
        room is left to the proxy and counted in `refused`."""
        fd = self._kernel.maps["direct_pairs"]
        with self._lock:
            self._remove(key for key in removed if key in self._pairs)
            for key, backend in added.items():
                if key.slot not in self._admitted or backend.slot not in self._admitted:
                    continue
                if self._pairs.get(key) not in (None, backend):
                    self._remove([key])
                try:
                    bpf.map_update(fd, key.encode(), backend.encode())
                except OSError:
                    self.refused += 1
                    continue
                self._pairs[key] = backend
                for slot in (key.slot, backend.slot):
                    self._of_slot[slot].add(key)

    @property
    def pairs(self) -> Mapping[PairKey, Backend]:
        """What is allowed now."""
        with self._lock:
            return dict(self._pairs)

    @property
    def events(self) -> tuple[int, int]:
        """The queue's descriptor and the size of an event in bytes, for readers other than `take`."""
        return self._kernel.maps["direct_events"], pairs.EVENT_SIZE

    def take(self, limit: int = 1024) -> list[DirectEvent]:
        """What happened to direct connections, in order, at most so many at a time."""
        fd = self._kernel.maps["direct_events"]
        found: list[DirectEvent] = []
        while len(found) < limit and (raw := bpf.queue_take(fd, pairs.EVENT_SIZE)):
            found.append(pairs.decode_event(raw))
        return found

    def live(self) -> list[DirectConnection]:
        """All direct connections whose client's socket is not closed."""
        fd = self._kernel.maps["direct_conns"]
        found: list[DirectConnection] = []
        for key in list(bpf.map_keys(fd, pairs.TUPLE_SIZE)):
            raw = bpf.map_lookup(fd, key, pairs.CONN_SIZE)
            if raw:
                found.append(pairs.decode_connection(key, raw))
        return found

    def forget(self, connection: DirectConnection) -> None:
        """Remove the entry of a connection whose socket is gone without a word."""
        bpf.map_delete(self._kernel.maps["direct_conns"], connection.ends.encode())

    def admit(self, slot: int) -> None:
        """The pod is captured: it may be part of pairs."""
        with self._lock:
            self._admitted.add(slot)

    def expel(self, slot: int) -> None:
        """The pod leaves, and its slot may come to mean another: its pairs go at once."""
        with self._lock:
            self._admitted.discard(slot)
            self._remove(list(self._of_slot.pop(slot, ())))

    def _remove(self, keys: Iterable[PairKey]) -> None:
        fd = self._kernel.maps["direct_pairs"]
        for key in keys:
            bpf.map_delete(fd, key.encode())
            backend = self._pairs.pop(key)
            for slot in (key.slot, backend.slot):
                if slot in self._of_slot:
                    self._of_slot[slot].discard(key)

    def end_lease(self) -> None:
        """From now on pairs do not count."""
        bpf.map_update(self._kernel.maps["direct_until"], maps.u32(0), maps.u64(0))


def destroy(netns_fd: int, connection: DirectConnection) -> bool:
    """End a connection at once, in its client's namespace: the client gets ECONNABORTED, the server a reset.

    Only just this socket: its cookie is compared. False if it had ended. OSError as the kernel answers.
    """
    with netns.inside(netns_fd):
        client, server = connection.ends
        return sockets.destroy(sockets.identity(client, server, connection.cookie))


def byte_counts(netns_fd: int) -> dict[int, tuple[int, int]]:
    """(sent, received) of the application, by cookie, of all TCP sockets of a client's namespace. OSError."""
    with netns.inside(netns_fd):
        return {each.cookie: (each.payload_sent, each.payload_received) for each in sockets.listed()}


def _require_destroy() -> None:
    """End a connection of our own, to see whether this kernel lets us."""
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.create_connection(listener.getsockname(), timeout=1) as probe,
        ):
            cookie = int(struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0])
            own, peer = _end(probe.getsockname()), _end(probe.getpeername())
            ended = sockets.destroy(sockets.identity(own, peer, cookie))
        problem = "" if ended else "the socket was not found"
    except OSError as error:
        problem = str(error)
    if problem:
        raise CaptureError(
            CaptureReason.UNSUPPORTED,
            f"SOCK_DESTROY: {problem}",
            "needs a kernel with CONFIG_INET_DIAG_DESTROY, and loopback up on the node",
        )


def _end(address: tuple[str, int]) -> pairs.Endpoint:
    return pairs.Endpoint(IPv4Address(address[0]), address[1])
