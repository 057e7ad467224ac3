"""The child of acceleration's self-test: `python -m ebpf.turbotrial CGROUP MOUNT_POINT OFFSETS`, byte code on stdin.

Connections over loopback join as direct ones would. Bytes go both ways in writes of all sizes while the readers now stop,
now go on: none may be lost or out of order, some have to be handed over, and a writer whose reader has stopped has to be
held up.
"""

from __future__ import annotations

import json
import random
import select
import socket
import sys
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from ebpf import bpf, bytecode, pairs, trial
from ebpf.errors import CaptureError
from ebpf.loader import Kernel
from ebpf.maps import ip16
from ebpf.pairs import Endpoint, Tuple4
from ebpf.turbo import Turbo

_MOST_WAITING: Final = 64 << 20
_TURNS: Final = 400
_SMALL: Final = (1, 7, 100, 4096)
_SIZES: Final = (*_SMALL, 65536, 200_000)
_PATTERN: Final = random.Random(1).randbytes(1 << 16) * 5  # noqa: S311


class _Way:
    """One direction: what has been written and read, always part of the same pattern."""

    def __init__(self, writer: socket.socket, reader: socket.socket) -> None:
        self.writer, self.reader = writer, reader
        self.written = self.read = 0

    def write(self, size: int) -> bool:
        """Whether there was room."""
        at = self.written & 0xFFFF
        try:
            self.written += self.writer.send(_PATTERN[at : at + size])
        except BlockingIOError:
            return False
        return True

    def take(self, size: int) -> bool:
        """Whether there was anything. AssertionError for bytes that are not the next ones."""
        try:
            got = self.reader.recv(size)
        except BlockingIOError:
            return False
        at = self.read & 0xFFFF
        _expect(got == _PATTERN[at : at + len(got)], f"byte {self.read} is not the one that was sent")
        self.read += len(got)
        return bool(got)

    def drain(self) -> None:
        """Read all that was written."""
        while self.read < self.written:
            _expect(bool(select.select([self.reader], [], [], 5)[0]), "bytes were lost")
            self.take(max(_SIZES))


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise AssertionError(otherwise)


def _joined(kernel: Kernel, cookie: int) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection that the maps call direct and accelerated."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.socket()
    client.bind(("127.0.0.1", 0))
    near, far = (Endpoint(ip_address("127.0.0.1"), each.getsockname()[1]) for each in (client, listener))
    entry = pairs.CONN.pack(
        cookie, 0, 0, 0, 0, 0, 0, 0, 0, ip16(far.ip), far.port, 1, pairs.What.OPEN, 0, 0, 0, 0, 0
    )
    bpf.map_update(kernel.maps["direct_conns"], Tuple4(near, far).encode(), entry)
    client.connect(listener.getsockname())
    accepted, _ = listener.accept()
    listener.close()
    for each in (client, accepted):
        each.setblocking(False)
    return client, accepted


def _exercise(ways: list[_Way], sizes: tuple[int, ...]) -> None:
    dice = random.Random(2)  # noqa: S311
    for _ in range(_TURNS):
        way = dice.choice(ways)
        if dice.random() < 0.5:
            way.write(dice.choice(sizes))
        else:
            way.take(dice.choice(sizes))
    for way in ways:
        way.drain()


def _back_pressure(way: _Way) -> None:
    while way.written - way.read <= _MOST_WAITING:
        if not way.write(max(_SMALL)):
            way.drain()
            return
    raise AssertionError("a writer is not held up when its reader has stopped")


def _steps(collection: bytecode.Collection, offsets: Mapping[str, int], cgroup: Path, pins: Path) -> None:
    trial.bring_loopback_up()
    kernel = Kernel.open(collection, pins)
    turbo = Turbo(kernel, cgroup)
    turbo.attach(offsets)
    for cookie, stopped in enumerate(([], [0], [1]), start=1):
        client, accepted = _joined(kernel, cookie)
        with client, accepted:
            ways = [_Way(client, accepted), _Way(accepted, client)]
            ways[0].write(1)
            for index in stopped:
                _back_pressure(ways[index])
            for sizes in (_SMALL, _SIZES):
                _exercise(ways, sizes)
            sent = turbo.handed_over().get(cookie, {})
            _expect(len(sent) == 2 and all(sent.values()), "nothing was handed over")


def main() -> int:
    """In the child; 0 if everything works."""
    cgroup, mount_point = map(Path, sys.argv[1:3])
    try:
        collection = bytecode.decode(sys.stdin.read())
        trial.isolate(cgroup, mount_point)
        _steps(collection, json.loads(sys.argv[3]), cgroup, mount_point)
    except (OSError, AssertionError, CaptureError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
