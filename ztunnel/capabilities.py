"""Whether this process may do what the agent does. Asked once at start, so that the answer is one clear line."""

from __future__ import annotations

from pathlib import Path

__all__ = ["cgroup2_mount", "missing_capabilities"]

# Numbers from linux/capability.h.
_NEEDED = {"NET_ADMIN": 12, "NET_RAW": 13, "SYS_ADMIN": 21}


def missing_capabilities(status: str) -> list[str]:
    """Names of the capabilities that the effective set in /proc/self/status lacks."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            held = int(value.strip(), 16)
            return [f"CAP_{name}" for name, bit in _NEEDED.items() if not held >> bit & 1]
    return [f"CAP_{name}" for name in _NEEDED]


def cgroup2_mount(mounts: str) -> Path | None:
    """Where the cgroup2 hierarchy is mounted, from /proc/mounts; None when it is not."""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) > 2 and fields[2] == "cgroup2":
            return Path(fields[1].replace("\\040", " "))
    return None
