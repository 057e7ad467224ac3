"""That the self-test has passed, kept where it is lost when the kernel is: as a symbolic link in the BPF file system.

What is kept is a digest of everything that the test rests on. Another kernel, other code or another cgroup has
another digest; a reboot leaves no file. Who could forge the link could as well remove the programs: it counts only if it
and its directory belong to this user and nobody else may write there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from ebpf import bytecode

_PREFIX: Final = "tested-"


def of(collection: bytecode.Collection, cgroup: Path | None) -> str:
    """What a passed self-test of this byte code by this package, below this cgroup, would prove. OSError."""
    digest = hashlib.sha256(bytecode.encode(collection).encode())
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    kernel = os.uname()
    where = os.stat(cgroup) if cgroup is not None else None
    place = (where.st_dev, where.st_ino) if where else None
    digest.update(repr((kernel.release, kernel.version, kernel.machine, place)).encode())
    return digest.hexdigest()


def is_kept(pin_dir: Path, evidence: str) -> bool:
    """Whether a self-test with this evidence passed since the kernel started."""
    try:
        link, directory = os.lstat(pin_dir / (_PREFIX + evidence)), os.stat(pin_dir)
    except OSError:
        return False
    own = {link.st_uid, directory.st_uid} == {os.geteuid()}
    return own and not directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def keep(pin_dir: Path, evidence: str) -> None:
    """Remember it; without a BPF file system that can hold it the next agent tests again."""
    with contextlib.suppress(OSError):
        pin_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.symlink("passed", pin_dir / (_PREFIX + evidence))


def forget(pin_dir: Path) -> list[str]:
    """Remove what is kept; returns the paths."""
    removed: list[str] = []
    for path in sorted(pin_dir.glob(f"{_PREFIX}*")):
        with contextlib.suppress(OSError):
            path.unlink()
            removed.append(str(path))
    return removed
