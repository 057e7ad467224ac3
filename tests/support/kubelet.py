"""A kubelet and a container runtime as far as a node agent sees them: network namespaces, cgroups in the kubelet's
layout, and processes in both. Needs root.

Pods hang on a router in a namespace of its own, as with point-to-point CNI plugins; nothing of this machine's network
is touched.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from daemonset.local import cgroups, launch

NETNS = Path("/run/netns")
_NUMBERS = itertools.count()
NOBODY = 65534
# The sandbox's process runs as a user of its own, as `pause` does.
READY = (
    f"import os, time; os.setgid({NOBODY}); os.setuid({NOBODY}); print('ready', flush=True); time.sleep(1e6)"
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=60)


def in_place(cgroup: Path | None, netns: Path | None, *program: str) -> list[str]:
    """The command that becomes `program` there."""
    plan = {name: str(place) for name, place in (("cgroup", cgroup), ("netns", netns)) if place is not None}
    return [sys.executable, "-I", "-S", launch.__file__, json.dumps(plan), *program]


def start(command: list[str]) -> subprocess.Popen[str]:
    """A process that has printed its first line."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline(), f"{command[-1]} ended"
    return process


@dataclass
class Sandbox:
    """One pod's place: `pause` holds it, as the runtime's process of that name does."""

    uid: str
    cgroup: Path
    netns: Path
    address: str
    address6: str
    pause: subprocess.Popen[str]
    others: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(self, code: str, *arguments: str, netns: Path | None = None) -> subprocess.Popen[str]:
        """A container's process, with a cgroup of its own; it has printed its first line. `netns`: another network."""
        place = self._container()
        process = start(in_place(place, netns or self.netns, sys.executable, "-u", "-c", code, *arguments))
        self.others.append(process)
        return process

    def ask(self, code: str, *arguments: str) -> str:
        """What a short-lived process of the pod prints."""
        command = in_place(self._container(), self.netns, sys.executable, "-c", code, *arguments)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return (done.stdout + done.stderr).strip()

    def _container(self) -> Path:
        place = self.cgroup / f"cri-containerd-{secrets.token_hex(32)}.scope"
        place.mkdir()
        return place

    def end(self) -> None:
        """Every process ends, then the network goes."""
        for process in (*self.others, self.pause):
            process.kill()
            process.wait(60)
            assert process.stdout is not None
            process.stdout.close()
        self.others.clear()
        ip("netns", "delete", self.netns.name)


class Kubelet:
    """Of one node. `cgroup` is a cgroup2 directory, in place of the root."""

    def __init__(self, cgroup: Path, prefix: str = "alk") -> None:
        self.cgroup = cgroup
        self._prefix = f"{prefix}-{os.getpid()}-{next(_NUMBERS)}"
        self._router = f"{self._prefix}-router"
        self._count = 0
        self._sandboxes: list[Sandbox] = []
        ip("netns", "add", self._router)
        for name in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            ip("netns", "exec", self._router, "sysctl", "-qw", f"net.{name}=1")

    def pod_cgroup(self, uid: str, driver: str) -> Path:
        """As the kubelet names it."""
        if driver == "cgroupfs":
            return self.cgroup / "kubepods" / "besteffort" / f"pod{uid}"
        name = f"kubepods-burstable-pod{uid.replace('-', '_')}.slice"
        return self.cgroup / "kubepods.slice" / "kubepods-burstable.slice" / name

    def sandbox(self, uid: str, driver: str = "systemd", *, host_network: bool = False) -> Sandbox:
        """A pod's network and the process that holds it; again for the same uid: the sandbox made anew."""
        cgroup = self.pod_cgroup(uid, driver)
        scope = cgroup / f"cri-containerd-{secrets.token_hex(32)}.scope"
        scope.mkdir(parents=True)
        netns, address, address6 = self._network()
        place = None if host_network else netns
        pause = start(in_place(scope, place, sys.executable, "-c", READY))
        made = Sandbox(uid, cgroup, netns, address, address6, pause)
        self._sandboxes.append(made)
        return made

    def _network(self) -> tuple[Path, str, str]:
        self._count += 1
        name, port = f"{self._prefix}-{self._count}", f"p{self._count}"
        address, six = f"10.93.0.{self._count}", f"fd93::{self._count}"
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self._router)
        ip("-n", self._router, "link", "set", port, "up")
        ip("-n", name, "link", "set", "eth0", "up")
        for family, own, gateway in (("-4", f"{address}/32", "169.254.1.1"), ("-6", f"{six}/128", "fe80::1")):
            nodad = ["nodad"] if family == "-6" else []
            ip("-n", name, "address", "add", own, "dev", "eth0", *nodad)
            ip("-n", self._router, "address", "add", gateway, "dev", port, *nodad)
            ip("-n", self._router, family, "route", "add", own, "dev", port)
            ip("-n", name, family, "route", "add", gateway, "dev", "eth0")
            ip("-n", name, family, "route", "add", "default", "via", gateway, "dev", "eth0")
        return NETNS / name, address, six

    def stop(self, sandbox: Sandbox) -> None:
        """The pod is gone from the node, its cgroup too unless a sandbox made anew uses it."""
        self._sandboxes.remove(sandbox)
        sandbox.end()
        if all(other.uid != sandbox.uid for other in self._sandboxes):
            cgroups.remove(sandbox.cgroup)

    def close(self) -> None:
        """All pods, the router, and the kubelet's part of the cgroup."""
        for sandbox in list(self._sandboxes):
            self.stop(sandbox)
        ip("netns", "delete", self._router)
        for name in ("kubepods", "kubepods.slice"):
            cgroups.remove(self.cgroup / name)


@contextlib.contextmanager
def kubelet(cgroup: Path) -> Iterator[Kubelet]:
    """One that cleans up."""
    one = Kubelet(cgroup)
    try:
        yield one
    finally:
        one.close()
