"""Reading a ring buffer of the kernel's (BPF_MAP_TYPE_RINGBUF) whose records are all of one size, many at a time.

Layout (kernel, Documentation/bpf/ringbuf.rst): a page with the consumer's position, a page with the producer's, then the
data twice in a row, so that what goes over the end is contiguous. A record is preceded by 8 bytes, whose upper two bits
of the first word say whether it is still being written, or to be skipped.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["HEADER_SIZE", "Ring"]

HEADER_SIZE: Final = 8
_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30


class Ring:
    """One reader; several processes may have one each, and read in turn. Any thread may call."""

    def __init__(self, fd: int, size: int, record_size: int, lock: Path) -> None:
        """`fd` of the map, `size` of its data and `record_size` in bytes; `lock`: what readers agree upon, a directory
        or file. OSError."""
        self._size, self._stride = size, HEADER_SIZE + record_size + -record_size % 8
        self._head = struct.Struct(f"=I{self._stride - 4}x")
        page = mmap.PAGESIZE
        self._lock_fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
        self._thread = threading.Lock()
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._data = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumed = memoryview(self._consumer)[:8].cast("Q")
        self._produced = memoryview(self._data)[:8].cast("Q")
        self._records = memoryview(self._data)[page:]

    @property
    def waiting(self) -> int:
        """About how many bytes are in it."""
        return self._produced[0] - self._consumed[0]

    def take_waiting(self, limit: int) -> Iterator[bytes]:
        """All records that wait now, by pieces as `take` gives them. Of those that are written meanwhile only what the last
        piece has room for: a reader that gets little time comes to an end, too."""
        end = self._consumed[0] + self.waiting
        while (position := self._consumed[0]) < end:
            if records := self.take(limit):
                yield records
            if self._consumed[0] == position:
                return  # another agent reads, or the oldest is still being written

    def take(self, limit: int) -> bytes:
        """The oldest records that are complete, at most so many, each with its header before it; taken out."""
        with self._thread:
            if not self.waiting:
                return b""
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return b""  # another agent reads just now
            try:
                return self._take(limit)
            finally:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def _take(self, limit: int) -> bytes:
        position, stride = self._consumed[0], self._stride
        at = position % self._size
        there = min((self._produced[0] - position) // stride, limit) * stride
        heads = [head for (head,) in self._head.iter_unpack(self._records[at : at + there])]
        count = next((index for index, head in enumerate(heads) if head & _BUSY), len(heads))
        # Copied only now: what a record holds is seen for certain by those who have seen it complete.
        taken = bytes(self._records[at : at + count * stride])
        self._consumed[0] = position + count * stride
        if any(head & _DISCARDED for head in heads[:count]):
            kept = (index * stride for index, head in enumerate(heads[:count]) if not head & _DISCARDED)
            taken = b"".join(taken[index : index + stride] for index in kept)
        return taken

    def close(self) -> None:
        """Give the memory back. Repeating it does nothing."""
        for view in (self._consumed, self._produced, self._records):
            view.release()
        self._consumer.close()
        self._data.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
