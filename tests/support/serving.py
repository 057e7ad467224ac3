"""`istiodlite serve` as a process: started, asked on its status port, ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "istiodlite")
# More than the 15 s after which a kind that was missing is asked for again, several times.
DEADLINE = 60.0


def wait_until(condition: Callable[[], Any], what: str | Callable[[], str]) -> Any:
    """What the condition gives, once it is true."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {DEADLINE} s: {what() if callable(what) else what}")


class Serving:
    """The process and its ports; `log` is what it wrote, over all starts."""

    def __init__(self, log_path: Path) -> None:
        self.port, self.status_port = free_port(), free_port()
        self.log_path = log_path
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self, *words: str) -> None:
        """`serve` with these words, until it is ready."""
        ports = ("--listen", f"127.0.0.1:{self.port}", "--status-port", str(self.status_port))
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen([*COMMAND, "serve", *words, *ports], stderr=log, cwd=ROOT)
        wait_until(lambda: self.get("/ready")[0] == 200, lambda: f"ready; log: {self.log}")

    def stop(self) -> int:
        """By SIGTERM, unless it has ended; its status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the status port; (0, "") if nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.status_port}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""
