"""Byte code as data: making it symbolic, filling it in, the JSON document."""

from __future__ import annotations

import json
import struct

import pytest

from ebpf import bytecode, compiler
from ebpf.bytecode import Collection
from ebpf.kinds import AttachType, MapInfo, ProgramType

SLOT = 0x5107A61C


def instruction(opcode: int, immediate: int, source: int = 0) -> bytes:
    return struct.pack("=BBhI", opcode, source << 4, 0, immediate)


def load_64(source: int, immediate: int, high: int = 0) -> bytes:
    return instruction(0x18, immediate, source) + instruction(0, high)


MOVE, STORE, CALL, EXIT = 0xB7, 0x62, 0x85, 0x95
CODE = (
    load_64(1, 42)
    + instruction(MOVE, SLOT)
    + load_64(0, 42)
    + instruction(CALL, SLOT)
    + instruction(STORE, SLOT)
    + load_64(1, 43, high=SLOT)
    + instruction(EXIT, 0)
)


def symbolic() -> bytecode.Program:
    return bytecode.from_compiled(
        ProgramType.SK_LOOKUP, AttachType.SK_LOOKUP, CODE, {42: "pods", 43: "slots"}, {"slot": SLOT}
    )


def test_descriptors_become_names_and_placeholders_holes() -> None:
    program = symbolic()
    assert program.maps == ((4, "pods"), (60, "slots"))
    assert program.holes == {"slot": (20, 52)}
    assert struct.unpack_from("=I", program.code, 4) == (0,)
    assert struct.unpack_from("=I", program.code, 20) == (0,)


def test_numbers_that_only_look_alike_are_left_alone() -> None:
    code = symbolic().code
    assert struct.unpack_from("=I", code, 28) == (42,)  # a plain 64-bit constant
    assert struct.unpack_from("=I", code, 44) == (SLOT,)  # a call's function number
    assert struct.unpack_from("=I", code, 68) == (SLOT,)  # second half of a wide instruction


def test_resolving_gives_back_what_was_compiled() -> None:
    assert symbolic().resolve({"pods": 42, "slots": 43}, {"slot": SLOT}) == CODE
    other = symbolic().resolve({"pods": 5, "slots": 6}, {"slot": 9})
    assert struct.unpack_from("=I", other, 4) == (5,)
    assert struct.unpack_from("=I", other, 20) == struct.unpack_from("=I", other, 52) == (9,)


@pytest.mark.parametrize(("maps", "values"), [({"pods": 1}, {"slot": 1}), ({"pods": 1, "slots": 2}, {})])
def test_resolving_without_a_value_fails(maps: dict[str, int], values: dict[str, int]) -> None:
    with pytest.raises(KeyError):
        symbolic().resolve(maps, values)


def test_document_survives_reading_and_writing() -> None:
    collection = Collection("abc", "bcc 1", {"pods": MapInfo(1, 8, 24, 10, 1)}, {"steer": symbolic()})
    text = bytecode.encode(collection)
    assert bytecode.decode(text) == collection
    assert bytecode.encode(bytecode.decode(text)) == text


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"format": 2}', '{"format": 1, "source": "a"}', "{"]
)
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        bytecode.decode(text)


def test_damaged_code_is_refused() -> None:
    document = json.loads(compiler.SHIPPED.read_text())
    document["programs"]["steer"]["code"] += "!"
    with pytest.raises(ValueError):
        bytecode.decode(json.dumps(document))


def test_shipped_document_is_complete_and_from_this_source() -> None:
    shipped = compiler.shipped()
    assert shipped.source == compiler.source_digest()
    assert shipped.programs.keys() == compiler.ENTRY_POINTS.keys()
    for name, (kind, attach) in compiler.ENTRY_POINTS.items():
        program = shipped.programs[name]
        assert (program.type, program.attach) == (kind, attach)
        assert {reference for _, reference in program.maps} <= shipped.maps.keys()
    assert len(shipped.programs["steer"].holes["slot"]) == 1
    assert shipped.programs["connect4"].holes == shipped.programs["connect6"].holes == {}
