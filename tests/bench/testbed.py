"""What a figure is measured on: a namespace, a server, one variant's fresh processes, and the load generator."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tests.bench.certificates import Files
from tests.bench.machine import busy_seconds
from tests.bench.namespace import CLIENT, SERVER, Namespace
from tests.bench.process import Process, ProcessError, network_of, process_cpu

SERVER_PORT, ENTRY_PORT, HBONE_PORT = 19000, 15001, 15008
SERVER_ADDRESS = f"{SERVER}:{SERVER_PORT}"
ENTRY_ADDRESS = f"{CLIENT}:{ENTRY_PORT}"
HBONE_ADDRESS = f"{SERVER}:{HBONE_PORT}"

T = TypeVar("T")


class MeasurementError(Exception):
    """A round gave no figure; the text is the reason that the result shows."""


@dataclass(frozen=True, slots=True)
class Testbed:
    """Fixed for a whole run of a group. `pin` is the CPU that all processes share in rows that ask for it."""

    __test__ = False  # not a test class, whatever its name begins with

    programs: Path
    logs: Path
    work: Path
    certificates: Files
    namespace: Namespace
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Cost:
    """What a load run took: CPU seconds of the proxies, share of the machine's CPU time that strangers took."""

    proxy_cpu_s: float
    foreign_cpu: float


class Watched(Protocol):
    """A process whose cost counts."""

    @property
    def pid(self) -> int: ...

    def cpu(self) -> float: ...
    def rss(self) -> float: ...


class LoadRun:
    """A running load generator, line by line. Context manager: at its end the connections are closed."""

    def __init__(self, command: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def line(self, deadline_s: float = 60) -> dict[str, Any]:
        """The next JSON object it prints; MeasurementError with its complaint."""
        assert self._process.stdout is not None
        watchdog = threading.Timer(deadline_s, self._process.kill)
        watchdog.start()
        try:
            text = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not text:
            _, complaint = self._process.communicate()
            status = self._process.returncode
            hung = f"nothing from the load within {deadline_s:.0f} s"
            raise MeasurementError(
                hung if status == -signal.SIGKILL else complaint.strip() or f"status {status}"
            )
        result: dict[str, Any] = json.loads(text)
        return result

    def open_gate(self) -> None:
        """Lets a `--gated` load begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def __enter__(self) -> LoadRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends it: by the end of its input, or by force after an error."""
        if kind is not None:
            self._process.kill()
        try:
            self._process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


class Rig(ABC):
    """Somewhere a load can be run: `entry` is where it connects to, `proxies` are what it makes work.

    `processes` are all that belong to the benchmark, so that the rest of the machine's load is known.
    """

    entry: str

    @property
    @abstractmethod
    def processes(self) -> Sequence[Watched]: ...

    @property
    @abstractmethod
    def proxies(self) -> Sequence[Watched]: ...

    @abstractmethod
    def load_command(self, *arguments: str) -> list[str]:
        """The load generator's command line, wrapped so that it runs where the client is."""

    def proxy_cpu(self) -> float:
        return sum(process.cpu() for process in self.proxies)

    def proxy_rss(self) -> float:
        """MB of all proxy processes together."""
        return sum(process.rss() for process in self.proxies)

    def start_load(self, *arguments: str) -> LoadRun:
        """The load generator beside everything else; `arguments` without the address: `("bulk", "up")`."""
        command, *options = arguments
        return LoadRun(self.load_command(command, self.entry, *options))

    def load(self, *arguments: str) -> dict[str, Any]:
        """Runs the load generator to its end and returns its JSON object."""
        with self.start_load(*arguments) as run:
            return run.line()

    def measured(self, *arguments: str, settle: bool = False) -> tuple[dict[str, Any], Cost]:
        """A load's result and what it cost: neither setting up nor closing its connections counts.

        `settle` adds what the proxies go on doing afterwards: ending connections is a part of their cost, filling
        the buffers of readers that have stopped is none of a transfer's.
        """
        with self.start_load(*arguments, "--gated") as run:
            run.line()
            return self.gated(run, settle=settle)

    def gated(self, run: LoadRun, *, settle: bool = False) -> tuple[dict[str, Any], Cost]:
        """`measured`, of a `--gated` load that is ready, or has given a figure and takes another."""

        def work() -> dict[str, Any]:
            run.open_gate()
            return run.line()

        return self.costing(work, lambda result: float(result["own_cpu_s"]), settle=settle)

    def costing(
        self, work: Callable[[], T], own_cpu: Callable[[T], float], *, settle: bool = False
    ) -> tuple[T, Cost]:
        """Runs `work` and says what it cost, with `settle` once the proxies have come to rest.

        `own_cpu` gives the load generator's CPU seconds from the result of `work`.
        """
        pids = [process.pid for process in self.proxies]
        proxies, known, busy = self.proxy_cpu(), self._all_cpu(), busy_seconds()
        start = time.monotonic()
        result = work()
        cost = self.proxy_cpu() - proxies
        elapsed = time.monotonic() - start
        busy, after = busy_seconds() - busy, self._all_cpu()
        spent = sum(after[pid] - known.get(pid, 0) for pid in after) + own_cpu(result)
        if settle:
            cost = self.settled_cpu() - proxies
        if pids != [process.pid for process in self.proxies]:
            raise MeasurementError("a proxy was restarted meanwhile")
        foreign = max(0.0, busy - spent) / (elapsed * (os.cpu_count() or 1))
        return result, Cost(cost, min(1.0, foreign))

    def _all_cpu(self) -> dict[int, float]:
        """CPU seconds by process of all that belongs to the benchmark; what has just ended is left out."""
        found = {}
        for pid in [*(process.pid for process in self.processes), os.getpid()]:
            with suppress(OSError):
                found[pid] = process_cpu(pid)
        return found

    def settled_cpu(self, deadline_s: float = 2.0) -> float:
        """CPU seconds of the proxies once they do nothing any more."""
        return settled(self.proxy_cpu, within=0.001, deadline_s=deadline_s)

    def settled_rss(self, deadline_s: float = 10.0) -> float:
        """Resident MB once it stays the same."""
        return settled(self.proxy_rss, within=0.05, deadline_s=deadline_s, pause_s=0.3)


class Session(Rig):
    """Fresh processes for one figure (or one set of figures that need the same life of a process)."""

    def __init__(self, bed: Testbed, pin: int | None) -> None:
        self.bed, self.pin = bed, pin
        self._processes: list[Process] = []
        self.entry = ENTRY_ADDRESS

    @property
    def processes(self) -> Sequence[Process]:
        return self._processes

    @property
    def proxies(self) -> Sequence[Process]:
        return [process for process in self._processes if process.proxy]

    def load_command(self, *arguments: str) -> list[str]:
        return self.bed.namespace.command([str(self.bed.programs / "load"), *arguments], self.pin)

    def spawn(
        self, name: str, command: Sequence[str], port: int, *, proxy: bool = True, apart: bool = False
    ) -> Process:
        """Starts a program in the namespace and waits until it listens on `port`.

        `apart`: the program goes on into a namespace that it makes, and listens there.
        """
        process = Process(
            name,
            self.bed.namespace.command(command, self.pin),
            self.bed.logs / f"{name}.log",
            proxy=proxy,
            environment={**os.environ, **self.bed.environment},
        )
        self._processes.append(process)
        passed = {network_of("/proc/self/ns/net")}
        if apart:
            passed.add(network_of(f"/run/netns/{self.bed.namespace.name}"))
        process.wait_listening(port, passed=passed)
        return process

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.stop()


def settled(read: Callable[[], float], *, within: float, deadline_s: float, pause_s: float = 0.1) -> float:
    """The value that `read` gives when it has changed by less than `within` during one pause, or at the deadline."""
    end = time.monotonic() + deadline_s
    value = read()
    while time.monotonic() < end:
        time.sleep(pause_s)
        before, value = value, read()
        if abs(value - before) < within:
            break
    return value


@contextmanager
def session(bed: Testbed, pin: int | None) -> Iterator[Session]:
    """A session with the server running; whatever was started is stopped. ProcessError becomes MeasurementError."""
    current = Session(bed, pin)
    with ExitStack() as stack:
        stack.callback(current.stop)
        try:
            current.spawn(
                "server", [str(bed.programs / "load"), "serve", SERVER_ADDRESS], SERVER_PORT, proxy=False
            )
            yield current
        except ProcessError as error:
            raise MeasurementError(str(error)) from error
