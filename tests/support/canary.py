"""A well-behaved user beside every attack: echoes without pause, and says what it noticed.

Its own process, so that the attacker's Python does not slow it. It keeps one long connection through
the engine under test and sends small messages on it, opens a fresh connection again and again, and does the
same through a plain relay of two hops in a process of its own: a machine that stutters shows in those figures
too, and is not blamed on the engine.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

MESSAGE = 64
STEADY_EVERY = 0.005
FRESH_EVERY = 0.2
PATIENCE = 30.0
ECHO_LIMIT = 50e-3
FEWEST = 5
LONGEST = 1.0


@dataclass(slots=True)
class Report:
    """Latencies in seconds of one watch, and what failed."""

    steady: list[float] = field(default_factory=list)
    fresh: list[float] = field(default_factory=list)
    direct: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def p99(self) -> float:
        """99th percentile of echoes on the long connection; of a short watch the largest but one."""
        return _without_outliers(self.steady)

    @property
    def allowance(self) -> float:
        """What the machine itself took away: the same through a plain relay, four times what that was at its worst,
        since the engine's way is longer and a busy machine stutters here once and there once."""
        return 4 * max(self.direct, default=0.0)

    def check(self, limit: float = ECHO_LIMIT) -> None:
        """Everything answered, and in time."""
        assert not self.failures, f"canary failed: {self.failures[:3]}"
        assert self.steady, "the canary never got an answer"
        assert max(self.steady) < LONGEST + self.allowance, f"one echo took {max(self.steady):.1f} s"
        assert self.p99 < limit + self.allowance, (
            f"canary p99 {self.p99 * 1e3:.1f} ms, allowed {limit * 1e3:.0f} + {self.allowance * 1e3:.1f} ms "
            f"({len(self.steady)} echoes)"
        )


def _without_outliers(values: list[float]) -> float:
    """The largest of the rest when 1 %, and at least one, is left out."""
    ordered = sorted(values)
    return ordered[max(0, len(ordered) - 1 - max(1, len(ordered) // 100))] if ordered else 0.0


def percentile(values: list[float], share: float) -> float:
    """Nearest-rank percentile; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Canary:
    """The parent's handle. `address` is the echo server's; any test may use that too."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.canary"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        host, port = self._answer()
        self.address = (str(host), int(port))

    def _tell(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the canary process ended")
        return json.loads(line)

    def begin(self, through: tuple[str, int]) -> None:
        """Start echoing through this address; returns when the first echo has come back."""
        answer = self._tell(begin=list(through))
        assert answer == "singing", f"the canary found no way through: {answer}"

    def end(self) -> Report:
        """Stop and report."""
        return Report(**self._tell(end=True))

    @contextlib.contextmanager
    def watch(self, through: tuple[str, int], *, limit: float = ECHO_LIMIT) -> Iterator[None]:
        """Echo during the body; the body's work must not have been noticed."""
        self.begin(through)
        try:
            yield
        finally:
            report = self.end()
        report.check(limit)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# -- the child


async def _echo(stream: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async with stream:
            async for chunk in stream:
                await stream.send_all(chunk)
            await stream.send_eof()


async def _round_trip(stream: trio.SocketStream, payload: bytes) -> float:
    start = time.perf_counter()
    with trio.fail_after(PATIENCE):
        await stream.send_all(payload)
        got = b""
        while len(got) < len(payload):
            chunk = await stream.receive_some(len(payload) - len(got))
            if not chunk:
                raise ConnectionError(f"end of stream after {len(got)} octets")
            got += chunk
    if got != payload:
        raise ValueError("other octets came back")
    return time.perf_counter() - start


async def _connect(address: tuple[str, int]) -> trio.SocketStream:
    with trio.fail_after(PATIENCE):
        stream = await trio.open_tcp_stream(*address, happy_eyeballs_delay=PATIENCE)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


async def _steady(
    address: tuple[str, int], out: list[float], failures: list[str], started: trio.Event
) -> None:
    number = 0
    try:
        async with await _connect(address) as stream:
            while True:
                number += 1
                took = await _round_trip(stream, number.to_bytes(8, "big") * (MESSAGE // 8))
                if started.is_set():
                    out.append(took)
                started.set()
                await trio.sleep(STEADY_EVERY)
    except (OSError, trio.BrokenResourceError, trio.TooSlowError, ValueError) as problem:
        failures.append(f"long connection to {address} after {number} echoes: {problem!r}")
        started.set()


async def _fresh(address: tuple[str, int], out: list[float], failures: list[str]) -> None:
    while True:
        await trio.sleep(FRESH_EVERY)
        start = time.perf_counter()
        try:
            async with await _connect(address) as stream:
                await _round_trip(stream, b"fresh" * 4)
            out.append(time.perf_counter() - start)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, ValueError) as problem:
            failures.append(f"new connection to {address}: {problem!r}")


async def _sing(
    nursery: trio.Nursery, through: tuple[str, int], direct: tuple[str, int]
) -> tuple[Any, Report]:
    scope, report = trio.CancelScope(), Report()
    engine_ready, direct_ready = trio.Event(), trio.Event()
    none: list[str] = []

    async def all_of_it() -> None:
        with scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(_steady, through, report.steady, report.failures, engine_ready)
                inner.start_soon(_steady, direct, report.direct, none, direct_ready)
                inner.start_soon(_fresh, through, report.fresh, report.failures)

    nursery.start_soon(all_of_it)
    await engine_ready.wait()
    await direct_ready.wait()
    return scope, report


async def _start_relay(nursery: trio.Nursery, home: tuple[str, int]) -> tuple[str, int]:
    """A process with two plain hops to the echo server; it ends with our pipe."""
    command = [sys.executable, "-m", "tests.support.relay", home[0], str(home[1])]
    process = await nursery.start(
        partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    )
    host, _, port = (await process.stdout.receive_some()).decode().strip().rpartition(":")
    return (host, int(port))


async def _child() -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        home = listeners[0].socket.getsockname()
        nursery.start_soon(trio.serve_listeners, _echo, listeners)
        sys.stdout.write(json.dumps(home) + "\n")
        sys.stdout.flush()
        scope, report = trio.CancelScope(), Report()
        relay = await _start_relay(nursery, home)
        async for line in trio.wrap_file(sys.stdin):
            order = json.loads(line)
            answer: Any = "unknown order"
            if "begin" in order:
                scope, report = await _sing(nursery, tuple(order["begin"]), relay)
                answer = report.failures or "singing"
            elif "end" in order:
                with trio.move_on_after(PATIENCE):
                    while len(report.steady) < FEWEST and not report.failures:
                        await trio.sleep(STEADY_EVERY)
                scope.cancel()
                answer = {name: getattr(report, name) for name in Report.__slots__}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_child)
