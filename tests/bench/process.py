"""Processes that are measured: started in a namespace, watched through /proc, ended by their id."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LISTEN = "0A"


class ProcessError(Exception):
    """A process did not come up or ended too early; the text has the end of its log."""


def listening_ports(pid: int) -> set[int]:
    """TCP ports in state LISTEN in the network namespace of `pid`. Looks in the table: a probe would cost a decision."""
    ports = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN:
                ports.add(int(fields[1].rsplit(":", 1)[1], 16))
    return ports


def network_of(path: str) -> int:
    """What tells a network namespace from others, of a path to it such as /proc/PID/ns/net."""
    return Path(path).stat().st_ino


def process_cpu(pid: int) -> float:
    """CPU seconds of all threads of `pid`, past and present: the sum that /proc/PID/stat gives, in nanoseconds."""
    return time.clock_gettime(((~pid) << 3) | 2)  # make_process_cpuclock(pid, CPUCLOCK_SCHED)


def process_rss(pid: int) -> float:
    """Resident memory in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


class Process:
    """One running program. `proxy` tells whether its CPU time and memory count as the variant's."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        proxy: bool,
        environment: Mapping[str, str],
        keep: Sequence[int] = (),
    ) -> None:
        """`keep`: descriptors that the program inherits."""
        self.name, self.proxy, self.log = name, proxy, log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                pass_fds=keep,
            )
        self.pid = self._popen.pid

    def cpu(self) -> float:
        self.check()
        return process_cpu(self.pid)

    def rss(self) -> float:
        self.check()
        return process_rss(self.pid)

    def check(self) -> None:
        """ProcessError if the program has ended."""
        if (status := self._popen.poll()) is not None:
            tail = self.log.read_text(errors="replace").strip().splitlines()[-3:]
            raise ProcessError(f"{self.name} ended with status {status}: {' / '.join(tail)}")

    def wait_listening(self, port: int, deadline_s: float = 20, passed: Collection[int] = ()) -> None:
        """Until `port` is listened on in the program's namespace.

        `passed`: namespaces that it begins in and leaves for its own; others may listen there on the same port.
        """
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            self.check()
            with suppress(OSError):  # it may end while its table is read
                there = network_of(f"/proc/{self.pid}/ns/net") not in passed
                if there and port in listening_ports(self.pid):
                    return
            time.sleep(0.02)
        raise ProcessError(f"{self.name} does not listen on {port} after {deadline_s:.0f} s; see {self.log}")

    def wait_saying(self, line: str, deadline_s: float = 20) -> None:
        """Until the program has written this line."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            self.check()
            if line in self.log.read_text(errors="replace").splitlines():
                return
            time.sleep(0.02)
        raise ProcessError(f"{self.name} does not say {line!r} after {deadline_s:.0f} s; see {self.log}")

    def stop(self) -> None:
        """Ends the program: politely, then not."""
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(3)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        self._popen.wait()
