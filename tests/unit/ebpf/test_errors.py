"""Errors are one line that says what to do; the program's constants are the package's."""

from __future__ import annotations

import re

import pytest

from ebpf import compiler, marks, probe
from ebpf.errors import CaptureError, CaptureReason
from ebpf.listeners import PORTS
from ebpf.maps import MAX_PODS, Kind


def test_error_is_one_line_with_advice() -> None:
    error = CaptureError(CaptureReason.BPFFS_MISSING, "/x is not in a BPF file system", "mount one")
    assert str(error) == "bpffs_missing: /x is not in a BPF file system; mount one"
    assert str(CaptureError(CaptureReason.UNSUPPORTED, "no")) == "unsupported: no"


def test_reasons_are_slugs() -> None:
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", reason) for reason in CaptureReason)


@pytest.mark.parametrize(
    ("name", "value"),
    [("LOOP_MARK", marks.LOOP_MARK), ("HBONE_PORT", PORTS[Kind.HBONE]), ("SLOT", compiler.HOLES["slot"])],
)
def test_constant_of_the_programs_is_the_packages(name: str, value: int) -> None:
    found = re.search(rf"#define {name} (\w+)", compiler.source_text())
    assert found
    assert int(found[1], 0) == value


def test_programs_hold_as_many_pods_as_the_package_counts() -> None:
    assert f"struct pod, slots, {MAX_PODS}," in compiler.source_text()


def test_probe_names_each_thing_once() -> None:
    names = [name for name, _ in probe._attempts(compiler.STUBS, compiler.STUBS)]
    assert len(names) == len(set(names)) == 7
