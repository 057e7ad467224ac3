"""A steady stream of new connections beside long ones: `python -m tests.bench.upgrade.load HOST PORT RATE SESSIONS`.

New connections begin at their time whatever becomes of those before: connect, one line there and back, close.
A session exchanges a line each second. Commands on stdin, one JSON line on stdout for each: `mark` waits until
every connection begun until now has ended and tells what happened since the last `mark`; `sessions` opens those
that have been lost again.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

PATIENCE = 30.0
LINE = b"hello\n"


@dataclass
class Load:
    """Counts since the last mark; `longest` in seconds, from the wish to connect to the answer."""

    host: str
    port: int
    done: int = 0
    longest: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    open: int = 0
    running: set[asyncio.Task[None]] = field(default_factory=set)
    sessions: set[asyncio.Task[None]] = field(default_factory=set)

    async def connection(self) -> None:
        """One new connection."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                try:
                    await exchange(reader, writer)
                finally:
                    writer.close()
        except (OSError, EOFError, TimeoutError) as error:
            self.failures[told(error)] += 1
        else:
            self.done += 1
            self.longest = max(self.longest, time.monotonic() - began)

    async def session(self, opened: asyncio.Event) -> None:
        """One long connection."""
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port)
            self.open += 1
            try:
                while True:
                    async with asyncio.timeout(PATIENCE):
                        await exchange(reader, writer)
                    opened.set()
                    await asyncio.sleep(1)
            finally:
                self.open -= 1
                writer.close()
        except (OSError, EOFError, TimeoutError) as error:
            self.lost[told(error)] += 1
            opened.set()

    async def begin(self, rate: float) -> None:
        """New connections for ever, `rate` a second."""
        due = time.monotonic()
        while True:
            start(self.connection(), self.running)
            due += 1 / rate
            await asyncio.sleep(due - time.monotonic())

    async def fill(self, wanted: int) -> None:
        """Open sessions until there are so many; each has answered once, or is lost."""
        opened = [asyncio.Event() for _ in range(wanted - self.open)]
        for each in opened:
            start(self.session(each), self.sessions)
        await asyncio.gather(*(each.wait() for each in opened))

    async def mark(self) -> dict[str, Any]:
        """What happened since the last one."""
        before = set(self.running)
        if before:
            await asyncio.wait(before)
        await asyncio.sleep(1.5)  # every session has said something
        told = {
            "done": self.done,
            "failed": sum(self.failures.values()),
            "failures": dict(self.failures),
            "longest": self.longest,
            "lost": sum(self.lost.values()),
            "losses": dict(self.lost),
            "open": self.open,
        }
        self.done, self.longest = 0, 0.0
        self.failures.clear()
        self.lost.clear()
        return told


def start(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
    """Run it beside everything else."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A line there and back; EOFError, OSError."""
    writer.write(LINE)
    if await reader.readline() != LINE:
        raise EOFError("closed without an answer")


def told(error: BaseException) -> str:
    """What went wrong, without what differs each time."""
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"


async def _main(host: str, port: int, rate: float, sessions: int) -> None:
    load = Load(host, port)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    start(load.begin(rate), load.sessions)
    while command := (await commands.readline()).decode().strip():
        answer: dict[str, Any] = {}
        if command == "sessions":
            await load.fill(sessions)
        else:
            answer = await load.mark()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
