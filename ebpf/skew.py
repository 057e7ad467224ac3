"""Pins of agents of other layout versions: their pods are taken over one by one, what they saved is not lost.

What every layout keeps to, so that older and newer agents understand each other: `map_slots` by slot (u32) with
values that begin like `PodRecord`, `map_pods` by namespace cookie (u64), links `pod_SLOT`, `map_agents` by process (u32) with
when it was last there (u32, seconds of CLOCK_MONOTONIC).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ebpf import bpf, loader, maps
from ebpf.maps import PodRecord, SavedSysctls


class OtherLayouts:
    """The other versions' directories beside `current`, as they are at the beginning. OSError."""

    def __init__(self, current: Path) -> None:
        self._current = current
        directories = (each for each in current.parent.glob("v*") if each != current)
        self._found = {directory: dict(_records(directory)) for directory in directories}

    def came(self) -> bool:
        """Whether another version has pins here that were not there at the beginning: it relieves this one."""
        return any(
            each != self._current and each not in self._found for each in self._current.parent.glob("v*")
        )

    def saved(self, cookie: int) -> SavedSysctls:
        """A pod's sysctls before any agent touched them, as far as another layout knows."""
        found = SavedSysctls()
        for records in self._found.values():
            if record := records.get(cookie):
                found = found.or_else(record.saved)
        return found

    @property
    def records(self) -> list[PodRecord]:
        """Of pods that nobody has taken over."""
        return [record for records in self._found.values() for record in records.values()]

    def agents(self) -> dict[bytes, bytes]:
        """Entries of their `agents` maps: a predecessor that drains must not be captured by our hooks."""
        found: dict[bytes, bytes] = {}
        for directory in self._found:
            with _map(directory, "agents") as fd:
                if fd is None or bpf.map_info(fd).key_size != 4:
                    continue
                for key in list(bpf.map_keys(fd, 4)):
                    found[key] = bpf.map_lookup(fd, key, 4) or maps.u32(0)
        return found

    def spare(self, cookie: int) -> None:
        """Their hooks leave the pod's new connections alone."""
        for directory, records in self._found.items():
            if cookie in records:
                _delete(directory, "pods", maps.u64(cookie))

    def hand_over(self, cookie: int) -> None:
        """Their agents and programs have nothing to do with the pod any more; ours have to be in place."""
        self.spare(cookie)
        for directory, records in self._found.items():
            if record := records.pop(cookie, None):
                loader.unlink(directory / f"pod_{record.slot}")
                _delete(directory, "slots", maps.u32(record.slot))

    def remove(self) -> list[str]:
        """Remove all of their pins; returns the paths."""
        removed = [path for directory in self._found for path in loader.remove_layout(directory)]
        self._found.clear()
        return removed


def _records(directory: Path) -> Iterator[tuple[int, PodRecord]]:
    with _map(directory, "slots") as fd:
        if fd is None:
            return
        info = bpf.map_info(fd)
        if info.key_size != 4:
            return
        for key in list(bpf.map_keys(fd, info.key_size)):
            raw = bpf.map_lookup(fd, key, info.value_size)
            record = maps.decode_prefix(raw) if raw else None
            if record:
                yield record.cookie, record


def _delete(directory: Path, name: str, key: bytes) -> None:
    with _map(directory, name) as fd:
        if fd is not None and bpf.map_info(fd).key_size == len(key):
            bpf.map_delete(fd, key)


@contextlib.contextmanager
def _map(directory: Path, name: str) -> Iterator[int | None]:
    fd = bpf.pinned(directory / f"map_{name}")
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)
