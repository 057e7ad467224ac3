"""An agent process that enrols a pod and answers on its listeners until it is killed.

`python -m tests.netns.capture.agent CGROUP PIN_DIR CACHE_DIR NETNS TAG STORE LAYOUT`; STORE is the fd store's
socket or "", LAYOUT the layout version it takes its maps for; says "ready SLOT" on stdout.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from ebpf import loader, maps, netns
from ebpf.capture import Capture, PodNetwork
from ebpf.fdstore import FdStore
from tests.netns.capture.lab import ROOT, Lab, Pod, Servers


def main() -> None:
    """Enrol and serve."""
    cgroup, pin_dir, cache_dir, name, tag, store, layout = sys.argv[1:]
    loader.LAYOUT_VERSION = int(layout)  # type: ignore[misc]
    capture = Capture.open(
        cgroup=Path(cgroup),
        pin_dir=Path(pin_dir),
        agent_pid=os.getpid(),
        cache_dir=Path(cache_dir),
    )
    if store:
        capture.use_store(FdStore(Path(store)))
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    pod = capture.enrol(PodNetwork(fd, netns.addresses(fd), dns=True))
    servers = Servers()
    servers.serve(pod.outbound, f"{tag}-outbound")
    servers.serve(pod.inbound, f"{tag}-inbound")
    assert pod.dns
    servers.serve_names(pod.dns, f"{tag}-names")
    sys.stdout.write(f"ready {pod.slot}\n")
    sys.stdout.flush()
    signal.pause()


class Agent:
    """The process, seen from a test."""

    def __init__(
        self, lab: Lab, pod: Pod, tag: str, *, store: Path | None = None, layout: int = maps.LAYOUT_VERSION
    ) -> None:
        command = [sys.executable, "-m", "tests.netns.capture.agent"]
        places = [str(place) for place in (lab.cgroup, lab.pin_dir, lab.cache_dir, pod.name, tag)]
        places += [str(store or ""), str(layout)]
        self._process = subprocess.Popen([*command, *places], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line.startswith("ready "), f"the agent said {line!r}"
        self.slot = int(line.split()[1])

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait(60)
        assert self._process.stdout
        self._process.stdout.close()


if __name__ == "__main__":
    main()
