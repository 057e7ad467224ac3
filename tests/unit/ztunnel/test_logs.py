"""The log: shape of lines, levels at run time, and a writer that never blocks its callers."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator

import pytest

from ztunnel import logs

NOON = 1_767_268_800.000123


def test_a_plain_line_is_shaped_like_istios() -> None:
    line = logs.render(False, NOON, "info", "xds", "connected", [("server", "istiod:15012"), ("n", 3)])
    assert line == '2026-01-01T12:00:00.000123Z\tinfo\txds\tconnected\tserver="istiod:15012" n=3'


def test_a_json_line_has_level_time_scope_message_and_then_the_fields() -> None:
    line = logs.render(True, NOON, "warn", "inpod", "pod not enrolled", [("uid", "1-2")])
    assert list(json.loads(line).items()) == [
        ("level", "warn"),
        ("time", "2026-01-01T12:00:00.000123Z"),
        ("scope", "inpod"),
        ("message", "pod not enrolled"),
        ("uid", "1-2"),
    ]


@pytest.mark.parametrize("as_json", [False, True])
def test_no_value_can_forge_a_second_line_or_field(as_json: bool) -> None:
    evil = 'x\n2026-01-01T12:00:00Z\tinfo\taccess\t" a=b\r\x1b[31m'
    line = logs.render(as_json, NOON, "info", "access", evil, [("dst.service", evil)])
    assert line.isprintable() or set(line) - set("\t") == set(filter(str.isprintable, line))
    assert "\n" not in line


def test_lines_are_written_in_order() -> None:
    read, write = os.pipe()
    writer = logs.LineWriter(write)
    for number in range(1000):
        writer.put(f"line {number}")
    writer.close(5)
    os.close(write)
    with os.fdopen(read) as file:
        assert file.read().splitlines() == [f"line {number}" for number in range(1000)]
    assert writer.dropped == 0


def test_a_reader_that_is_stuck_costs_lines_not_time() -> None:
    read, write = os.pipe()
    writer = logs.LineWriter(write, limit=100)
    for _ in range(5000):
        writer.put("x" * 1000)
        writer.flush()
    # The pipe holds 64 KiB, the thread one batch, the queue a hundred lines: the rest is gone, and counted.
    assert 4000 < writer.dropped < 5000
    kept = 5000 - writer.dropped
    os.set_blocking(read, False)
    got = b""
    writer._closing = True
    writer.flush()
    while writer._thread.is_alive():
        try:
            got += os.read(read, 1 << 20)
        except BlockingIOError:
            continue
    with contextlib.suppress(BlockingIOError):
        got += os.read(read, 1 << 20)
    assert got.count(b"\n") == kept
    os.close(read)
    os.close(write)


def test_a_full_disk_is_counted_and_survived() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        writer = logs.LineWriter(full.fileno())
        writer.put("one")
        writer.put("two")
        writer.close(5)
    assert writer.dropped == 2


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logs.reset_levels("info")
    logging.getLogger("ztunnel").setLevel(logging.NOTSET)


def test_levels_change_by_scope_and_reset(restored: None) -> None:
    logs.reset_levels("info")
    logs.set_levels("warn,xds=debug")
    assert logging.getLogger("ztunnel.xds").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("ztunnel.ca").isEnabledFor(logging.INFO)
    assert logs.levels().startswith("warn")
    assert "xds=debug" in logs.levels()
    logs.reset_levels("info")
    assert logs.levels() == "info"
    assert not logging.getLogger("ztunnel.xds").isEnabledFor(logging.DEBUG)


@pytest.mark.parametrize("spec", ["loud", "xds=loud", "info,x/y=debug"])
def test_a_bad_spec_changes_nothing(restored: None, spec: str) -> None:
    logs.reset_levels("info")
    with pytest.raises(ValueError, match="log"):
        logs.set_levels(f"debug,{spec}")
    assert logs.levels() == "info"


def test_records_and_exceptions_become_one_line_each(restored: None) -> None:
    read, write = os.pipe()
    writer = logs.LineWriter(write)
    logs.install(writer, as_json=True, spec="info")
    log = logging.getLogger("ztunnel.ca")
    log.info("issued", extra=logs.fields(identity="spiffe://x", nothing=None))
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        log.exception("failed")
    log.debug("unseen")
    writer.close(5)
    os.close(write)
    with os.fdopen(read) as file:
        first, second = [json.loads(line) for line in file.read().splitlines()]
    assert (first["scope"], first["identity"], "nothing" in first) == ("ca", "spiffe://x", False)
    assert "RuntimeError: boom" in second["error"]
