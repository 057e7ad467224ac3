"""The agents at work on this node: whose connections are never captured, and who of them is there."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ebpf import bpf, loader, maps
from ebpf.loader import Kernel
from ebpf.skew import OtherLayouts

_ENDED: Final = ("Z", "X")
SEEN: Final = 15
"""Seconds after the last `renew` for which an agent counts as there."""


def at_work(pin_dir: Path, *, certain: bool = False) -> list[int]:
    """Processes of agents of any layout version that are there now, as the kernel's programs see them. One that was
    killed lately may be among them where this process has a PID namespace of its own; `certain`: then none. OSError."""
    same_view = loader.own_process() == os.getpid()
    if certain and not same_view:
        return []
    found: list[int] = []
    for key, value in OtherLayouts(pin_dir / "none").agents().items():
        process, last = (int.from_bytes(each, sys.byteorder) for each in (key, value))
        if _is_seen(last, time.monotonic()) and (not same_view or _is_still(process, last)):
            found.append(process)
    return sorted(found)


class Agents:
    """The map `agents`: when each process was last there, in seconds of the monotonic clock. OSError."""

    def __init__(
        self,
        kernel: Kernel,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        since_boot: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._kernel = kernel
        self._monotonic, self._since_boot = monotonic, since_boot
        self._own: int | None = None
        self._same_view = False

    def exempt(self, pid: int, others: OtherLayouts) -> None:
        """Enter this process and what agents of other layouts entered; drop entries of processes that are gone.

        Who is there is told by /proc, or where this process has a PID namespace of its own, by `renew`.
        """
        in_kernel = loader.own_process() if pid == os.getpid() else None
        process = in_kernel or pid
        self._same_view = process == pid
        for key, value in others.agents().items():
            bpf.map_update(self._kernel.maps["agents"], key, value)
        for other, last in self._listed():
            if not self._lives(other, last, in_doubt=True):
                bpf.map_delete(self._kernel.maps["agents"], maps.u32(other))
        self._own = process
        self.renew()

    def renew(self) -> None:
        """Tell the others that this one is there."""
        if self._own is not None:
            now = int(self._monotonic())
            bpf.map_update(self._kernel.maps["agents"], maps.u32(self._own), maps.u32(now))

    def has_company(self) -> bool:
        """Whether another agent is there."""
        return any(
            self._lives(other, last, in_doubt=False) for other, last in self._listed() if other != self._own
        )

    def successor_age(self) -> float | None:
        """For how many seconds the youngest other agent has run, if it is younger than this one; None where there is
        none, or where /proc does not tell (a PID namespace of its own)."""
        own = _began(os.getpid()) if self._own == os.getpid() else None
        others = [_began(other) for other, last in self._listed() if self._sees(last) and other != self._own]
        youngest = max((began for began in others if began is not None), default=None)
        if own is None or youngest is None or youngest <= own:
            return None
        return max(0.0, self._since_boot() - youngest)

    def leave(self) -> None:
        """Take this process out."""
        if self._own is not None:
            bpf.map_delete(self._kernel.maps["agents"], maps.u32(self._own))

    def _lives(self, process: int, last: int, *, in_doubt: bool) -> bool:
        """`in_doubt`: the answer for a process that is there and was not seen lately."""
        if self._same_view and not _is_still(process, last):
            return False
        return self._sees(last) or (in_doubt and self._same_view)

    def _sees(self, last: int) -> bool:
        return _is_seen(last, self._monotonic())

    def _listed(self) -> list[tuple[int, int]]:
        """Processes that are not captured, and when they were last seen."""
        fd, found = self._kernel.maps["agents"], []
        for key in list(bpf.map_keys(fd, 4)):
            raw = bpf.map_lookup(fd, key, 4)
            if raw:
                process, last = (int.from_bytes(each, sys.byteorder) for each in (key, raw))
                found.append((process, last))
        return found


def _is_seen(last: int, now: float) -> bool:
    return int(now) - last < SEEN


def _is_still(process: int, last: int) -> bool:
    """Whether the process that was seen then is there, and not another that was given its number afterwards: an
    application's, maybe."""
    began = _began(process)
    slept = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return began is not None and began - slept <= last + 1


def _began(pid: int) -> float | None:
    """When a process was started, in seconds since boot; None if it is gone. Source: proc(5), stat, fields 3 and 22."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in _ENDED else int(fields[19]) / os.sysconf("SC_CLK_TCK")
