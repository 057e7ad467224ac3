"""The reader of a ring buffer, over memory laid out as the kernel lays it out."""

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpf.ring import HEADER_SIZE, Ring

BUSY, DISCARDED = 1 << 31, 1 << 30
RECORD, SIZE = 24, 1 << 13
STRIDE = HEADER_SIZE + RECORD


class Written:
    """Consumer's page, producer's page, data; `write` is what the kernel does."""

    def __init__(self, lock: Path) -> None:
        fd = os.memfd_create("ring")
        os.ftruncate(fd, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.memory = mmap.mmap(fd, 0)
        self.ring = Ring(fd, SIZE, RECORD, lock)
        os.close(fd)
        self.produced = 0

    def write(self, *numbers: int, flag: int = 0) -> None:
        for number in numbers:
            raw = struct.pack("=IIQ16x", RECORD | flag, 0, number)
            at = 2 * mmap.PAGESIZE + self.produced % SIZE
            self.memory[at : at + STRIDE] = raw
            self.produced += STRIDE
        self.memory[mmap.PAGESIZE : mmap.PAGESIZE + 8] = struct.pack("=Q", self.produced)


def numbers(records: bytes) -> list[int]:
    return [number for (number,) in struct.iter_unpack("=8xQ16x", records)]


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    made = Written(tmp_path)
    yield made
    made.ring.close()
    made.memory.close()


def test_records_come_once_and_in_order_by_pieces(written: Written) -> None:
    written.write(*range(7))
    assert [numbers(piece) for piece in written.ring.take_waiting(3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(written.ring.take_waiting(3)) == []
    written.write(*range(7, 7 + SIZE // STRIDE - 1))  # over the end of the memory and on at its beginning
    assert written.ring.waiting == SIZE - STRIDE


def test_reading_ends_though_as_many_records_come_as_are_read(written: Written) -> None:
    written.write(*range(6))
    read, more = [], 6
    for piece in written.ring.take_waiting(3):
        read.append(numbers(piece))
        if more < 60:
            written.write(*range(more, more + 3))
            more += 3
    assert read == [[0, 1, 2], [3, 4, 5]]
    assert [numbers(piece) for piece in written.ring.take_waiting(9)] == [[6, 7, 8, 9, 10, 11]]


def test_pieces_that_were_discarded_do_not_end_the_reading(written: Written) -> None:
    written.write(0, 1, flag=DISCARDED)
    written.write(2)
    assert [numbers(piece) for piece in written.ring.take_waiting(2)] == [[2]]


def test_record_that_is_still_being_written_ends_it(written: Written) -> None:
    written.write(0)
    written.write(1, flag=BUSY)
    written.write(2)
    assert [numbers(piece) for piece in written.ring.take_waiting(2)] == [[0]]
    assert list(written.ring.take_waiting(2)) == []


def test_while_another_agent_reads_there_is_nothing(written: Written, tmp_path: Path) -> None:
    written.write(0)
    other = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert list(written.ring.take_waiting(2)) == []
    finally:
        os.close(other)
    assert [numbers(piece) for piece in written.ring.take_waiting(2)] == [[0]]
