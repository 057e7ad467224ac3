"""cgroup2: finding it, making subtrees, ending all that runs in them."""

import contextlib
import os
import signal
import time
from pathlib import Path


class NoCgroup2(Exception):
    """This machine has no cgroup2; the text says what to do."""


def mount_point(table: str) -> Path:
    """Where cgroup2 is, from the text of /proc/mounts (on hybrid machines not at /sys/fs/cgroup)."""
    for line in table.splitlines():
        fields = line.split(" ")
        if len(fields) > 2 and fields[2] == "cgroup2":
            return Path(fields[1])
    raise NoCgroup2("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")


def find() -> Path:
    """Where cgroup2 is on this machine. Raises NoCgroup2."""
    return mount_point(Path("/proc/mounts").read_text())


def members(cgroup: Path) -> list[int]:
    """Processes in the subtree."""
    found = []
    for folder, _, _ in os.walk(cgroup):
        with contextlib.suppress(OSError):
            found += [int(p) for p in (Path(folder) / "cgroup.procs").read_text().split()]
    return found


def join(cgroup: Path) -> None:
    """Moves this process into the group."""
    cgroup.mkdir(parents=True, exist_ok=True)
    (cgroup / "cgroup.procs").write_text("0")


def kill(cgroup: Path) -> None:
    """SIGKILL to all in the subtree, forks included; returns at once."""
    try:
        (cgroup / "cgroup.kill").write_text("1")
    except FileNotFoundError:
        if cgroup.exists():  # kernel before 5.14
            for pid in members(cgroup):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    except OSError:
        pass


def remove(cgroup: Path, seconds: float = 10.0) -> bool:
    """Kills what runs in the subtree and removes it; False if something would not die in time."""
    deadline = time.monotonic() + seconds
    while cgroup.exists():
        kill(cgroup)
        for folder, _, _ in os.walk(cgroup, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        if cgroup.exists():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    return True
