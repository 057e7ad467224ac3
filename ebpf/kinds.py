"""Numbers of the kernel's BPF interface (include/uapi/linux/bpf.h), as far as used. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ProgramType(enum.IntEnum):
    """enum bpf_prog_type, as far as used."""

    SCHED_CLS = 3
    SOCK_OPS = 13
    SK_MSG = 16
    RAW_TRACEPOINT = 17
    CGROUP_SOCK_ADDR = 18
    SK_LOOKUP = 30


class AttachType(enum.IntEnum):
    """enum bpf_attach_type, as far as used."""

    NONE = 0
    SOCK_OPS = 3
    SK_MSG_VERDICT = 7
    CONNECT4 = 10
    CONNECT6 = 11
    PEER4 = 29
    PEER6 = 30
    SK_LOOKUP = 36
    TCX_INGRESS = 46


class MapType(enum.IntEnum):
    """enum bpf_map_type, as far as used."""

    HASH = 1
    ARRAY = 2
    LRU_HASH = 9
    SOCKMAP = 15
    SOCKHASH = 18
    SK_STORAGE = 24
    RINGBUF = 27


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What defines a map; two maps with equal info are interchangeable. Sizes in bytes."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
