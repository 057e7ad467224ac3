"""Finds the network of pods by their processes: cgroup directories, then /proc/PID/ns/net.

A process id may be used again between two looks at it. So each is first held by a pidfd; what is read of it while that
has not ended is of one and the same process.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ebpf import netns
from ztunnel.enrol import netchoice, podcgroups
from ztunnel.enrol.netchoice import Candidate, IpAddress, NetnsKey, Undecided

__all__ = ["Finder", "Found", "Witnesses", "places"]

_DEPTH: Final = 5
_EACH: Final = 16
"""Processes of one cgroup that are looked at: all of a container are in one network unless it plays with them."""
_AGAIN: Final = 0.5
"""Seconds between walks over all directories, while a pod is not among those of known parents."""
_OUTSIDE: Final = Undecided("its processes cannot be seen from here; the agent's pod needs hostPID: true")
_FORBIDDEN: Final = Undecided(
    "its processes may not be looked at; grant the agent SYS_PTRACE and an unconfined AppArmor profile"
)
_NOT_STARTED: Final = Undecided("it has no cgroup yet")


@dataclass(frozen=True, slots=True)
class Found:
    """Descriptors of a pod's network namespace, and of a process in it (a pidfd). Both are the caller's."""

    netns_fd: int
    key: NetnsKey
    witness: int

    def close(self) -> None:
        """Close both."""
        os.close(self.netns_fd)
        os.close(self.witness)


def places(named: Sequence[Path], cgroup: Path | None, table: str) -> tuple[Path, ...]:
    """Where to look for pods' cgroups: what is `named`, else the agent's cgroup2 directory, else every hierarchy of
    /proc/mounts (its text is `table`)."""
    if named or cgroup is not None:
        return tuple(named) or (cgroup,) if cgroup is not None else tuple(named)
    return tuple(Path(place) for place in podcgroups.mounts(table))


class Finder:
    """Not thread-safe; blocks for some milliseconds."""

    def __init__(self, places: Sequence[Path]) -> None:
        self._places = tuple(places)
        self._parents: list[Path] = []
        self._walked = float("-inf")
        self._home = _key(os.stat("/proc/self/ns/net"))

    def look(self, pods: Mapping[str, tuple[IpAddress, ...]]) -> dict[str, Found | Undecided]:
        """For each uid its network, or why it cannot be told. `pods`: with the addresses that the API server has."""
        paths = self._paths(set(pods))
        return {
            uid: self._find(paths[uid], told) if uid in paths else _NOT_STARTED for uid, told in pods.items()
        }

    # Directories

    def _paths(self, uids: set[str]) -> dict[str, list[Path]]:
        found = self._below_parents(uids)
        if uids - found.keys() and time.monotonic() >= self._walked + _AGAIN:
            self._parents = [parent for place in self._places for parent in _parents(place, _DEPTH)]
            self._walked = time.monotonic()
            found = self._below_parents(uids)
        return found

    def _below_parents(self, uids: set[str]) -> dict[str, list[Path]]:
        """Version 1 has a pod's cgroup in several hierarchies."""
        found: dict[str, list[Path]] = {}
        for parent in self._parents:
            for entry in _folders(parent):
                if (uid := podcgroups.pod_uid(entry.name)) in uids and uid is not None:
                    found.setdefault(uid, []).append(entry)
        return found

    # Processes

    def _find(self, cgroups: Sequence[Path], told: tuple[IpAddress, ...]) -> Found | Undecided:
        seen: dict[NetnsKey, Found] = {}
        try:
            trouble = self._see(cgroups, seen)
            candidates = [Candidate(key, _addresses(one.netns_fd)) for key, one in seen.items()]
            chosen = netchoice.choose(candidates, told)
            if isinstance(chosen, Undecided):
                return trouble or chosen
            return seen.pop(chosen)
        finally:
            for one in seen.values():
                one.close()

    def _see(self, cgroups: Sequence[Path], seen: dict[NetnsKey, Found]) -> Undecided | None:
        """Fills `seen` with one process for each network but the node's; what kept us from some."""
        trouble = None
        for cgroup in cgroups:
            for folder in _container_folders(cgroup):
                for pid in _processes(folder)[:_EACH]:
                    if not pid:
                        trouble = _OUTSIDE
                        continue
                    try:
                        one = _open(pid, folder)
                    except PermissionError:
                        trouble = _FORBIDDEN
                        continue
                    except OSError:
                        continue  # it has ended
                    if one is not None and one.key != self._home and one.key not in seen:
                        seen[one.key] = one
                    elif one is not None:
                        one.close()
        return trouble


class Witnesses:
    """One process of each enrolled pod, to hear of its end."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._pidfds: dict[str, int] = {}
        self._uids: dict[int, str] = {}

    def put(self, uid: str, pidfd: int) -> None:
        """In place of the pod's former one. The descriptor is taken over."""
        self.drop(uid)
        self._pidfds[uid], self._uids[pidfd] = pidfd, uid
        self._poll.register(pidfd, select.POLLIN)

    def drop(self, uid: str) -> None:
        """The pod is of no more interest."""
        pidfd = self._pidfds.pop(uid, None)
        if pidfd is not None:
            del self._uids[pidfd]
            self._poll.unregister(pidfd)
            os.close(pidfd)

    def ended(self) -> list[str]:
        """Pods whose process has ended since; told once."""
        uids = [self._uids[pidfd] for pidfd, _ in self._poll.poll(0)]
        for uid in uids:
            self.drop(uid)
        return uids

    def close(self) -> None:
        """Forget all."""
        for uid in list(self._pidfds):
            self.drop(uid)


def _parents(place: Path, depth: int) -> Iterator[Path]:
    """Directories that have pods right below them, or may have."""
    if podcgroups.is_parent(place.name) or any(podcgroups.pod_uid(folder.name) for folder in _folders(place)):
        yield place
    for folder in _folders(place) if depth else ():
        if podcgroups.pod_uid(folder.name) is None and folder.suffix != ".scope":
            yield from _parents(folder, depth - 1)


def _folders(place: Path) -> list[Path]:
    try:
        with os.scandir(place) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []  # it went away, or is not ours to read


def _container_folders(cgroup: Path) -> Iterator[Path]:
    """A pod's cgroup and all below it whose processes are the pod's."""
    yield cgroup
    for folder in _folders(cgroup):
        if podcgroups.belongs_to_container(folder.name):
            yield from _container_folders(folder)


def _processes(folder: Path) -> list[int]:
    try:
        return [int(word) for word in (folder / "cgroup.procs").read_text().split()]
    except (OSError, ValueError):
        return []  # it went away, or has threads only


def _open(pid: int, folder: Path) -> Found | None:
    """The network of a process that is in this cgroup; None if it is not, or has ended. OSError."""
    with contextlib.ExitStack() as undo:
        witness = os.pidfd_open(pid)
        undo.callback(os.close, witness)
        fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, fd)
        if pid not in _processes(folder) or _has_ended(witness):
            return None
        undo.pop_all()
        return Found(fd, _key(os.fstat(fd)), witness)


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _key(status: os.stat_result) -> NetnsKey:
    return (status.st_dev, status.st_ino)


def _addresses(netns_fd: int) -> tuple[IpAddress, ...]:
    try:
        return netns.addresses(netns_fd)
    except OSError:
        return ()
