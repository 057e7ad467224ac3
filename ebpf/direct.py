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
from collections.abc import Container, Iterable, Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, NamedTuple

from ebpf import bpf, maps, netns, pairs, sockets
from ebpf.errors import CaptureError, CaptureReason
from ebpf.loader import Kernel
from ebpf.maps import Counter
from ebpf.pairs import CONN, RECORD, DirectConnection, Field, PairKey, Target, What
from ebpf.redirect import Redirect
from ebpf.ring import Ring
from ebpf.turbo import Turbo

_SO_COOKIE: Final = 57

LEASE: Final = 5.0
"""Seconds for which pairs count after a `renew`."""
SERVER_WAIT: Final = 60.0
"""Seconds for which the record of a connection waits for its server's part after its client has closed."""


class Look(NamedTuple):
    """What `Direct.look` finds: connections that are open, and records (`pairs.RECORD`) of such as are over."""

    begun: list[DirectConnection]
    records: list[bytes]


class Direct:
    """The direct path of one node; `Capture.direct` holds it. OSError as the kernel answers."""

    def __init__(self, kernel: Kernel, cgroup: Path | None) -> None:
        """Start with no pairs: what a former agent allowed rests on what it knew."""
        self._kernel, self._cgroup = kernel, cgroup
        self.turbo = Turbo(kernel, cgroup)
        self._lock = threading.Lock()
        self._pairs: dict[PairKey, Target] = {}
        self._of_slot: dict[int, set[PairKey]] = defaultdict(set)
        self._admitted: set[int] = set()
        self.redirect = Redirect(kernel, self._admitted.__contains__)
        self.refused = 0
        self._ring: Ring | None = None
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
        if self._ring is None:
            size = maps.LAYOUT["direct_events"].max_entries
            fd = self._kernel.maps["direct_events"]
            self._ring = Ring(fd, size, pairs.RECORD_SIZE, self._kernel.directory)
        self._kernel.attach_direct(self._cgroup)

    def attach_again(self) -> None:
        """What `enable` attached, after somebody took it away."""
        if self._ring is not None and self._cgroup is not None:
            self._kernel.attach_direct(self._cgroup)

    def disable(self) -> None:
        """No new direct connections, and nothing attached; what is open goes on, unobserved."""
        self.suspend()
        self._kernel.detach_direct()
        self.redirect.disable()
        self.turbo.enabled = False
        self.turbo.sweep()

    def close(self) -> None:
        """Give up this process's hold; what is in the kernel stays."""
        self.end_lease()
        if self._ring is not None:
            self._ring.close()
            self._ring = None

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
            wanted = {
                entry: cell
                for key, target in self._pairs.items()
                for entry, cell in pairs.entries(key, target).items()
            }
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

    @property
    def is_lent(self) -> bool:
        """Whether pairs count just now."""
        until = bpf.map_lookup(self._kernel.maps["direct_until"], maps.u32(0), 8)
        return until is not None and struct.unpack("=Q", until)[0] > time.monotonic_ns()

    def set_pairs(self, added: Mapping[PairKey, Target], removed: Iterable[PairKey] = ()) -> None:
        """Change the pairs: removals first. Pairs of pods that are not enrolled are ignored; what finds no
        room is left to the proxy and counted in `refused`."""
        with self._lock:
            self._remove(key for key in removed if key in self._pairs)
            for key, target in added.items():
                slots = {key.slot, *(backend.slot for backend in pairs.backends(target))}
                if not slots <= self._admitted:
                    continue
                if self._pairs.get(key) not in (None, target):
                    self._remove([key])
                if not self._write(pairs.entries(key, target)):
                    self.refused += 1
                    continue
                self._pairs[key] = target
                for slot in slots:
                    self._of_slot[slot].add(key)

    def _write(self, entries: Mapping[bytes, bytes]) -> bool:
        """Whether there was room. The first entry comes last: it leads to the others."""
        fd = self._kernel.maps["direct_pairs"]
        try:
            for entry, cell in reversed(list(entries.items())):
                bpf.map_update(fd, entry, cell)
        except OSError:
            for entry in entries:
                bpf.map_delete(fd, entry)
            return False
        return True

    @property
    def pairs(self) -> Mapping[PairKey, Target]:
        """What is allowed now."""
        with self._lock:
            return dict(self._pairs)

    def take(self, limit: int = 1024) -> bytes:
        """Records (`pairs.RECORD`) of connections that have ended, in order, at most so many at a time."""
        return self._ring.take(limit) if self._ring is not None else b""

    def take_waiting(self, at_once: int = 1024) -> Iterator[bytes]:
        """Records of all connections that have ended until now, in order, as `take` gives them."""
        return self._ring.take_waiting(at_once) if self._ring is not None else iter(())

    def look(self, known: Container[int]) -> Look:
        """All connections that have not ended, but for those whose cookie is known; and the records of those for which
        there was no room among the others, or whose server has not closed for `SERVER_WAIT` after its client."""
        fd = self._kernel.maps["direct_conns"]
        late = time.monotonic_ns() - int(SERVER_WAIT * 1e9)
        found = Look([], [])
        for key, raw in bpf.map_entries(fd, pairs.TUPLE_SIZE, pairs.CONN_SIZE):
            fields = CONN.unpack(raw)
            told, closed = fields[Field.WHAT] != What.OPEN, fields[Field.CLIENT_DONE]
            if told or (closed and fields[Field.ENDED] < late):
                found.records.extend(self._fetch(key))
            elif not closed and fields[Field.COOKIE] not in known:
                (event,) = RECORD.iter_unpack(pairs.as_record(key, raw))
                found.begun.append(pairs.decode_event(event).connection)
        return found

    def _fetch(self, key: bytes) -> Iterator[bytes]:
        """The record of a connection that is over, unless the kernel has told of it by now."""
        fd = self._kernel.maps["direct_conns"]
        raw = bpf.map_lookup(fd, key, pairs.CONN_SIZE)
        if (
            raw
            and CONN.unpack(raw)[Field.CLIENT_DONE] | CONN.unpack(raw)[Field.WHAT]
            and bpf.map_delete(fd, key)
        ):
            yield pairs.as_record(key, raw)

    def live(self) -> list[DirectConnection]:
        """All direct connections whose client's socket is not closed."""
        return self.look(()).begun

    @property
    def begun(self) -> int:
        """How many connections have gone direct so far, whichever agent allowed them."""
        fd = self._kernel.maps["counters"]
        return int(struct.unpack("=Q", bpf.map_lookup(fd, maps.u32(Counter.DIRECT), 8) or bytes(8))[0])

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
        self.redirect.remove(slot)

    def _remove(self, keys: Iterable[PairKey]) -> None:
        fd = self._kernel.maps["direct_pairs"]
        for key in keys:
            target = self._pairs.pop(key)
            for entry in pairs.entries(key, target):
                bpf.map_delete(fd, entry)
            for slot in (key.slot, *(backend.slot for backend in pairs.backends(target))):
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
