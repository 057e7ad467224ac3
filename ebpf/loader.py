"""Maps, programs and links in the kernel: created, or adopted from where a former agent pinned them.

Pins, under `PIN_DIR/v<layout version>/`: `map_NAME`, `link_NAME` (cgroup), `pod_SLOT` (namespace), `redirect_SLOT` (the
host's end of a veth).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from ebpf import bpf
from ebpf.bytecode import Collection
from ebpf.errors import CaptureError, CaptureReason
from ebpf.kinds import AttachType, ProgramType
from ebpf.maps import LAYOUT, LAYOUT_VERSION

CGROUP_PROGRAMS: Final = ("connect4", "connect6")
DIRECT_PROGRAMS: Final = ("direct", "peer4", "peer6")
TURBO_PROGRAM: Final = "turbo_joins"
_TURBO_VERDICT: Final = "turbo"
_POD: Final = "pod_"
_REDIRECT: Final = "redirect_"


def layout_dir(pin_dir: Path) -> Path:
    """Where this version pins."""
    return pin_dir / f"v{LAYOUT_VERSION}"


class Kernel:
    """Open maps by name, and what can be attached to them. Descriptors of maps are held, of links not."""

    def __init__(self, collection: Collection, directory: Path, maps: Mapping[str, int]) -> None:
        self.collection = collection
        self.directory = directory
        self.maps = maps

    @classmethod
    def open(cls, collection: Collection, pin_dir: Path) -> Kernel:
        """Create or adopt the maps. CaptureError if what is pinned is not what the programs expect."""
        if dict(collection.maps) != LAYOUT:
            raise CaptureError(
                CaptureReason.LAYOUT_MISMATCH,
                "byte code and package disagree about the maps",
                "run `python -m ebpf.compiler --write`",
            )
        directory = layout_dir(pin_dir)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        maps: dict[str, int] = {}
        with contextlib.ExitStack() as undo:
            for name in collection.maps:
                maps[name] = _map(collection, directory, name)
                undo.callback(os.close, maps[name])
            undo.pop_all()
        return cls(collection, directory, maps)

    def close(self) -> None:
        """Close the maps; pins stay."""
        for fd in self.maps.values():
            os.close(fd)
        self.maps = {}

    def lost(self, *, hooks: bool) -> list[str]:
        """Names of pins that are not there any more: of maps, and if `hooks` of the connect hooks."""
        wanted = [f"map_{name}" for name in self.maps]
        wanted += [f"link_{name}" for name in CGROUP_PROGRAMS if hooks]
        try:
            there = set(os.listdir(self.directory))
        except FileNotFoundError:
            there = set()
        return [name for name in wanted if name not in there]

    def pin_again(self) -> None:
        """Pin the maps that are not. OSError where there is no BPF file system any more."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, fd in self.maps.items():
            with contextlib.suppress(FileExistsError):
                bpf.pin(fd, self.directory / f"map_{name}")

    def load(self, name: str, **holes: int) -> int:
        """Load one program; returns its descriptor."""
        program = self.collection.programs[name]
        code = program.resolve(self.maps, holes)
        return bpf.program_load(name, program.type, program.attach, code)

    def attach_cgroup(self, cgroup: Path) -> None:
        """Attach the connect hooks to a cgroup, replacing the programs of a former agent without a gap."""
        self._attach_all(CGROUP_PROGRAMS, cgroup)

    def detach_cgroup(self) -> None:
        """Undo `attach_cgroup`, also if a former agent did it."""
        for name in CGROUP_PROGRAMS:
            unlink(self.directory / f"link_{name}")

    def attach_direct(self, cgroup: Path) -> None:
        """Attach what the direct path needs in addition, in the same way."""
        self._attach_all(DIRECT_PROGRAMS, cgroup)

    def detach_direct(self) -> None:
        """Undo `attach_direct`, also if a former agent did it."""
        self.detach_turbo()
        for name in DIRECT_PROGRAMS:
            unlink(self.directory / f"link_{name}")

    def attach_turbo(self, cgroup: Path, offsets: Mapping[str, int]) -> None:
        """Attach what acceleration needs: first what decides about messages, then what lets sockets join."""
        verdict = self.load(_TURBO_VERDICT, **offsets)
        path = self.directory / f"link_{_TURBO_VERDICT}"
        try:
            if (link := bpf.pinned(path)) is None:
                self._create(path, _TURBO_VERDICT, self.maps["turbo_sockets"], verdict)
            else:
                bpf.link_update(link, verdict)
                os.close(link)
        finally:
            os.close(verdict)
        self._attach_all((TURBO_PROGRAM,), cgroup)

    def detach_turbo(self) -> None:
        """Undo `attach_turbo`; sockets that have joined stay as they are."""
        for name in (TURBO_PROGRAM, _TURBO_VERDICT):
            unlink(self.directory / f"link_{name}")

    def _attach_all(self, names: tuple[str, ...], cgroup: Path) -> None:
        target = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in names:
                self._attach(self.directory / f"link_{name}", name, target, {})
        finally:
            os.close(target)

    def attach_pod(self, slot: int, netns_fd: int) -> None:
        """Attach the steering program for a slot to a namespace, or replace the one that is there."""
        self._attach(self.directory / f"{_POD}{slot}", "steer", netns_fd, {"slot": slot})

    def detach_pod(self, slot: int) -> None:
        """Undo `attach_pod`; also fine if the namespace is gone or nothing was attached."""
        unlink(self.directory / f"{_POD}{slot}")

    def attached_slots(self) -> Iterator[int]:
        """Slots with a pinned link, whether or not its namespace lives."""
        for path in list(self.directory.iterdir()):
            if path.name.startswith(_POD):
                yield int(path.name.removeprefix(_POD))

    def attach_redirect(self, slot: int, ifindex: int) -> None:
        """Attach the short cut to the host's end of a pod's veth, in this thread's network namespace; where it is
        attached already, put this program in place of the one that is there."""
        path = self.directory / f"{_REDIRECT}{slot}"
        self._attach(path, "redirect", ifindex, {}, ifindex)

    def detach_redirect(self, slot: int) -> None:
        """Undo `attach_redirect`, also if a former agent did it."""
        unlink(self.directory / f"{_REDIRECT}{slot}")

    def redirects(self) -> dict[int, int]:
        """Slots whose short cut is pinned: the interface it is attached to, 0 if that is gone."""
        found: dict[int, int] = {}
        for path in list(self.directory.glob(f"{_REDIRECT}*")):
            link = bpf.pinned(path)
            if link is not None:
                try:
                    found[int(path.name.removeprefix(_REDIRECT))] = bpf.link_info(
                        link, AttachType.TCX_INGRESS
                    ).target
                finally:
                    os.close(link)
        return found

    def _attach(
        self, path: Path, name: str, target: int, holes: Mapping[str, int], known_by: int | None = None
    ) -> None:
        """`known_by`: what the kernel tells of the target; of a cgroup or namespace that is its inode."""
        program = self.load(name, **holes)
        try:
            if not self._update(path, name, known_by or os.fstat(target).st_ino, program):
                self._create(path, name, target, program)
        finally:
            os.close(program)

    def _update(self, path: Path, name: str, known_by: int, program: int) -> bool:
        """Whether a pinned link to just this target took the program over."""
        link = bpf.pinned(path)
        if link is None:
            return False
        try:
            info = bpf.link_info(link, self.collection.programs[name].attach)
            if info.target == known_by:  # a cgroup's id is its inode, too
                bpf.link_update(link, program)
                return True
        finally:
            os.close(link)
        unlink(path)
        return False

    def _create(self, path: Path, name: str, target: int, program: int) -> None:
        try:
            link = bpf.link_create(program, target, self.collection.programs[name].attach)
        except OSError as error:
            raise CaptureError(
                CaptureReason.ATTACH_FAILED,
                f"{name}: {error.strerror}",
                "run as root with BPF and NET_ADMIN; kernel 5.9 or newer",
            ) from error
        try:
            bpf.pin(link, path)
        finally:
            os.close(link)


def _map(collection: Collection, directory: Path, name: str) -> int:
    path = directory / f"map_{name}"
    wanted = collection.maps[name]
    fd = bpf.pinned(path)
    if fd is None:
        fd = bpf.map_create(name, wanted)
        try:
            bpf.pin(fd, path)
        except OSError:
            os.close(fd)
            raise
        return fd
    found = bpf.map_info(fd)
    if found != wanted:
        os.close(fd)
        raise CaptureError(
            CaptureReason.LAYOUT_MISMATCH, f"{path} is {found}, not {wanted}", "run the agent's cleanup first"
        )
    return fd


def unlink(path: Path) -> bool:
    """Remove a pin; a link is detached at once, even if somebody else holds it. Whether it was there."""
    if not path.name.startswith("map_"):
        link = bpf.pinned(path)
        if link is None:
            return False
        with contextlib.suppress(OSError):  # its cgroup or namespace is gone already
            bpf.link_detach(link)
        os.close(link)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def remove_layout(directory: Path) -> list[str]:
    """Remove all pins of one layout version, links first; returns their paths."""
    if not directory.is_dir():
        return []
    paths = sorted(directory.iterdir(), key=lambda path: (path.name.startswith("map_"), path.name))
    removed = [str(path) for path in paths if unlink(path)]
    directory.rmdir()
    return removed


def own_process() -> int | None:
    """This process's id as the kernel's programs see it, whatever PID namespace it lives in.

    A three-instruction program is run once in this process: call get_current_pid_tgid, shift, return.
    None where the kernel cannot do that (before 5.10).
    """
    code = bytes.fromhex("850000000e00000077000000200000009500000000000000")
    try:
        program = bpf.program_load("own_process", ProgramType.RAW_TRACEPOINT, AttachType.NONE, code)
    except (OSError, CaptureError):
        return None
    try:
        return bpf.program_run(program)
    except OSError:
        return None
    finally:
        os.close(program)
