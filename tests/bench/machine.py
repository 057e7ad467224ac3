"""Facts about the machine that a figure means nothing without, and how busy it is with other things."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_info() -> tuple[str, list[str]]:
    model, flags = platform.machine(), []
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() == "flags":
            flags = sorted({"aes", "vaes", "avx2", "avx512f", "vpclmulqdq"} & set(value.split()))
    return model, flags


def facts(root: Path, versions: dict[str, str]) -> dict[str, Any]:
    """The `machine` object of a result; `versions` adds those of the variants."""
    model, flags = _cpu_info()
    memory_kb = next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines())
    known = dict(versions)
    if commit := _output("git", "-C", str(root), "rev-parse", "--short", "HEAD"):
        changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
        known["ambientlite"] = commit + (" with changes" if changed else "")
    if shutil.which("gcc") and (gcc := _output("gcc", "-dumpfullversion")):
        known["gcc"] = gcc
    return {
        "cpu": model,
        "cpu_flags": flags,
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory_kb) / 2**20, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": known,
    }


def busy_seconds() -> float:
    """CPU seconds that all processors together have spent on anything but idling, time stolen by the host included."""
    fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
