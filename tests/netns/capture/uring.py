"""connect() by io_uring, by raw system calls. Layouts: include/uapi/linux/io_uring.h."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct

_SETUP, _ENTER = 425, 426  # the same on every machine
_PARAMS = 120
_SQ_RING, _CQ_RING, _SQES = 0, 0x8000000, 0x10000000
_SQE, _CQE = 64, 16
_SQ_OFFSETS_AT, _CQ_OFFSETS_AT = 40, 80
_OP_CONNECT = 16
_GETEVENTS = 1
IOSQE_ASYNC = 0x10
_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def refusal() -> str:
    """Why the kernel has no io_uring for this process; empty if it has."""
    try:
        os.close(_call(_SETUP, 1, ctypes.create_string_buffer(_PARAMS)))
    except OSError as error:
        return str(error)
    return ""


def connect(fd: int, family: int, to: tuple[str, int], flags: int = 0) -> None:
    """Connect a socket and wait for it; OSError as the kernel answers. `flags`: IOSQE_ASYNC for a worker thread."""
    params = ctypes.create_string_buffer(_PARAMS)
    ring = _call(_SETUP, 1, params)
    try:
        sq_tail, sq_mask, _, _, _, sq_array = struct.unpack_from("=6I", params.raw, _SQ_OFFSETS_AT + 4)
        cq_head, _, cq_mask, _, _, cqes = struct.unpack_from("=6I", params.raw, _CQ_OFFSETS_AT)
        with (
            mmap.mmap(ring, sq_array + 4, offset=_SQ_RING) as submissions,
            mmap.mmap(ring, cqes + 2 * _CQE, offset=_CQ_RING) as completions,
            mmap.mmap(ring, _SQE, offset=_SQES) as entries,
        ):
            address = _sockaddr(family, to)
            # opcode, flags, ioprio, fd, address length, address
            entry = struct.pack("=BBHiQQ", _OP_CONNECT, flags, 0, fd, len(address), ctypes.addressof(address))
            entries[:_SQE] = entry.ljust(_SQE, b"\0")
            assert struct.unpack_from("=I", submissions, sq_mask) == (0,), "a ring of one"
            struct.pack_into("=I", submissions, sq_array, 0)
            struct.pack_into("=I", submissions, sq_tail, 1)
            _call(_ENTER, ring, 1, 1, _GETEVENTS, None, 0)
            (head,) = struct.unpack_from("=I", completions, cq_head)
            (mask,) = struct.unpack_from("=I", completions, cq_mask)
            _, result = struct.unpack_from("=Qi", completions, cqes + (head & mask) * _CQE)
    finally:
        os.close(ring)
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def _sockaddr(family: int, to: tuple[str, int]) -> ctypes.Array[ctypes.c_char]:
    packed = socket.inet_pton(family, to[0])
    port = struct.pack("!H", to[1])
    raw = struct.pack("=H", family) + port
    raw += packed + bytes(8) if family == socket.AF_INET else bytes(4) + packed + bytes(4)
    return ctypes.create_string_buffer(raw, len(raw))
