"""What a process holds, before and after: descriptors, threads, memory. Nothing may be left behind."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Holdings:
    """One look at a process: open descriptors by number, threads, resident memory in bytes."""

    descriptors: dict[int, str]
    threads: int
    rss: int

    def more_than(self, before: Holdings, *, rss_slack: int) -> list[str]:
        """What is held now and was not before, in words; empty when nothing leaked."""
        found = [
            f"fd {number} -> {target}"
            for number, target in sorted(self.descriptors.items())
            if number not in before.descriptors
        ]
        if self.threads > before.threads:
            found.append(f"threads {before.threads} -> {self.threads}")
        if self.rss > before.rss + rss_slack:
            found.append(f"RSS {before.rss >> 10} KiB -> {self.rss >> 10} KiB (slack {rss_slack >> 10} KiB)")
        return found


def rss(pid: int | str = "self") -> int:
    """Resident memory in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def cpu_seconds(pid: int | str = "self") -> float:
    """User plus system time of all threads, living and gone, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def holdings(pid: int | str = "self") -> Holdings:
    """Look now."""
    open_files: dict[int, str] = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            open_files[int(entry.name)] = os.readlink(entry.path)
        except OSError:
            continue  # closed while we looked (the directory's own descriptor, for one)
    threads = len(os.listdir(f"/proc/{pid}/task"))
    return Holdings(open_files, threads, rss(pid))


@contextmanager
def no_leaks(
    *, pid: int | str = "self", timeout: float = 30.0, rss_slack: int = 8 << 20
) -> Iterator[Holdings]:
    """Fail when the body leaves descriptors, threads or memory behind after `timeout` seconds.

    `rss_slack` is bytes: allocators keep pages, so a small body may not be held to nothing.
    """
    gc.collect()
    before = holdings(pid)
    yield before
    deadline = time.monotonic() + timeout
    while True:
        gc.collect()
        left = holdings(pid).more_than(before, rss_slack=rss_slack)
        if not left:
            return
        if time.monotonic() > deadline:
            raise AssertionError("left behind: " + "; ".join(left))
        time.sleep(0.02)
