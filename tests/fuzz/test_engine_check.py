"""Two whole engines without Python under the sanitizers: no access that is wrong, no byte that is lost, nothing leaked."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.fuzz import run

FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-fno-omit-frame-pointer", "-pthread"]
SANITIZE = "-fsanitize=address,undefined"


def compile_to(folder: Path, source: Path) -> str:
    out = str(folder / f"{source.stem}.o")
    subprocess.run(["gcc", *FLAGS, SANITIZE, f"-I{run.ENGINE}", "-c", str(source), "-o", out], check=True)
    return out


@pytest.mark.timeout(600)
def test_engine_check_is_clean_and_leaves_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        sources = [*run.core_sources(), run.HERE / "engine_check.c"]
        objects = list(pool.map(partial(compile_to, tmp_path), sources))
    program = str(tmp_path / "check")
    subprocess.run(["gcc", SANITIZE, "-pthread", *objects, "-o", program, "-lssl", "-lcrypto"], check=True)
    options = {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run([program], env=os.environ | options, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-6000:]
