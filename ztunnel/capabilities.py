"""Whether this process may do what the agent does. Asked once at start, so that the answer is one clear line."""

from __future__ import annotations

import functools
import socket
from pathlib import Path

__all__ = ["cgroup2_mount", "kernel_tls", "missing_capabilities"]

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


_TCP_ULP = 31  # linux/tcp.h


@functools.cache
def kernel_tls() -> bool:
    """Whether this kernel offers TLS for sockets (upper layer protocol `tls`). The engine seals records itself and
    does not use it (docs/engine.md says why); this only tells what there is. Only a connected socket can be asked."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as sock,
    ):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
        except OSError:
            return False
    return True
