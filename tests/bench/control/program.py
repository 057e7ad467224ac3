"""The programs of this folder as processes that are asked by lines."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.bench.native import BuildError

Json = dict[str, Any]
Command = Callable[[Sequence[str]], list[str]]


class Program:
    """A process that answers lines with JSON lines; `command` makes an argv run where it has to."""

    def __init__(self, command: Command, name: str, *arguments: str) -> None:
        self._name = name
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process)
        self._process = subprocess.Popen(
            command([sys.executable, "-m", f"tests.bench.control.{name}", *arguments]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        self.first = self.answer()

    def answer(self) -> Json:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._said.seek(0)
            last = self._said.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise BuildError(f"{self._name} ended with status {status}: {last}")
        found: Json = json.loads(line)
        return found

    def ask(self, line: str) -> Json:
        self.send(line)
        return self.answer()

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def program(command: Command, name: str, *arguments: str) -> Iterator[Program]:
    one = Program(command, name, *arguments)
    try:
        yield one
    finally:
        one.end()
