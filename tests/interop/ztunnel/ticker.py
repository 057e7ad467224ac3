"""A connection that stays open between two pods of the mixed mesh."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

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
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
