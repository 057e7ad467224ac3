"""The access log: one line for each finished connection, in Istio's field order (scope `access`), and at level debug
one for each that begins.

A line costs a few microseconds of every connection, so what repeats is rendered once: all fields of one end
are a piece of text kept by the end's values.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from hbone.reasons import Reason
from ztunnel.logs import LineWriter, timestamp

__all__ = ["AccessLog", "AccessRecord", "End"]

_log = logging.getLogger("ztunnel.access")
_CACHE = 20_000
_PLAIN_COUNTS = ' bytes_sent=%d bytes_recv=%d duration="%dms"'
_JSON_COUNTS = ', "bytes_sent": %d, "bytes_recv": %d, "duration": "%dms"'


class End(NamedTuple):
    """One end of connections; "" is left out. An identity belongs here only when mutual TLS proved it.

    `service` is the destination's.
    """

    workload: str = ""
    namespace: str = ""
    identity: str = ""
    cluster: str = ""
    service: str = ""


class AccessRecord(NamedTuple):
    """What is known of one connection at its end. Addresses are `ip:port`; "" is left out.

    Bytes count as the local workload sees them: sent is what it sent. `duration` in seconds. `path` is "" for
    a relayed connection.
    """

    direction: str
    source_address: str
    destination_address: str
    source: End = End()
    hbone_address: str = ""
    destination: End = End()
    bytes_sent: int = 0
    bytes_received: int = 0
    duration: float = 0.0
    reason: Reason = Reason.OK
    detail: str = ""
    policy: str = ""
    path: str = ""


def _quote(text: str) -> str:
    # JSON's escapes: no value can forge a second line or another field.
    return json.dumps(text, ensure_ascii=False)


def _literal(text: str) -> str:
    """Text that stands for itself in a template."""
    return text.replace("%", "%%")


class AccessLog:
    """Writes records; flush() once for each batch of events."""

    def __init__(
        self, writer: LineWriter, *, as_json: bool, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._writer, self._json, self._now = writer, as_json, wall_clock
        self._between = ", " if as_json else " "
        self._texts: dict[tuple[str, End], str] = {}

    @property
    def verbose(self) -> bool:
        """Whether `opened` writes anything: level debug."""
        return _log.isEnabledFor(logging.DEBUG)

    def opened(self, record: AccessRecord) -> None:
        """Log one connection that was let through."""
        if self.verbose:
            self._put("debug", self._ends(record) % record.source_address, "connection opened")

    def complete(self, record: AccessRecord) -> None:
        """Log one finished connection: info, or error when it ended for another reason than ok."""
        failed = record.reason is not Reason.OK
        if not _log.isEnabledFor(logging.ERROR if failed else logging.INFO):
            return
        ms = int(record.duration * 1000)
        fields = self.template(record) % (record.source_address, record.bytes_sent, record.bytes_received, ms)
        if failed:
            fields += self._between + self._joined(_failure(record))
        self._put("error" if failed else "info", fields)

    def template(self, record: AccessRecord) -> str:
        """What lines of connections like this one have in common, for `finished`."""
        counts = _JSON_COUNTS if self._json else _PLAIN_COUNTS
        return f"{self._ends(record)}{counts}{self._path(record)}"

    def finished(self, template: str, source_address: str, sent: int, received: int, duration: float) -> None:
        """Log one connection that ended well. Like `complete`, with what repeats rendered already."""
        if _log.isEnabledFor(logging.INFO):
            self._put("info", template % (source_address, sent, received, int(duration * 1000)))

    def flush(self) -> None:
        """Let the writer thread work on what was logged."""
        self._writer.flush()

    def _put(self, level: str, fields: str, message: str = "connection complete") -> None:
        now = timestamp(self._now())
        if self._json:
            head = f'{{"level": "{level}", "time": "{now}", "scope": "access", "message": "{message}", '
            self._writer.put(f"{head}{fields}}}")
        else:
            self._writer.put(f"{now}\t{level}\taccess\t{message}\t{fields}")

    def _ends(self, record: AccessRecord) -> str:
        """Who speaks with whom; the source's address is left open."""
        source, destination = self._end("src", record.source), self._end("dst", record.destination)
        address, hbone = record.destination_address, record.hbone_address
        if self._json:
            hbone = f', "dst.hbone_addr": "{hbone}"' if hbone else ""
            rest = f'{source}, "dst.addr": "{address}"{hbone}{destination}, "direction": "{record.direction}"'
            return f'"src.addr": "%s"{_literal(rest)}'
        hbone = f" dst.hbone_addr={hbone}" if hbone else ""
        rest = f'{source} dst.addr={address}{hbone}{destination} direction="{record.direction}"'
        return f"src.addr=%s{_literal(rest)}"

    def _path(self, record: AccessRecord) -> str:
        return (
            _literal(self._between + self._joined([("connection_path", record.path)])) if record.path else ""
        )

    def _end(self, prefix: str, end: End) -> str:
        text = self._texts.get((prefix, end))
        if text is None:
            rows = (
                (f"{prefix}.service", end.service),
                (f"{prefix}.workload", end.workload),
                (f"{prefix}.namespace", end.namespace),
                (f"{prefix}.identity", end.identity),
                (f"{prefix}.cluster", end.cluster),
            )
            joined = self._joined((name, value) for name, value in rows if value)
            text = self._between + joined if joined else ""
            if len(self._texts) >= _CACHE:
                self._texts.clear()
            self._texts[prefix, end] = text
        return text

    def _joined(self, rows: Iterable[tuple[str, str]]) -> str:
        if self._json:
            return ", ".join(f'"{name}": {_quote(value)}' for name, value in rows)
        return " ".join(f"{name}={_quote(value)}" for name, value in rows)


def _failure(record: AccessRecord) -> list[tuple[str, str]]:
    """`error` is the sentence, `reason` the slug, `policy` who refused."""
    text = f"{record.reason.text}: {record.detail}" if record.detail else record.reason.text
    rows = [("error", text), ("reason", record.reason.value)]
    return [*rows, ("policy", record.policy)] if record.policy else rows
