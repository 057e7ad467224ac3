"""Where the running kernel keeps a member of a struct: reading its own description of its types. Pure.

Source: Documentation/bpf/btf.rst. `/sys/kernel/btf/vmlinux` is some 5 MB and takes about 0.2 s.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")

_HEADER: Final = struct.Struct("=HBBIIIII")
_TYPE: Final = struct.Struct("=III")
_MAGIC: Final = 0xEB9F
_STRUCT, _UNION = 4, 5
_SEEN_THROUGH: Final = frozenset({8, 9, 10, 11, 18})  # typedef, volatile, const, restrict, type tag
# What follows the header of a type: bytes by kind, and bytes for each of its `vlen` entries.
_FIXED: Final = {1: 4, 3: 12, 14: 4, 17: 4}
_EACH: Final = {_STRUCT: 12, _UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12}


@dataclass(frozen=True, slots=True)
class _Type:
    kind: int
    name: int
    refers: int
    wide: bool
    members: tuple[tuple[int, int, int], ...]


class Types:
    """All types of a kernel."""

    def __init__(self, raw: bytes) -> None:
        """ValueError if it is no such description."""
        try:
            magic, _, _, header, types, types_size, strings, strings_size = _HEADER.unpack_from(raw)
            if magic != _MAGIC:
                raise ValueError("not BTF of this machine's byte order")
            self._strings = raw[header + strings : header + strings + strings_size]
            self._types = [None, *_read(raw[header + types : header + types + types_size])]
        except struct.error as error:
            raise ValueError(f"BTF ends early: {error}") from error

    def offset(self, name: str, path: str) -> int:
        """Bytes from the start of struct `name` to a member: `a.b` is b in a. KeyError if there is none."""
        found, offset = self._named(name), 0
        for part in path.split("."):
            step = self._member(found, part)
            if step is None:
                raise KeyError(f"struct {name} has no {path}")
            offset += step[0]
            found = self._resolved(step[1])
        return offset

    def _named(self, name: str) -> _Type:
        wanted = name.encode()
        for each in self._types:
            if each and each.kind == _STRUCT and each.name and self._text(each.name) == wanted:
                return each
        raise KeyError(f"no struct {name}")

    def _member(self, of: _Type, name: str) -> tuple[int, int] | None:
        wanted = name.encode()
        for label, kind, position in of.members:
            offset = (position & 0xFFFFFF if of.wide else position) // 8
            if label and self._text(label) == wanted:
                return offset, kind
            if not label and (inner := self._member(self._resolved(kind), name)):
                return offset + inner[0], inner[1]
        return None

    def _resolved(self, number: int) -> _Type:
        found = self._types[number]
        while found and found.kind in _SEEN_THROUGH:
            found = self._types[found.refers]
        return found or _Type(0, 0, 0, False, ())

    def _text(self, at: int) -> bytes:
        return self._strings[at : self._strings.index(b"\0", at)]


def _read(raw: bytes) -> Iterator[_Type]:
    at = 0
    while at < len(raw):
        name, info, refers = _TYPE.unpack_from(raw, at)
        kind, entries = info >> 24 & 31, info & 0xFFFF
        at += _TYPE.size
        size = _FIXED.get(kind, 0) + _EACH.get(kind, 0) * entries
        members: tuple[tuple[int, int, int], ...] = ()
        if kind in (_STRUCT, _UNION):
            members = tuple(struct.iter_unpack("=III", raw[at : at + size]))
        yield _Type(kind, name, refers, bool(info >> 31), members)
        at += size
