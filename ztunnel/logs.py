"""The agent's log: one line an event, written by a thread so that no slow reader stops the data plane.

Lines look like Istio's: `TIME<tab>LEVEL<tab>SCOPE<tab>MESSAGE<tab>key=value ...`, or one JSON object each.
Scopes are the loggers below `ztunnel` (`ztunnel.xds` is scope `xds`); levels can change at run time.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "LEVELS",
    "LineWriter",
    "fields",
    "install",
    "levels",
    "render",
    "reset_levels",
    "set_levels",
    "timestamp",
]

LEVELS = {
    "trace": 5,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 10,
}
_NAMES = {number: name for name, number in LEVELS.items()}
_ROOT = "ztunnel"

# Writes join at most this many lines, so that a stalled reader holds a bounded piece of the queue.
_BATCH = 64
_GATHER = 0.02


class LineWriter:
    """A thread that writes lines to a file descriptor from a bounded queue.

    put() never blocks: when the queue is full, or the write fails, the line is dropped and counted.
    """

    def __init__(self, fd: int, limit: int = 10_000) -> None:
        self.dropped = 0
        self._fd = fd
        self._limit = limit
        self._lines: deque[str] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Queue one line (without its newline)."""
        if len(self._lines) >= self._limit:
            self.dropped += 1
            return
        self._lines.append(line)

    def flush(self) -> None:
        """Wake the thread; callers that put many lines call it once."""
        if not self._wake.is_set():
            self._wake.set()

    def close(self, timeout: float = 1.0) -> None:
        """Write what is queued and stop; waits at most `timeout` seconds for a reader that is stuck."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if not self._closing:
                # Waking for each line would cost the event loop more than writing it: the two threads
                # share one interpreter lock.
                time.sleep(_GATHER)
            self._wake.clear()
            while self._lines:
                self._write([self._lines.popleft() for _ in range(min(_BATCH, len(self._lines)))])
            if self._closing:
                return

    def _write(self, lines: list[str]) -> None:
        data = memoryview(("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:  # a full disk or a closed pipe: the data plane goes on, the loss is counted
            self.dropped += len(lines)


_stamp_second = -1
_stamp_text = ""


def timestamp(now: float) -> str:
    """RFC 3339 in UTC with microseconds; `now` in seconds since the epoch."""
    global _stamp_second, _stamp_text  # noqa: PLW0603 - one date rendering a second, not one a line
    second = int(now)
    if second != _stamp_second:
        _stamp_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _stamp_second = second
    return f"{_stamp_text}.{int((now - second) * 1_000_000):06d}Z"


def _quoted(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    return json.dumps(str(value), ensure_ascii=False)


def render(
    as_json: bool, now: float, level: str, scope: str, message: str, values: Iterable[tuple[str, Any]]
) -> str:
    """One line in the chosen format. Control characters are escaped: no value can forge a second line."""
    if as_json:
        record = {"level": level, "time": timestamp(now), "scope": scope, "message": message, **dict(values)}
        return json.dumps(record, ensure_ascii=False)
    shown = " ".join(f"{name}={_quoted(value)}" for name, value in values)
    text = message if message.isprintable() else json.dumps(message, ensure_ascii=False)
    line = f"{timestamp(now)}\t{level}\t{scope}\t{text}"
    return f"{line}\t{shown}" if shown else line


def fields(**values: Any) -> Mapping[str, Any]:
    """`extra=` of a log call: key-value fields of the line; None is left out."""
    return {"fields": [(name, value) for name, value in values.items() if value is not None]}


class _Handler(logging.Handler):
    def __init__(self, writer: LineWriter, as_json: bool) -> None:
        super().__init__()
        self._writer, self._json = writer, as_json

    def emit(self, record: logging.LogRecord) -> None:
        values = list(getattr(record, "fields", ()))
        if record.exc_info:
            values.append(("error", logging.Formatter().formatException(record.exc_info)))
        scope = record.name.removeprefix(f"{_ROOT}.")
        level = _NAMES.get(record.levelno, record.levelname.lower())
        self._writer.put(render(self._json, record.created, level, scope, record.getMessage(), values))
        self._writer.flush()


def install(writer: LineWriter, *, as_json: bool, spec: str) -> None:
    """Send every logger's records to the writer and set the levels; raises ValueError on a bad spec."""
    handler = _Handler(writer, as_json)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_ROOT).setLevel(logging.INFO)
    set_levels(spec)


def set_levels(spec: str) -> None:
    """Apply `level,scope=level,...`; all or nothing, raises ValueError naming what is wrong."""
    wanted: list[tuple[str, int]] = []
    for part in filter(None, (part.strip() for part in spec.split(","))):
        scope, separator, level = part.partition("=") if "=" in part else ("", "", part)
        if level.lower() not in LEVELS:
            raise ValueError(f"{level!r} is no log level: use {', '.join(LEVELS)}")
        if separator and not scope.replace("_", "").replace("::", "").replace(".", "").isalnum():
            raise ValueError(f"{scope!r} is no log scope")
        wanted.append((scope, LEVELS[level.lower()]))
    for scope, number in wanted:
        logging.getLogger(f"{_ROOT}.{scope}" if scope else _ROOT).setLevel(number)


def reset_levels(spec: str) -> None:
    """Forget every level set at run time, then apply `spec`."""
    for name in list(logging.Logger.manager.loggerDict):
        if name.startswith(f"{_ROOT}."):
            logging.getLogger(name).setLevel(logging.NOTSET)
    logging.getLogger(_ROOT).setLevel(logging.INFO)
    set_levels(spec)


def levels() -> str:
    """The levels in force, as a spec: the default first, then the scopes that differ."""
    rows = [_NAMES.get(logging.getLogger(_ROOT).level, "info")]
    for name in sorted(logging.Logger.manager.loggerDict):
        level = logging.getLogger(name).level if name.startswith(f"{_ROOT}.") else logging.NOTSET
        if level != logging.NOTSET:
            rows.append(f"{name.removeprefix(_ROOT + '.')}={_NAMES.get(level, level)}")
    return ",".join(rows)
