"""The bpf(2) system call by ctypes: maps, programs, links and pins.

Every function raises OSError as the kernel answered; descriptors returned are owned by the caller and
close-on-exec (the kernel opens all BPF descriptors so). Attribute layouts: include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import functools
import os
import platform
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ebpf.errors import CaptureError, CaptureReason
from ebpf.kinds import AttachType, MapInfo, MapType, ProgramType

_NUMBERS: Final = {"x86_64": 321, "amd64": 321, "aarch64": 280, "arm64": 280}
_ATTR_SIZE: Final = 128
_LOG_SIZE: Final = 1 << 20
_TRIES: Final = 16
_BTF_INT, _BTF_STRUCT = 1, 4  # in the order in which _describe lists them
_libc = ctypes.CDLL(None, use_errno=True)


class Command(enum.IntEnum):
    """enum bpf_cmd, as far as used."""

    MAP_CREATE = 0
    MAP_LOOKUP = 1
    MAP_UPDATE = 2
    MAP_DELETE = 3
    MAP_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    OBJ_INFO = 15
    BTF_LOAD = 18
    MAP_LOOKUP_BATCH = 24
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_DETACH = 34


class UpdateFlag(enum.IntEnum):
    """Flags of a map update."""

    ANY = 0
    NOEXIST = 1


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """`target` is a cgroup id, a network namespace's inode, or an interface's index; 0 once the target is gone."""

    program: int
    target: int


@functools.cache
def _number() -> int:
    machine = platform.machine()
    try:
        return _NUMBERS[machine]
    except KeyError:
        raise CaptureError(
            CaptureReason.MACHINE_UNSUPPORTED, f"bpf(2) number unknown for {machine}", "run on amd64 or arm64"
        ) from None


def _bpf(command: Command, attributes: bytes) -> tuple[int, bytes]:
    buffer = ctypes.create_string_buffer(attributes, _ATTR_SIZE)
    result = _libc.syscall(_number(), int(command), buffer, _ATTR_SIZE)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bpf {command.name.lower()}: {os.strerror(number)}")
    return result, buffer.raw


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def _bytes(value: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(value, len(value))


def _object_name(name: str) -> bytes:
    return name.encode("ascii")[:15]


def map_create(name: str, info: MapInfo) -> int:
    """Create a map; returns its descriptor."""
    described = _describe(info.value_size) if info.type == MapType.SK_STORAGE else None
    attributes = struct.pack(
        "=IIIIIII16sIIII",
        info.type, info.key_size, info.value_size, info.max_entries, info.flags, 0, 0, _object_name(name),
        0, *((described, _BTF_INT, _BTF_STRUCT) if described is not None else (0, 0, 0)),
    )  # fmt: skip
    try:
        return _bpf(Command.MAP_CREATE, attributes)[0]
    finally:
        if described is not None:
            os.close(described)


def _describe(size: int) -> int:
    """Load the type information that socket storage wants: an int for the key, a struct of this size."""
    names = b"\0int\0char\0value\0bytes\0"
    whole, byte = (1 << 24) | 32, 8
    types = struct.pack("=IIII", names.index(b"int"), 1 << 24, 4, whole)
    types += struct.pack("=IIII", names.index(b"char"), 1 << 24, 1, byte)
    types += struct.pack("=IIIIII", 0, 3 << 24, 0, 2, _BTF_INT, size)  # char[size]
    types += struct.pack("=III", names.index(b"value"), (4 << 24) | 1, size)
    types += struct.pack("=III", names.index(b"bytes"), 3, 0)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    blob = _bytes(header + types + names)
    return _bpf(Command.BTF_LOAD, struct.pack("=QQIIII", _address(blob), 0, len(blob), 0, 0, 0))[0]


def map_update(fd: int, key: bytes, value: bytes, flags: UpdateFlag = UpdateFlag.ANY) -> None:
    """Write an entry; FileExistsError if `NOEXIST` was asked for and it is there."""
    key_buffer, value_buffer = _bytes(key), _bytes(value)
    attributes = struct.pack("=IxxxxQQQ", fd, _address(key_buffer), _address(value_buffer), flags)
    _bpf(Command.MAP_UPDATE, attributes)


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """Read an entry, or None."""
    key_buffer, value_buffer = _bytes(key), ctypes.create_string_buffer(value_size)
    try:
        _bpf(
            Command.MAP_LOOKUP, struct.pack("=IxxxxQQQ", fd, _address(key_buffer), _address(value_buffer), 0)
        )
    except FileNotFoundError:
        return None
    return value_buffer.raw


def map_delete(fd: int, key: bytes) -> bool:
    """Delete an entry; says whether it was there."""
    key_buffer = _bytes(key)
    try:
        _bpf(Command.MAP_DELETE, struct.pack("=IxxxxQQQ", fd, _address(key_buffer), 0, 0))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):  # a sockmap answers EINVAL for an empty slot
            return False
        raise
    return True


def map_entries(
    fd: int, key_size: int, value_size: int, at_once: int = 1024
) -> Iterator[tuple[bytes, bytes]]:
    """All entries of a hash, by few calls: whatever is there from the first to the last of them is among these."""
    place = ctypes.create_string_buffer(8)
    begun = False
    while True:
        keys, values = (ctypes.create_string_buffer(at_once * size) for size in (key_size, value_size))
        attributes = struct.pack(
            "=QQQQIIQQ",
            _address(place) if begun else 0, _address(place), _address(keys), _address(values), at_once, fd, 0, 0,
        )  # fmt: skip
        buffer = ctypes.create_string_buffer(attributes, _ATTR_SIZE)
        result = _libc.syscall(_number(), int(Command.MAP_LOOKUP_BATCH), buffer, _ATTR_SIZE)
        number = ctypes.get_errno() if result < 0 else 0
        if number == errno.ENOSPC:  # more share one place of the table than fit
            at_once *= 2
            continue
        if number not in (0, errno.ENOENT):
            raise OSError(number, f"bpf map_lookup_batch: {os.strerror(number)}")
        (count,) = struct.unpack_from("=I", buffer, 32)
        key_bytes, value_bytes = keys.raw, values.raw
        for index in range(count):
            key = key_bytes[index * key_size : (index + 1) * key_size]
            yield key, value_bytes[index * value_size : (index + 1) * value_size]
        if number:
            return
        begun = True


def map_keys(fd: int, key_size: int) -> Iterator[bytes]:
    """All keys. A key deleted meanwhile may make the walk start over: collect before deleting."""
    following = ctypes.create_string_buffer(key_size)
    current: ctypes.Array[ctypes.c_char] | None = None
    while True:
        at = _address(current) if current is not None else 0
        try:
            _bpf(Command.MAP_NEXT_KEY, struct.pack("=IxxxxQQQ", fd, at, _address(following), 0))
        except FileNotFoundError:
            return
        yield following.raw
        current = _bytes(following.raw)


def program_load(name: str, kind: ProgramType, attach: AttachType, instructions: bytes) -> int:
    """Load byte code (licence GPL, which the helpers ask for); CaptureError with the verifier's last lines."""
    code, licence = _bytes(instructions), _bytes(b"GPL\0")

    def load(log: ctypes.Array[ctypes.c_char] | None) -> int:
        attributes = struct.pack(
            "=IIQQIIQII16sII",
            kind, len(instructions) // 8, _address(code), _address(licence),
            1 if log else 0, len(log) if log else 0, _address(log) if log else 0,
            0, 0, _object_name(name), 0, attach,
        )  # fmt: skip
        return _bpf(Command.PROG_LOAD, attributes)[0]

    try:
        return _undisturbed(lambda: load(None))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL):
            raise
    log = ctypes.create_string_buffer(_LOG_SIZE)
    try:
        return load(log)
    except OSError as error:
        lines = log.value.decode(errors="replace").strip().splitlines()
        if not lines:
            raise
        told = " | ".join(line.strip() for line in lines[-4:])
        raise CaptureError(
            CaptureReason.VERIFIER_REJECTED, f"program {name}: {told}", "report this with `uname -a`"
        ) from error


def _undisturbed(load: Callable[[], int]) -> int:
    """The verifier gives up (EAGAIN) when a signal comes in, or the process is stopped for a moment."""
    for _ in range(_TRIES):
        try:
            return load()
        except BlockingIOError:
            continue
    return load()


def program_run(program: int) -> int:
    """Run a program once in this process, without input; returns its 32-bit return value."""
    _, raw = _bpf(Command.PROG_TEST_RUN, struct.pack("=II", program, 0))
    return int(struct.unpack_from("=I", raw, 4)[0])


def pin(fd: int, path: Path) -> None:
    """Give an object a name in a BPF file system."""
    name = _bytes(os.fsencode(path) + b"\0")
    _bpf(Command.OBJ_PIN, struct.pack("=QII", _address(name), fd, 0))


def pinned(path: Path) -> int | None:
    """Open a pinned object, or None."""
    name = _bytes(os.fsencode(path) + b"\0")
    try:
        return _bpf(Command.OBJ_GET, struct.pack("=QII", _address(name), 0, 0))[0]
    except FileNotFoundError:
        return None


def link_create(program: int, target: int, attach: AttachType) -> int:
    """Attach a program to the descriptor of a cgroup directory, a network namespace or a map of sockets, or (tcx) to the
    interface of that index."""
    return _bpf(Command.LINK_CREATE, struct.pack("=IIII", program, target, attach, 0))[0]


def link_update(link: int, program: int) -> None:
    """Put another program in place of the attached one, without a gap."""
    _bpf(Command.LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0))


def link_detach(link: int) -> None:
    """Detach now, whoever else still holds the link."""
    _bpf(Command.LINK_DETACH, struct.pack("=I", link))


def _info(fd: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    _bpf(Command.OBJ_INFO, struct.pack("=IIQ", fd, size, _address(buffer)))
    return buffer.raw


def map_info(fd: int) -> MapInfo:
    """The definition of an open map."""
    kind, _, key, value, entries, flags = struct.unpack_from("=IIIIII", _info(fd, 80))
    return MapInfo(kind, key, value, entries, flags)


def link_info(fd: int, attach: AttachType) -> LinkInfo:
    """What an open link joins. `attach` tells how to read the target."""
    raw = _info(fd, 64)
    (program,) = struct.unpack_from("=I", raw, 8)
    is_short = attach in (AttachType.SK_LOOKUP, AttachType.TCX_INGRESS)
    (target,) = struct.unpack_from("=I" if is_short else "=Q", raw, 16)
    return LinkInfo(program, target)
