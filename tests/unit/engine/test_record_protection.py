"""TLS records by ipsec-mb and by OpenSSL: the same on the wire, whichever protects which side."""

from __future__ import annotations

import ctypes.util
from collections.abc import Callable
from pathlib import Path

import pytest

from hbone.engine import Engine, EngineConfig
from tests.unit.engine.conftest import Mesh, exchange, pattern

StartMesh = Callable[..., Mesh]

NEEDED = {"vaes", "vpclmulqdq", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}


def uses_ipsec_mb(config: EngineConfig) -> bool:
    engine = Engine(config)
    try:
        return engine.uses_ipsec_mb
    finally:
        engine.stop()


def can_use_ipsec_mb() -> bool:
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    header = Path("/usr/include/intel-ipsec-mb.h").exists()
    return header and ctypes.util.find_library("IPSec_MB") is not None and set(flags) >= NEEDED


def test_ipsec_mb_is_used_exactly_where_it_can_be() -> None:
    assert uses_ipsec_mb(EngineConfig()) == can_use_ipsec_mb()


def test_ipsec_mb_can_be_turned_off() -> None:
    assert not uses_ipsec_mb(EngineConfig(ipsec_mb=False))


@pytest.mark.parametrize(("out", "into"), [(True, True), (True, False), (False, True), (False, False)])
def test_either_library_on_either_side(start_mesh: StartMesh, out: bool, into: bool) -> None:
    mesh = start_mesh(out={"ipsec_mb": out}, into={"ipsec_mb": into}, workers=1, rekey_records=100)
    for size in (0, 1, 15, 16, 17, 255, 16383, 16384, 16385, 3 << 20):
        payload = pattern(size, size)
        with mesh.dial() as sock:
            assert exchange(sock, payload) == payload
    assert mesh.out.reasons(10) == ["ok"] * 10
    for host in (mesh.out, mesh.into):
        assert host.engine.stats()["keys_updated"] >= 2
