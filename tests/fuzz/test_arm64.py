"""The engine's C core built for arm64, and two of them at work under an emulator.

Needs `AMBIENT_ARM64_SYSROOT`: a folder with Debian's arm64 packages libc6, libgcc-s1, libssl3 and libssl-dev unpacked
(`apt-get download`, `dpkg -x`), and the packages gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user-static.
"""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.fuzz import run

SYSROOT = os.environ.get("AMBIENT_ARM64_SYSROOT", "")
TRIPLE = "aarch64-linux-gnu"
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]


def compile_to(folder: Path, source: Path) -> str:
    out = str(folder / f"{source.stem}.o")
    headers = [f"-I{SYSROOT}/usr/include", f"-I{SYSROOT}/usr/include/{TRIPLE}", f"-I{run.ENGINE}"]
    subprocess.run([f"{TRIPLE}-gcc", *FLAGS, *headers, "-c", str(source), "-o", out], check=True)
    return out


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not SYSROOT, reason="AMBIENT_ARM64_SYSROOT names no arm64 libraries")
def test_two_engines_on_arm64_lose_no_byte_and_leave_nothing(tmp_path: Path) -> None:
    sources = [*run.core_sources(), run.HERE / "engine_check.c"]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(partial(compile_to, tmp_path), sources))
    program = str(tmp_path / "engine_check")
    libraries = [f"-L{SYSROOT}/usr/lib/{TRIPLE}", "-lssl", "-lcrypto", "-Wl,--allow-shlib-undefined"]
    subprocess.run([f"{TRIPLE}-gcc", "-pthread", *objects, "-o", program, *libraries], check=True)
    done = subprocess.run(
        ["qemu-aarch64-static", "-L", SYSROOT, program], capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stderr.count(" ended, ") == 2, done.stderr
