"""Removes every trace of a mesh, found by names alone: also after a crash, with no state file."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from daemonset.local import cgroups, linux
from daemonset.local.names import CGROUP_ROOT, NETNS_DIR, RUN_ROOT, mesh_cgroup, owns_netns, run_dir


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What a mesh has on this machine."""

    processes: int
    namespaces: tuple[str, ...]
    mounts: int
    cgroup: bool
    folder: bool

    def __bool__(self) -> bool:
        return bool(self.processes or self.namespaces or self.mounts or self.cgroup or self.folder)

    def __str__(self) -> str:
        parts = [
            f"{self.processes} processes" if self.processes else "",
            f"{len(self.namespaces)} network namespaces" if self.namespaces else "",
            f"{self.mounts} mounts" if self.mounts else "",
            "cgroups" if self.cgroup else "",
            "its run directory" if self.folder else "",
        ]
        return ", ".join(part for part in parts if part)


@contextmanager
def exclusive() -> Iterator[None]:
    """One `up` or `down` at a time on this machine, whatever the mesh: they share index and cgroup root."""
    fd = _locked_root()
    try:
        yield
    finally:
        os.close(fd)


def _locked_root() -> int:
    """A descriptor that holds the lock on the run directory, which whoever held it before may have removed."""
    while True:
        RUN_ROOT.mkdir(parents=True, exist_ok=True)
        fd = os.open(RUN_ROOT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if RUN_ROOT.exists() and os.path.samestat(os.fstat(fd), RUN_ROOT.stat()):
            return fd
        os.close(fd)


def namespaces(mesh: str) -> list[str]:
    """Names of the mesh's network namespaces."""
    if not NETNS_DIR.is_dir():
        return []
    return sorted(name for name in os.listdir(NETNS_DIR) if owns_netns(mesh, name))


def look(mesh: str) -> Leftovers:
    """What there is of the mesh."""
    cgroup = mesh_cgroup(cgroups.find(), mesh)
    mounts = linux.mounts_below(run_dir(mesh), Path("/proc/self/mounts").read_text())
    return Leftovers(
        len(cgroups.members(cgroup)) if cgroup.exists() else 0,
        tuple(namespaces(mesh)),
        len(mounts),
        cgroup.exists(),
        run_dir(mesh).exists(),
    )


def meshes() -> list[str]:
    """Names of all meshes that have something on this machine."""
    found = {p.name for p in RUN_ROOT.glob("*") if p.is_dir()}
    root = cgroups.find() / CGROUP_ROOT
    return sorted(found | ({p.name for p in root.iterdir() if p.is_dir()} if root.is_dir() else set()))


def clean(mesh: str) -> Leftovers:
    """Removes everything of the mesh; returns what there was. Idempotent. Raises OSError if something stays.

    Order matters: processes first (they hold namespaces and pins), then pins, names, groups, files.
    """
    found = look(mesh)
    cgroup = mesh_cgroup(cgroups.find(), mesh)
    if not cgroups.remove(cgroup):
        raise OSError(f"processes of mesh {mesh} do not end: {cgroups.members(cgroup)} in {cgroup}")
    for point in linux.mounts_below(run_dir(mesh), Path("/proc/self/mounts").read_text()):
        linux.unmount(point)
    for name in namespaces(mesh):
        linux.remove_netns(NETNS_DIR / name)
    if run_dir(mesh).exists():
        shutil.rmtree(run_dir(mesh))
    _remove_if_empty(cgroup.parent)
    _remove_if_empty(RUN_ROOT)
    return found


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
