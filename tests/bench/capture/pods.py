"""Two pods of one node as network namespaces, joined by veth links and routes as point-to-point CNI plugins do it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from daemonset.local import cgroups
from tests.bench.namespace import CLIENT, PREFIX, SERVER, SETTINGS, VIRTUAL_IP

GATEWAY = "169.254.1.1"
ADDRESSES = {"client": CLIENT, "server": SERVER}

_POD = """
ip netns add {netns}
ip -n {netns} link set lo up
ip -n {node} link add {pod} type veth peer name eth0 netns {netns}
ip -n {node} address add {gateway}/32 dev {pod}
ip -n {node} link set {pod} up
ip -n {node} route add {address}/32 dev {pod}
ip -n {netns} address add {address}/32 dev eth0
ip -n {netns} link set eth0 up
ip -n {netns} route add {gateway} dev eth0 scope link
ip -n {netns} route add default via {gateway} dev eth0 src {address}
"""


def sh(script: str, netns: str | None = None) -> str:
    """Runs a script, in a namespace if one is named; CalledProcessError with what it said."""
    inside = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
    return subprocess.run([*inside, "sh", "-ec", script], check=True, capture_output=True).stdout.decode()


class Pods:
    """Context manager: node, client and server; a cgroup for all that runs in the pods; a BPF file system.

    `netns` gives the namespaces' names by "node", "client" and "server".
    """

    def __init__(self, *, first: bool = False, label: str = "") -> None:
        """`first`: what runs in the pods goes before all ordinary processes of the machine. `label`: tells several
        apart that are there at the same time."""
        self.first = first
        self.netns = {name: f"{PREFIX}{os.getpid()}-{label}{name}" for name in ("node", *ADDRESSES)}
        self.cgroup = cgroups.find() / f"{PREFIX}{os.getpid()}-{label}pods"
        self.pin_dir = Path(tempfile.mkdtemp(prefix=PREFIX))

    def __enter__(self) -> Pods:
        try:
            self.cgroup.mkdir()
            sh(f"mount -t bpf bpf {self.pin_dir}")
            node = self.netns["node"]
            sh(f"ip netns add {node}; ip -n {node} link set lo up")
            sh("echo 1 > /proc/sys/net/ipv4/ip_forward", node)
            for pod, address in ADDRESSES.items():
                self._make(pod, address)
            sh(f"ip address add {VIRTUAL_IP}/32 dev lo", self.netns["client"])
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _make(self, pod: str, address: str) -> None:
        names = {"netns": self.netns[pod], "node": self.netns["node"], "pod": pod}
        sh(_POD.format(**names, address=address, gateway=GATEWAY))
        sh("".join(f"echo '{v}' > /proc/sys/{k};" for k, v in SETTINGS.items()), self.netns[pod])

    def remove(self) -> None:
        """Everything that was made; also what was made in part."""
        for name in self.netns.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["umount", str(self.pin_dir)], capture_output=True)
        for directory in (self.pin_dir, self.cgroup):
            with suppress(OSError):
                directory.rmdir()

    def open(self, pod: str) -> int:
        """A descriptor of the pod's namespace."""
        return os.open(f"/run/netns/{self.netns[pod]}", os.O_RDONLY | os.O_CLOEXEC)

    def command(self, pod: str, argv: list[str], cpu: int | None) -> list[str]:
        """`argv` in the pod: its namespace, its cgroup, perhaps one CPU. Every wrapper execs."""
        join = f'echo 0 > {self.cgroup}/cgroup.procs; exec "$@"'
        pinned = [] if cpu is None else ["taskset", "-c", str(cpu)]
        first = ["chrt", "--rr", "1"] if self.first else []
        inside = ["nsenter", f"--net=/run/netns/{self.netns[pod]}"]
        return ["sh", "-ec", join, "sh", *inside, *first, *pinned, *argv]
