"""Mutual TLS handshakes through memory: the engine's, and the least that its OpenSSL can do; with two OpenSSLs."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import astuple
from pathlib import Path
from typing import Any

from tests.bench import results
from tests.bench.certificates import Files, issue
from tests.bench.machine import facts
from tests.bench.native import BuildError
from tests.bench.openssl import directory
from tests.bench.results import Row, Sample, Samples
from tests.bench.rounds import Plan, describe, say

HERE = Path(__file__).parent
ENGINE = HERE.parents[2] / "hbone" / "engine"
PARTS = (
    "handshake",
    "identity",
    "credentials",
    "session",
    "peer_certificate",
    "revocation",
    "record",
    "aead",
    "ipsec_mb",
)
FLAGS = ("-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-pthread")
KINDS = ("full", "resumed")
WHEEL = "wheel"


def build(folder: Path) -> Path:
    """The program, of the engine's sources as they are; BuildError with the compiler's words."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BuildError("no C compiler: install gcc")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "handshake"
    sources = [HERE / "memory.c", *(ENGINE / f"{part}.c" for part in (*PARTS, "address"))]
    libraries = ["-lssl", "-lcrypto", "-ldl"]
    command = [compiler, *FLAGS, f"-I{ENGINE}", *map(str, sources), "-o", str(target), *libraries]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"handshake: {done.stderr.strip()}")
    return target


def newer_library(options: argparse.Namespace) -> tuple[dict[str, str], str | None]:
    """(environment that loads the OpenSSL of the wheel, or why there is none)"""
    try:
        return {"LD_LIBRARY_PATH": str(directory(WHEEL, options.out / "openssl"))}, None
    except BuildError as error:
        return {}, str(error)


def measure(
    program: Path, who: str, kind: str, files: Files, plan: Plan, environment: dict[str, str]
) -> tuple[Sample, str]:
    """(CPU time of one run in microseconds a handshake, the OpenSSL that it had)"""
    roots, *pairs = map(str, astuple(files))
    command = [str(program), who, kind, *pairs, roots, str(plan.seconds)]
    if plan.pin is not None:
        command = ["taskset", "-c", str(plan.pin), *command]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise BuildError(done.stderr.strip())
    got = json.loads(done.stdout)
    return Sample(got["cpu_us"]), got["openssl"]


def run_handshake(root: Path, options: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """TLS handshakes of the engine through memory, and of its library alone; with the wheel's OpenSSL as well."""
    program = build(options.out / "bin")
    environment, missing = newer_library(options)
    variants: dict[str, tuple[str, dict[str, str]]] = {"ours": ("ours", {}), "library": ("library", {})}
    absent: dict[str, str] = {}
    for who in ("ours", "library"):
        if missing:
            absent[f"{who}-{WHEEL}"] = missing
        else:
            variants[f"{who}-{WHEEL}"] = (who, environment)
    rows = [(Row(f"handshake-{kind}", "us", "lower"), Samples()) for kind in KINDS]
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="albench-") as work:
        files = issue(Path(work))
        for number in range(plan.rounds):
            for kind, (row, samples) in zip(KINDS, rows, strict=True):
                for name, (who, libraries) in variants.items():
                    sample, versions[name] = measure(program, who, kind, files, plan, libraries)
                    samples.add(name, sample)
                    say(f"round {number + 1}: {row.case}, {name}: {describe(row, sample)}")
    machine = facts(root, versions) | {"openssl": versions["ours"]}
    method = {
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "figures": "CPU time of one handshake, both sides together, on one thread",
        "certificates": "ECDSA P-256, a leaf and its root; both sides verify",
        "library": "OpenSSL alone: chains verified, no names, no revocation, no keys taken over",
    }
    return results.document("handshake", machine, method, rows, list(variants), absent)
