"""Compiled programs as data: byte code with symbolic maps and named holes. Pure.

The JSON document (one file, `programs/capture.json`):

    {"format": 1, "source": sha256 of source and flags, "compiler": "bcc 0.26.0",
     "maps": {name: [type, key size, value size, max entries, flags]},
     "programs": {name: {"type": n, "attach": n, "code": base64,
                         "maps": [[offset, map name], ...], "holes": {name: [offset, ...]}}}}

Offsets are in bytes, to the 32-bit immediate that takes a map's descriptor or a hole's value.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ebpf.kinds import AttachType, MapInfo, ProgramType

FORMAT: Final = 1
_LOAD_IMMEDIATE_64: Final = 0x18
_PSEUDO_MAP_FD: Final = 1
_CALL: Final = 0x85


@dataclass(frozen=True, slots=True)
class Program:
    """One program; `code` is a whole number of 8-byte instructions."""

    type: ProgramType
    attach: AttachType
    code: bytes
    maps: tuple[tuple[int, str], ...]
    holes: Mapping[str, tuple[int, ...]]

    def resolve(self, descriptors: Mapping[str, int], values: Mapping[str, int]) -> bytes:
        """Byte code for the kernel. KeyError for an unknown map or a hole without a value."""
        code = bytearray(self.code)
        for offset, name in self.maps:
            struct.pack_into("=i", code, offset, descriptors[name])
        for name, offsets in self.holes.items():
            for offset in offsets:
                struct.pack_into("=I", code, offset, values[name])
        return bytes(code)


@dataclass(frozen=True, slots=True)
class Collection:
    """Programs and the maps they share."""

    source: str
    compiler: str
    maps: Mapping[str, MapInfo]
    programs: Mapping[str, Program]


def _instructions(code: bytes) -> Iterator[tuple[int, int, int, int]]:
    offset = 0
    while offset < len(code):
        opcode, registers, _, immediate = struct.unpack_from("=BBhI", code, offset)
        yield offset, opcode, registers >> 4, immediate
        offset += 16 if opcode == _LOAD_IMMEDIATE_64 else 8


def from_compiled(
    kind: ProgramType, attach: AttachType, code: bytes, maps: Mapping[int, str], holes: Mapping[str, int]
) -> Program:
    """Make symbolic what a compiler resolved: `maps` by descriptor, `holes` by their placeholder value."""
    out = bytearray(code)
    references: list[tuple[int, str]] = []
    found: dict[str, list[int]] = {}
    names = {placeholder: name for name, placeholder in holes.items()}
    for offset, opcode, source, immediate in _instructions(code):
        at = offset + 4
        if opcode == _LOAD_IMMEDIATE_64 and source == _PSEUDO_MAP_FD:
            references.append((at, maps[immediate]))
        elif opcode != _CALL and immediate in names:
            found.setdefault(names[immediate], []).append(at)
        else:
            continue
        struct.pack_into("=I", out, at, 0)
    return Program(
        kind, attach, bytes(out), tuple(references), {name: tuple(at) for name, at in sorted(found.items())}
    )


def encode(collection: Collection) -> str:
    """The JSON document, stable from run to run."""
    maps = {
        name: [info.type, info.key_size, info.value_size, info.max_entries, info.flags]
        for name, info in collection.maps.items()
    }
    programs = {
        name: {
            "type": int(program.type),
            "attach": int(program.attach),
            "code": base64.b64encode(program.code).decode(),
            "maps": [list(reference) for reference in program.maps],
            "holes": {hole: list(offsets) for hole, offsets in program.holes.items()},
        }
        for name, program in collection.programs.items()
    }
    document = {
        "format": FORMAT,
        "source": collection.source,
        "compiler": collection.compiler,
        "maps": maps,
        "programs": programs,
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _program(document: Mapping[str, Any]) -> Program:
    return Program(
        ProgramType(document["type"]),
        AttachType(document["attach"]),
        base64.b64decode(document["code"], validate=True),
        tuple((int(offset), str(name)) for offset, name in document["maps"]),
        {name: tuple(offsets) for name, offsets in document["holes"].items()},
    )


def decode(text: str) -> Collection:
    """Read the JSON document; ValueError if it is not one of ours."""
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"byte code format {document['format']}, not {FORMAT}")
        return Collection(
            document["source"],
            document["compiler"],
            {name: MapInfo(*numbers) for name, numbers in document["maps"].items()},
            {name: _program(program) for name, program in document["programs"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a byte code document: {error!r}") from error
