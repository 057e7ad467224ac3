"""A node and three pods as network namespaces, joined as point-to-point CNI plugins join them.

Everything made carries `PREFIX`, and `Lab.close` removes it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import selectors
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest

from ebpf import netns
from ebpf.capture import EnrolledPod, PodNetwork
from ebpf.dns import DnsSockets
from tests.netns.capture import apps
from tests.netns.capture.apps import MPTCP, Peer, plain

PREFIX = f"alt-cap-{os.getpid()}"
ROOT = Path(__file__).resolve().parents[3]
NODE_V4, NODE_V6 = "169.254.1.1", "fd77:1::1"
SECOND_NODE_V4 = "169.254.1.2"


def sh(command: str) -> str:
    """Run, or fail with what it said."""
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def cgroup2_mount() -> Path:
    """Where cgroup2 is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise AssertionError("no cgroup2 mount in /proc/mounts: mount one")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Poll a condition until it holds."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"did not come true within {seconds} s: {what}"
        threading.Event().wait(0.01)
    return value


both_variants = pytest.mark.parametrize("variant", ["B", "C"], indirect=True, scope="module")
"""For a module whose tests hold for either variant of capture."""


class App:
    """A process in a pod (see apps.py)."""

    def __init__(self, namespace: str, cgroup: Path) -> None:
        command = [sys.executable, "-m", "tests.netns.capture.apps", namespace, str(cgroup)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        self.pid = self._process.pid
        self.call(apps.open_descriptors)  # it answers from inside namespace and cgroup

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function of apps.py there; AssertionError with its error."""
        ok, result = self.start(function, *arguments)()
        assert ok, f"{function.__name__}{arguments}: {result}"
        return result

    def start(self, function: Callable[..., Any], *arguments: Any) -> Callable[[], tuple[bool, Any]]:
        """Begin a call; the returned function waits for (ok, result)."""
        assert self._process.stdin
        assert self._process.stdout
        pickle.dump((function.__name__, arguments), self._process.stdin)
        self._process.stdin.flush()
        return lambda: pickle.load(self._process.stdout)  # type: ignore[arg-type]  # noqa: S301

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)
        assert self._process.stdout
        self._process.stdout.close()


class Servers:
    """Threads that accept on listening sockets and tell every client what they see."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, wake = socket.socketpair()
        self._selector.register(wake, selectors.EVENT_READ)
        self._woken = wake
        self._lock = threading.Lock()
        self.seen: list[tuple[str, Peer, Peer]] = []
        self._jobs: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def serve(self, listener: socket.socket, tag: str) -> None:
        """Answer on a TCP listener (a copy is kept) or a UDP socket."""
        copy = listener.dup()
        copy.setblocking(False)
        handler = self._datagram if copy.type == socket.SOCK_DGRAM else self._accept
        self._do(lambda: self._selector.register(copy, selectors.EVENT_READ, (handler, tag)))

    def serve_names(self, dns: DnsSockets, tag: str) -> None:
        """Stand in for an agent's resolver: answers say whom the question was for. Until the socket closes."""

        def answer(_receiver: socket.socket, tag: str) -> None:
            question = dns.next()
            assert question
            to, port = question.asked
            dns.answer(question, f"{tag}|{to} {port}".encode())
            dns.done()

        self.serve(dns.tcp, tag)
        copy = dns.udp.dup()
        self._do(lambda: self._selector.register(copy, selectors.EVENT_READ, (answer, tag)))

    def forget(self, tag: str) -> None:
        """Close the listeners of a tag."""
        done = threading.Event()

        def job() -> None:
            for key in list(self._selector.get_map().values()):
                if key.data and key.data[0] != self._answer and key.data[1] == tag:
                    self._selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
            done.set()

        self._do(job)
        assert done.wait(60)

    def reset(self, tag: str) -> None:
        """Reset the connections that a tag's listeners accepted."""
        done = threading.Event()

        def job() -> None:
            for key in list(self._selector.get_map().values()):
                if key.data and key.data[0] == self._answer and key.data[1] == tag:
                    self._selector.unregister(key.fileobj)
                    linger = struct.pack("=ii", 1, 0)
                    key.fileobj.setsockopt(  # type: ignore[union-attr]
                        socket.SOL_SOCKET, socket.SO_LINGER, linger
                    )
                    key.fileobj.close()  # type: ignore[union-attr]
            done.set()

        self._do(job)
        assert done.wait(60)

    def close(self) -> None:
        """Stop, and close everything."""

        def job() -> None:
            for key in list(self._selector.get_map().values()):
                self._selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]

        self._do(job)
        self._thread.join(60)
        self._selector.close()
        self._wake.close()

    def _do(self, job: Callable[[], Any]) -> None:
        with self._lock:
            self._jobs.append(job)
        self._wake.send(b"!")

    def _run(self) -> None:
        while self._selector.get_map():
            for key, _ in self._selector.select():
                if key.data is None:
                    self._woken.recv(100)
                    with self._lock:
                        jobs, self._jobs = self._jobs, []
                    for job in jobs:
                        job()
                elif key.fileobj.fileno() >= 0:  # type: ignore[union-attr]
                    handler, tag = key.data
                    with contextlib.suppress(BlockingIOError, ConnectionError):
                        handler(key.fileobj, tag)

    def _accept(self, listener: socket.socket, tag: str) -> None:
        accepted, _ = listener.accept()
        accepted.setblocking(False)
        with contextlib.suppress(OSError):
            self.seen.append((tag, plain(accepted.getsockname()), plain(accepted.getpeername())))
        self._selector.register(accepted, selectors.EVENT_READ, (self._answer, tag))

    def _answer(self, accepted: socket.socket, tag: str) -> None:
        try:
            asked = accepted.recv(1000)
        except ConnectionError:
            asked = b""
        if asked:
            local, peer = plain(accepted.getsockname()), plain(accepted.getpeername())
            accepted.send(f"{tag}|{local[0]} {local[1]}|{peer[0]} {peer[1]}".encode())
        else:
            self._selector.unregister(accepted)
            accepted.close()

    def _datagram(self, receiver: socket.socket, tag: str) -> None:
        _, sender = receiver.recvfrom(1000)
        receiver.sendto(tag.encode(), sender)


class Pod:
    """A pod's namespace and addresses."""

    def __init__(self, index: int) -> None:
        self.name = f"{PREFIX}-p{index}"
        self.v4, self.v6 = f"10.77.0.{10 + index}", f"fd77::{10 + index}"
        self.fd = -1

    def own(self, version: int) -> str:
        """Its address of an IP version."""
        return self.v4 if version == 4 else self.v6

    def network(self, **changes: Any) -> PodNetwork:
        """As the agent would describe it."""
        nodes: tuple[IPv4Address | IPv6Address, ...] = (ip_address(NODE_V4), ip_address(NODE_V6))
        return replace(PodNetwork(self.fd, netns.addresses(self.fd), nodes), **changes)

    def listen(
        self, address: Peer, protocol: int = 0, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> socket.socket:
        """A listening socket (or a bound UDP socket) in the pod."""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with netns.inside(self.fd):
            made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        if kind == socket.SOCK_STREAM:
            made.listen(256)
        return made


class Lab:
    """The node, its pods, a cgroup and a BPF file system; context manager."""

    def __init__(self, pods: int = 3) -> None:
        self.node = f"{PREFIX}-n"
        self.pods = [Pod(index) for index in range(pods)]
        self.cgroup = cgroup2_mount() / PREFIX
        self.pod_cgroup = self.cgroup / "pods"
        self.agent_cgroup = self.cgroup / "agent"
        self.directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-"))
        self.pin_dir = self.directory / "bpf"
        self.cache_dir = self.directory / "cache"
        self.servers = Servers()
        self._apps: list[App] = []

    def __enter__(self) -> Lab:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _build(self) -> None:
        self.pin_dir.mkdir()
        sh(f"mount -t bpf bpf {self.pin_dir}")
        for directory in (self.cgroup, self.pod_cgroup, self.agent_cgroup):
            directory.mkdir()
        for name in (self.node, *(pod.name for pod in self.pods)):
            sh(f"ip netns add {name}; ip -n {name} link set lo up")
        sysctl = "net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
        sh(f"ip netns exec {self.node} sysctl -qw {sysctl}")
        for index, pod in enumerate(self.pods):
            self.join(index, pod)
            pod.fd = os.open(f"/run/netns/{pod.name}", os.O_RDONLY | os.O_CLOEXEC)

    def join(self, index: int, pod: Pod) -> None:
        """A veth between node and pod, with addresses and routes."""
        sh(f"""
            sysctl() {{ ip netns exec {pod.name} sysctl -qw "$@"; }}
            sysctl net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1
            sysctl net.ipv6.conf.default.addr_gen_mode=1
            ip -n {self.node} link add v{index} type veth peer name eth0 netns {pod.name}
            ip -n {self.node} addr add {NODE_V4}/32 dev v{index}
            ip -n {self.node} addr add {SECOND_NODE_V4}/32 dev v{index}
            ip -n {self.node} addr add {NODE_V6}/128 dev v{index} nodad
            ip -n {self.node} link set v{index} up
            ip -n {self.node} route add {pod.v4}/32 dev v{index}
            ip -n {self.node} -6 route add {pod.v6}/128 dev v{index}
            ip -n {pod.name} addr add {pod.v4}/32 dev eth0
            ip -n {pod.name} addr add {pod.v6}/128 dev eth0 nodad
            ip -n {pod.name} link set eth0 up
            ip -n {pod.name} route add {NODE_V4} dev eth0 scope link
            ip -n {pod.name} route add default via {NODE_V4} dev eth0 src {pod.v4}
            ip -n {pod.name} -6 route add {NODE_V6} dev eth0
            ip -n {pod.name} -6 route add default via {NODE_V6} dev eth0 src {pod.v6}
        """)

    def app(self, namespace: Pod | str, cgroup: Path | None = None) -> App:
        """Start a process in a pod (or the node) and below the captured cgroup."""
        name = namespace.name if isinstance(namespace, Pod) else namespace
        self._apps.append(App(name, cgroup or self.pod_cgroup))
        return self._apps[-1]

    def forget_app(self, app: App) -> None:
        """The test has closed it."""
        self._apps.remove(app)

    def serve_pods(self) -> None:
        """Applications in every pod: 8080 on any address, and what the inbound tests need in the first."""
        for pod in self.pods:
            for any_address in ("0.0.0.0", "::"):
                self._serve(pod, (any_address, 8080), f"app-{pod.name}")
                self._serve(pod, (any_address, 5353), "udp", kind=socket.SOCK_DGRAM)
        first = self.pods[0]
        self._serve(first, (first.v4, 9001), "specific")
        self._serve(first, (first.v6, 9001), "specific")
        self._serve(first, ("127.0.0.1", 9002), "loopback")
        self._serve(first, ("0.0.0.0", 9003), "mptcp", protocol=MPTCP)

    def _serve(self, pod: Pod, address: Peer, tag: str, **how: Any) -> None:
        with pod.listen(address, **how) as listener:
            self.servers.serve(listener, tag)

    def serve_agent(self, pod: EnrolledPod) -> None:
        """Stand in for the agent on a pod's listeners."""
        self.servers.serve(pod.outbound, "outbound")
        self.servers.serve(pod.inbound, "inbound")
        self.servers.serve(pod.hbone, "hbone")

    def stop_agent(self) -> None:
        """Close the stand-in's listeners."""
        for tag in ("outbound", "inbound", "hbone"):
            self.servers.forget(tag)

    def pins(self) -> list[Path]:
        """What is pinned; the kernel's own *.debug files and what is kept of self-tests do not count."""
        return sorted(
            path for path in self.pin_dir.iterdir() if path.suffix != ".debug" and not path.is_symlink()
        )

    def close(self) -> None:
        """Remove everything."""
        for app in self._apps:
            app.close()
        self.servers.close()
        for pod in self.pods:
            if pod.fd >= 0:
                os.close(pod.fd)
        for name in (*(pod.name for pod in self.pods), self.node):
            if Path(f"/run/netns/{name}").exists():
                sh(f"ip netns del {name}")
        if self.pin_dir.is_mount():
            sh(f"umount {self.pin_dir}")
        for directory in (self.pod_cgroup, self.agent_cgroup, self.cgroup):
            with contextlib.suppress(FileNotFoundError):
                wait_for(functools.partial(_gone, directory), f"{directory} is empty")
        sh(f"rm -rf {self.directory}")


def _gone(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def network_state(pod: Pod) -> str:
    """All of a pod's rules, routes, addresses and sysctls."""
    listed = sh(f"""
        for family in -4 -6; do
            ip -n {pod.name} $family rule
            ip -n {pod.name} $family route show table all
            ip -n {pod.name} $family addr
        done
    """)
    return listed + sh(f"ip netns exec {pod.name} sysctl -a 2>/dev/null | grep -E '^net[.]' || true")
