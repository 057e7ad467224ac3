"""Our node agent as a process of its own, on loopback ports and a cgroup that nobody else is in. Needs root."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemonset.local import linux
from tests.support import sanitized
from tests.support.ports import free_port
from ztunnel.capabilities import cgroup2_mount

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 60.0


class ZtunnelProcess:
    """`environ` are settings of the agent; ports, cgroup and pins are chosen here."""

    def __init__(self, folder: Path, **environ: str) -> None:
        mount = cgroup2_mount(Path("/proc/mounts").read_text())
        assert mount is not None
        self.folder = folder
        self.log_path = folder / "ztunnel.log"
        self.cgroup = mount / f"zt-test-{os.getpid()}-{folder.name}"
        self._pins = folder / "bpf"
        self._admin, self._ready_port = free_port(), free_port()
        self.environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "AMBIENT_CGROUP": str(self.cgroup),
            "AMBIENT_PIN_DIR": str(self._pins),
            "ADMIN_PORT": str(self._admin),
            "READINESS_PORT": str(self._ready_port),
            "STATS_PORT": str(free_port()),
            "TERMINATION_GRACE_PERIOD_SECONDS": "2",
            **environ,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.under: tuple[str, ...] = ()
        """A program that starts the agent, with its arguments (`setpriv ...`)."""

    def __enter__(self) -> ZtunnelProcess:
        self.prepare()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def prepare(self) -> None:
        """Cgroup and pins, for a start later on."""
        self.cgroup.mkdir()
        self._pins.mkdir()
        linux.mount("bpf", self._pins, "bpf", data="mode=0700")

    def clear(self) -> None:
        """Nothing is left of it."""
        if self.process is not None:
            self.stop()
        subprocess.run(
            [sys.executable, "-m", "ztunnel", "cleanup"], env=self.environ, check=True, capture_output=True
        )
        linux.unmount(self._pins)
        self.cgroup.rmdir()

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.under, *sanitized.agent_command(), "proxy", "ztunnel"],
                env=self.environ,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def kill(self) -> None:
        """As the kernel does it when memory is short."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE)

    def ready(self) -> bool:
        return self.readiness().startswith("ready")

    def readiness(self) -> str:
        """The text of the page; empty while nobody answers."""
        try:
            address = f"http://127.0.0.1:{self._ready_port}/healthz/ready"
            with urllib.request.urlopen(address, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError:
            return ""

    def dump(self) -> Any:
        """config_dump; None while the agent does not answer."""
        return self.page("/config_dump")

    def page(self, path: str) -> Any:
        """An admin page; None while the agent does not answer."""
        with contextlib.suppress(urllib.error.URLError, OSError):
            address = f"http://127.0.0.1:{self._admin}{path}"
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.loads(answer.read())
        return None

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """The first true value of the condition."""
        assert self.process is not None
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            if value := condition():
                return value
            assert self.process.poll() is None, f"the agent ended: {self.log[-3000:]}"
            time.sleep(0.05)
        raise AssertionError(f"not within {DEADLINE:g} s: {what}; log: {self.log[-3000:]}")
