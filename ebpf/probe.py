"""What this kernel and this process can do, found out by trying.

`findings` tries everything and reports; `require` raises for the first thing that is missing. Nothing tried
here leaves a trace. `python -m ebpf.probe CGROUP PIN_DIR` prints the report.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ebpf import bpf
from ebpf.errors import CaptureError, CaptureReason
from ebpf.kinds import AttachType, MapInfo, MapType, ProgramType

_BPFFS_MAGIC: Final = 0xCAFE4A11
_CGROUP2_MAGIC: Final = 0x63677270
_RETURN_1: Final = bytes.fromhex("b7000000010000009500000000000000")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing tried; `error` is None if it works."""

    name: str
    error: CaptureError | None = None


def findings(cgroup: Path | None, pin_dir: Path) -> list[Finding]:
    """Try everything, in the order in which it is needed; without a cgroup, what variant C needs."""
    found: list[Finding] = []
    for name, attempt in _attempts(cgroup, pin_dir):
        try:
            attempt()
        except CaptureError as error:
            found.append(Finding(name, error))
        else:
            found.append(Finding(name))
    return found


def require(cgroup: Path | None, pin_dir: Path) -> None:
    """CaptureError for the first thing that is missing; without a cgroup, of what variant C needs."""
    for _, attempt in _attempts(cgroup, pin_dir):
        attempt()


def has_btf() -> bool:
    """Whether the kernel describes its own types; only acceleration will want it."""
    return Path("/sys/kernel/btf/vmlinux").exists()


def _attempts(cgroup: Path | None, pin_dir: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "bpf", _bpf_allowed
    if cgroup is not None:
        yield "cgroup2", functools.partial(_cgroup2, cgroup)
    yield "bpffs", functools.partial(_bpffs, pin_dir)
    if cgroup is not None:
        what = "cgroup/connect"
        yield (
            "connect hook",
            functools.partial(_loads, what, ProgramType.CGROUP_SOCK_ADDR, AttachType.CONNECT4),
        )
    yield "sk_lookup", functools.partial(_loads, "sk_lookup", ProgramType.SK_LOOKUP, AttachType.SK_LOOKUP)
    yield "sockmap", _sockmap
    if cgroup is not None:
        yield "cgroup link", functools.partial(_link, cgroup)


def _too_old(what: str, error: OSError, needs: str) -> CaptureError:
    return CaptureError(
        CaptureReason.KERNEL_TOO_OLD,
        f"{what}: {error.strerror} on kernel {os.uname().release}",
        f"needs {needs} with CONFIG_CGROUP_BPF and CONFIG_BPF_STREAM_PARSER",
    )


def _bpf_allowed() -> None:
    try:
        os.close(bpf.map_create("probe", MapInfo(MapType.ARRAY, 4, 4, 1, 0)))
    except PermissionError as error:
        raise CaptureError(
            CaptureReason.BPF_FORBIDDEN,
            "bpf(2) is not permitted",
            "run as root with BPF, NET_ADMIN and SYS_ADMIN (a privileged container)",
        ) from error
    except OSError as error:
        raise _too_old("bpf(2)", error, "kernel 5.14 or newer") from error


def _cgroup2(cgroup: Path) -> None:
    if not cgroup.is_dir() or _file_system(cgroup) != _CGROUP2_MAGIC:
        raise CaptureError(
            CaptureReason.CGROUP2_MISSING,
            f"{cgroup} is not in a cgroup2 file system",
            "mount one with `mount -t cgroup2 none DIR` and set AMBIENT_CGROUP to it or a directory below",
        )


def _bpffs(pin_dir: Path) -> None:
    existing = next(path for path in (pin_dir, *pin_dir.parents) if path.exists())
    if _file_system(existing) != _BPFFS_MAGIC:
        raise CaptureError(
            CaptureReason.BPFFS_MISSING,
            f"{pin_dir} is not in a BPF file system",
            f"mount one with `mount -t bpf bpf {pin_dir if pin_dir.exists() else '/sys/fs/bpf'}`",
        )


def _file_system(path: Path) -> int:
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return int(struct.unpack_from("=I", buffer.raw)[0])


def _loads(what: str, kind: ProgramType, attach: AttachType) -> None:
    try:
        os.close(bpf.program_load("probe", kind, attach, _RETURN_1))
    except OSError as error:
        raise _too_old(what, error, "kernel 5.14 or newer") from error


def _sockmap() -> None:
    try:
        os.close(bpf.map_create("probe", MapInfo(MapType.SOCKMAP, 4, 8, 1, 0)))
    except OSError as error:
        raise _too_old("sockmap", error, "kernel 5.14 or newer") from error


def _link(cgroup: Path) -> None:
    """A program that lets everything pass, attached for a moment."""
    program = bpf.program_load("probe", ProgramType.CGROUP_SOCK_ADDR, AttachType.CONNECT4, _RETURN_1)
    target = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(bpf.link_create(program, target, AttachType.CONNECT4))
    except OSError as error:
        raise CaptureError(
            CaptureReason.ATTACH_FAILED,
            f"cannot attach to {cgroup}: {error.strerror}",
            "grant NET_ADMIN; remove programs attached there without permission to add others",
        ) from error
    finally:
        os.close(target)
        os.close(program)


def main(arguments: list[str]) -> int:
    """Print what works; 0 if all that capture needs does."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m ebpf.probe CGROUP PIN_DIR\n")
        return 2
    found = findings(Path(arguments[0]), Path(arguments[1]))
    for finding in found:
        sys.stdout.write(f"{finding.name}: {finding.error or 'works'}\n")
    sys.stdout.write(f"BTF (not needed for capture): {'there' if has_btf() else 'missing'}\n")
    return 1 if any(finding.error for finding in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
