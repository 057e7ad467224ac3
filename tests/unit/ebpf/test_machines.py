"""What depends on the machine (amd64, arm64), and that nothing else does.

Both are little-endian 64-bit machines with the same asm-generic numbers for socket options, ioctls and flags;
what differs are the numbers of system calls that libc does not wrap.
"""

from __future__ import annotations

import ast
import platform
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

import ebpf
from ebpf import bpf, compiler, kinds, maps, pairs, veth
from ebpf.errors import CaptureError, CaptureReason

PACKAGE = Path(ebpf.__file__).parent
FORMAT = re.compile(r"(?:struct\.(?:pack|unpack|pack_into|unpack_from|calcsize)|Struct)\(\s*\"([^\"]*)\"")
LOAD_IMMEDIATE_64, CALL, MAP_FD = 0x18, 0x85, 1


@pytest.fixture
def fresh_number() -> Iterator[None]:
    bpf._number.cache_clear()
    yield
    bpf._number.cache_clear()


@pytest.mark.parametrize(
    ("machine", "number"), [("x86_64", 321), ("amd64", 321), ("aarch64", 280), ("arm64", 280)]
)
def test_bpf_has_the_number_of_the_machine(
    machine: str, number: int, monkeypatch: pytest.MonkeyPatch, fresh_number: None
) -> None:
    """arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert bpf._number() == number


def test_machine_without_a_known_number_is_refused_with_advice(
    monkeypatch: pytest.MonkeyPatch, fresh_number: None
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(CaptureError, match="riscv64; run on amd64 or arm64") as refused:
        bpf._number()
    assert refused.value.reason is CaptureReason.MACHINE_UNSUPPORTED


def test_layouts_are_written_without_the_machines_own_sizes_and_gaps() -> None:
    formats = [
        (path.name, found)
        for path in sorted(PACKAGE.rglob("*.py"))
        for found in FORMAT.findall(path.read_text())
    ]
    assert len(formats) > 40
    assert [each for each in formats if each[1][:1] not in "=!"] == []


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        ("pods", maps.RECORD_SIZE),
        ("slots", maps.RECORD_SIZE),
        ("addresses", struct.calcsize("=I")),
        ("direct_pairs", pairs.CELL_SIZE),
        ("redirect_hosts", veth.HOST_SIZE),
    ],
)
def test_values_have_the_size_that_the_programs_gave_them(layout: str, size: int) -> None:
    """The compiler's target is BPF, whatever the machine: its sizes are those of the shipped maps."""
    assert maps.LAYOUT[layout].value_size == compiler.shipped().maps[layout].value_size == size


def instructions(code: bytes) -> Iterator[tuple[int, int]]:
    """(opcode, source register), skipping the second half of wide loads."""
    at = 0
    while at < len(code):
        opcode, registers = struct.unpack_from("=BB", code, at)
        yield opcode, registers >> 4
        at += 16 if opcode == LOAD_IMMEDIATE_64 else 8


@pytest.mark.parametrize("name", sorted(compiler.ENTRY_POINTS))
def test_byte_code_names_maps_and_helpers_and_nothing_of_one_kernel(name: str) -> None:
    """Helper numbers are the same everywhere; kernel functions, types and their offsets would not be."""
    found = list(instructions(compiler.shipped().programs[name].code))
    assert {source for opcode, source in found if opcode == LOAD_IMMEDIATE_64} <= {0, MAP_FD}
    assert {source for opcode, source in found if opcode == CALL} <= {0}


def test_source_asks_for_no_machine() -> None:
    text = compiler.source_text()
    assert not re.search(r"__x86_64__|__aarch64__|__TARGET_ARCH|PT_REGS|#include <linux/", text)
    assert kinds.ProgramType.SK_LOOKUP == 30


def test_system_calls_by_number_are_in_one_place() -> None:
    users = {
        path.name
        for path in PACKAGE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "syscall"
    }
    assert users == {"bpf.py"}
