"""A connection that stays open: a line every 50 ms from a pod to the echo service, and what became of it."""

import subprocess
import threading
import time

from daemonset.demo.mesh import Mesh, wait_for

# Runs inside the pod. Prints "port N", then "ok N" for each line echoed, then one "end REASON".
TICKER = r"""
import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
print("port", s.getsockname()[1], flush=True)
n = 0
try:
    while True:
        n += 1
        line = b"tick %d\n" % n
        s.sendall(line)
        got = b""
        while len(got) < len(line):
            data = s.recv(4096)
            if not data:
                raise ConnectionError("closed by peer")
            got += data
        print("ok", n, flush=True)
        time.sleep(0.05)
except OSError as error:
    print("end", error, flush=True)
"""


class Session:
    """One open connection of a pod; a thread reads what it reports."""

    def __init__(self, mesh: Mesh, pod: str, host: str, port: int) -> None:
        self.pod = pod
        self.port = 0
        self.echoed = 0
        self.ended: tuple[float, str] | None = None
        self._process = mesh.spawn(pod, "python3", "-u", "-c", TICKER, host, str(port))
        threading.Thread(target=self._read, daemon=True).start()
        wait_for(f"{pod} opens a session to {host}:{port}", lambda: self.echoed or self.ended)
        if self.ended:
            raise ConnectionError(f"session of {pod}: {self.ended[1]}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, _, rest = line.strip().partition(" ")
            if word == "port":
                self.port = int(rest)
            elif word == "ok":
                self.echoed = int(rest)
            else:
                self.ended = self.ended or (time.monotonic(), line.strip())
        self.ended = self.ended or (time.monotonic(), "the program ended")

    def alive(self) -> bool:
        """Whether three more lines come back, on the same connection."""
        before = self.echoed
        wait_for(f"session of {self.pod} goes on", lambda: self.ended or self.echoed >= before + 3, 5)
        return self.ended is None

    def close(self) -> None:
        """Ends the program in the pod."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
