"""Whole engines without Python under the sanitizers: no access that is wrong, no byte that is lost, nothing leaked; and
no allocation whose failure costs more than the flow or tunnel that it was for."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.fuzz import run
from tests.support import enginelayers

FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-fno-omit-frame-pointer", "-pthread"]
SANITIZE = "-fsanitize=address,undefined"
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "halt_on_error=1"}
ALLOCATORS = ("malloc", "calloc", "realloc", "aligned_alloc", "strdup", "strndup")


def compile_to(folder: Path, source: Path) -> str:
    out = str(folder / f"{source.stem}.o")
    subprocess.run(["gcc", *FLAGS, SANITIZE, f"-I{run.ENGINE}", "-c", str(source), "-o", out], check=True)
    return out


pytestmark = pytest.mark.timeout(600)  # whoever comes first waits for the compiler


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder, and the engine's objects in it."""
    folder = tmp_path_factory.mktemp("core")
    with ThreadPoolExecutor(2) as pool:
        return folder, list(pool.map(partial(compile_to, folder), run.core_sources()))


def check(core: tuple[Path, list[str]], name: str, *arguments: str, wraps: tuple[str, ...] = ()) -> str:
    """Build and run a program of this folder; what it says."""
    folder, objects = core
    program = str(folder / name)
    own = compile_to(folder, run.HERE / f"{name}.c")
    wrapped = [f"-Wl,--wrap={function}" for function in wraps]
    command = ["gcc", SANITIZE, "-pthread", own, *objects, "-o", program, *wrapped, "-lssl", "-lcrypto"]
    subprocess.run(command, check=True)
    done = subprocess.run(
        [program, *arguments], env=os.environ | OPTIONS, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stderr


@pytest.mark.timeout(600)  # the first one compiles
def test_the_core_knows_nothing_of_python(core: tuple[Path, list[str]]) -> None:
    """Worker threads run nothing but this code, so they cannot call Python or take the GIL."""
    names = subprocess.run(["nm", "--undefined-only", *core[1]], capture_output=True, text=True, check=True)
    wanted = {line.split()[-1] for line in names.stdout.splitlines() if " U " in line}
    assert "pthread_create" in wanted, "these are the objects that make the threads"
    assert not {name for name in wanted if name.lstrip("_").startswith("Py")}


def test_no_object_calls_into_a_higher_layer(core: tuple[Path, list[str]]) -> None:
    uses = enginelayers.calls(core[1])
    assert len(uses) > 300, "the symbols were read"
    assert enginelayers.upward(uses) == []
    assert enginelayers.circle(uses) == []


def test_kept_exceptions_are_still_there(core: tuple[Path, list[str]]) -> None:
    pairs = {
        (use.user.removesuffix(".c"), use.used.removesuffix(".c")) for use in enginelayers.calls(core[1])
    }
    assert pairs >= set(enginelayers.KEPT_CALLS)


def test_engine_check_is_clean_and_leaves_nothing(core: tuple[Path, list[str]]) -> None:
    check(core, "engine_check")


@pytest.mark.timeout(3600)
def test_no_failed_allocation_costs_more_than_its_flow_or_tunnel(core: tuple[Path, list[str]]) -> None:
    """Each of the engine's own; of OpenSSL's every AMBIENT_MEMORY_STRIDE-th (1: each, ten minutes)."""
    said = check(core, "memory_check", os.environ.get("AMBIENT_MEMORY_STRIDE", "41"), wraps=ALLOCATORS)
    kinds = [line.partition(":")[0] for line in said.splitlines() if " lives" in line]
    assert sorted(kinds) == sorted(["owner, engine", "owner, OpenSSL", *["engine", "OpenSSL"] * 2]), said
