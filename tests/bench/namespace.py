"""A network namespace for one benchmark run: loopback only, reno, no firewall and no connection tracking.

The root namespace of many machines has rules and a congestion control (bbr paces) that cost more than what is
measured here; a new namespace has neither.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

PREFIX = "albench-"
CLIENT, SERVER, VIRTUAL_IP = "10.77.0.1", "10.77.0.2", "10.96.0.10"  # all on the loopback interface

SETTINGS = {
    "net/ipv4/tcp_congestion_control": "reno",
    "net/ipv4/ip_local_port_range": "2000 64000",
    "net/ipv4/ip_local_reserved_ports": "15000-15021,19000",
    "net/ipv4/tcp_tw_reuse": "1",  # thousands of connections a second would use up the ports
    "net/core/somaxconn": "4096",
}


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def remove_stale() -> list[str]:
    """Removes namespaces of runs whose process is gone; returns their names."""
    directory = Path("/run/netns")
    removed = []
    for path in directory.glob(PREFIX + "*") if directory.exists() else ():
        owner = path.name.removeprefix(PREFIX).split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            subprocess.run(["ip", "netns", "del", path.name], capture_output=True)
            removed.append(path.name)
    return removed


class Namespace:
    """Context manager; `command` makes any argv run inside."""

    def __init__(self, label: str = "run") -> None:
        self.name = f"{PREFIX}{os.getpid()}-{label}"

    def __enter__(self) -> Namespace:
        _ip("netns", "add", self.name)
        try:
            _ip("-n", self.name, "link", "set", "lo", "up")
            for address in (CLIENT, SERVER, VIRTUAL_IP):
                _ip("-n", self.name, "address", "add", f"{address}/32", "dev", "lo")
            script = "".join(f"echo '{value}' > /proc/sys/{key};" for key, value in SETTINGS.items())
            subprocess.run(self.command(["sh", "-ec", script]), check=True, capture_output=True)
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)

    def command(self, argv: Sequence[str], cpu: int | None = None) -> list[str]:
        """`argv` in this namespace (and on one CPU); both wrappers exec, so the process id is that of the program."""
        pinned = [] if cpu is None else ["taskset", "-c", str(cpu)]
        return ["nsenter", f"--net=/run/netns/{self.name}", *pinned, *argv]
