"""Two network namespaces that stand for pods of one node, with a cable between them, and programs in them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLIENT_IP, SERVER_IP, PORT = "10.97.0.2", "10.97.0.3", 7000
_ECHO = f"""
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
with Server(("{SERVER_IP}", {PORT}), Echo) as server:
    print("ready", flush=True)
    server.serve_forever()
"""
_ASK = f"""
import socket
try:
    with socket.create_connection(("{SERVER_IP}", {PORT}), 20) as s:
        s.settimeout(20)
        s.sendall(b"ping")
        print("got", s.recv(4).decode())
except OSError as error:
    print("failed", type(error).__name__)
"""


@dataclass(frozen=True)
class Pair:
    """Names of the namespaces."""

    client: str
    server: str

    def ask(self, cgroup: Path | None) -> str:
        """One connection from the client's pod; `cgroup` is where its processes live, None: where nobody captures."""
        join = f"echo $$ > {cgroup}/cgroup.procs && " if cgroup is not None else ""
        command = ["sh", "-c", f'{join}exec ip netns exec {self.client} {sys.executable} -c "$0"', _ASK]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def pair() -> Iterator[Pair]:
    """With the server's application running."""
    one = Pair(f"zt-istiod-{os.getpid()}-c", f"zt-istiod-{os.getpid()}-s")
    try:
        for name in (one.client, one.server):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip(
            "-n",
            one.client,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            one.server,
        )
        for name, address in ((one.client, CLIENT_IP), (one.server, SERVER_IP)):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
        command = ["ip", "netns", "exec", one.server, sys.executable, "-c", _ECHO]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as app:
            try:
                assert app.stdout is not None
                assert app.stdout.readline() == "ready\n"
                yield one
            finally:
                app.terminate()
    finally:
        for name in (one.client, one.server):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=60)
