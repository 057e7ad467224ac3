"""Starting programs in a pod or on a node, and keeping the mesh's own ones running."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from daemonset.local import cgroups

log = logging.getLogger(__name__)
LAUNCHER = Path(__file__).with_name("launch.py")
LOG_LIMIT = 16 * 1024 * 1024
STEADY_SECONDS = 60.0
LONGEST_PAUSE = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program runs. `netns` None: this process's own; `binds`: target -> source of files of its own."""

    cgroup: Path
    netns: Path | None = None
    binds: Mapping[str, str] = field(default_factory=dict)
    hostname: str = ""
    cwd: str = ""

    def plan(self) -> dict[str, object]:
        """The place in the launcher's words."""
        return {
            "cgroup": str(self.cgroup),
            "netns": str(self.netns) if self.netns else "",
            "binds": dict(self.binds),
            "hostname": self.hostname,
            "cwd": self.cwd,
        }

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command that starts `command` at this place."""
        return [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(self.plan()), *command]


async def start(command: Sequence[str], env: Mapping[str, str], place: Place, log_file: Path) -> trio.Process:
    """Starts the program with its output appended to the log file."""
    place.cgroup.mkdir(parents=True, exist_ok=True)
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with open(log_file, "ab") as output:
        return await trio.lowlevel.open_process(
            place.argv(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(env),
            start_new_session=True,
        )


async def end(process: trio.Process, cgroup: Path, grace: float) -> int:
    """SIGTERM, then after `grace` seconds SIGKILL to all in the group; the exit code."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with trio.move_on_after(grace):
            await process.wait()
    cgroups.kill(cgroup)
    return await process.wait()


def restart_pause(restarts: int, lived: float) -> float:
    """Seconds to wait before the next start: none after a steady life or a first crash, then 1, 2, 4, ..."""
    if lived >= STEADY_SECONDS or restarts == 0:
        return 0.0
    return float(min(LONGEST_PAUSE, 2.0 ** (restarts - 1)))


@dataclass
class Service:
    """A program of the mesh itself (agent, control plane, name server) that is started again when it ends."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    place: Place
    log_file: Path
    grace: float = 5.0
    pid: int = 0
    restarts: int = 0
    last_exit: int | None = None
    process: trio.Process | None = None
    retired: bool = False
    changed: Callable[[], None] = lambda: None

    async def run(self) -> None:
        """Until cancelled, then the program is ended; or until it ends after `retire`."""
        crashes = 0
        try:
            while not self.retired:
                began = trio.current_time()
                await self._once()
                lived = trio.current_time() - began
                if self.retired:
                    break
                crashes = 0 if lived >= STEADY_SECONDS else crashes
                pause = restart_pause(crashes, lived)
                log.warning("%s ended (%s), next start in %g s", self.name, self.last_exit, pause)
                cgroups.kill(self.place.cgroup)
                crashes += 1
                self.restarts += 1
                self.changed()
                await trio.sleep(pause)
        finally:
            with trio.CancelScope(shield=True):
                if self.process is not None:
                    await end(self.process, self.place.cgroup, self.grace)
            with contextlib.suppress(OSError):  # others may have joined it
                self.place.cgroup.rmdir()

    async def _once(self) -> None:
        try:
            self.process = await start(self.command, self.env, self.place, self.log_file)
        except OSError as error:
            log.warning("%s cannot be started: %s", self.name, error)
            return
        self.pid = self.process.pid
        self.changed()
        self.last_exit = await self.process.wait()
        self.pid = 0

    def retire(self) -> None:
        """Asks the program to end when it likes, and does not start it again."""
        self.retired = True
        self.signal(signal.SIGTERM)

    def signal(self, number: int) -> None:
        """Sends a signal if the program runs."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


def cut_log(path: Path, limit: int = LOG_LIMIT) -> bool:
    """Keeps a log below `limit`: its text moves to NAME.1, the file starts again. Writers append, so they go on."""
    try:
        if path.stat().st_size <= limit:
            return False
        path.with_name(path.name + ".1").write_bytes(path.read_bytes())
        os.truncate(path, 0)
    except FileNotFoundError:
        return False
    return True
