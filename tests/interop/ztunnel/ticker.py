"""Connections between two pods of the mixed mesh, seen from inside: one that stays open, and one after another."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Any

from daemonset.demo.mesh import wait_for
from tests.interop.ztunnel.mesh import APP, MixedMesh


class Ticker:
    """An echo every 20 ms; `end` says how it ended, `last` when the last echo came (monotonic)."""

    def __init__(self, mesh: MixedMesh, where: str, host: str) -> None:
        self.echoed, self.end, self.last = 0, "", 0.0
        self._process = mesh.spawn(where, sys.executable, "-u", str(APP), "ticker", host)
        threading.Thread(target=self._read, daemon=True).start()
        wait_for(f"{where} is connected to {host}", lambda: self.echoed or self.end)
        assert not self.end, self.end

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, _, rest = line.strip().partition(" ")
            if word == "ok":
                self.echoed, self.last = int(rest), time.monotonic()
            else:
                self.end = self.end or line.strip()
        self.end = self.end or "gone"

    def alive(self) -> bool:
        before = self.echoed
        wait_for("an echo", lambda: self.end or self.echoed > before + 3, 60)
        return not self.end

    def close(self) -> None:
        _end(self._process)


class Attempts:
    """One short connection after another; `found` has what became of each, as app.py's `attempt` tells it."""

    def __init__(self, mesh: MixedMesh, where: str, host: str) -> None:
        self.found: list[dict[str, Any]] = []
        self._process = mesh.spawn(where, sys.executable, "-u", str(APP), "attempts", host)
        threading.Thread(target=self._read, daemon=True).start()
        wait_for(f"{where} reaches {host}", lambda: any(_answered(f) for f in self.found), 60)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.found.append(json.loads(line))

    def failures(self) -> list[dict[str, Any]]:
        """Those that were not answered."""
        return [found for found in self.found if not _answered(found)]

    def close(self) -> None:
        _end(self._process)


def _answered(found: dict[str, Any]) -> bool:
    return found.get("got") == "ping"


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
