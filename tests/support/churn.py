"""A node on which pods come and go: our agent's process, told of them as by Istio's CNI agent, with certificates from a
real istiodlite, an fd store, and a network namespace for each pod. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ebpf import bpf, maps
from tests.bench.process import process_cpu
from tests.interop.control.conftest import ControlPlane, agent_pod, pod
from tests.support.cni import CniAgent, CniPod
from tests.support.namespaces import Namespaces, new_namespace
from tests.support.ztunnelprocess import ROOT, ZtunnelProcess

NAME = "istiod.istio-system.svc"
OF_PODS = ("pods", "slots", "addresses", "exempt")


@dataclass
class Churn:
    """What `Node.churn` saw: seconds over all, of each acknowledgement, and CPU seconds of the agent."""

    pods: int = 0
    took: float = 0.0
    cpu: float = 0.0
    adds: list[float] = field(default_factory=list)
    deletes: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        def ms(times: list[float]) -> str:
            ordered = sorted(times)
            return f"{ordered[len(times) // 2] * 1e3:.1f}/{ordered[len(times) * 99 // 100] * 1e3:.1f} ms"

        return (
            f"{self.pods} pods in {self.took:.1f} s: {self.pods / self.took:.0f}/s, {self.cpu / self.pods * 1e3:.1f} ms of "
            f"the agent's CPU time each; added in {ms(self.adds)}, deleted in {ms(self.deletes)} (p50/p99)"
        )


@dataclass(frozen=True)
class Held:
    """What an agent has of the kernel, and of its fd store: to be as before when pods have gone."""

    descriptors: int
    namespaces: int
    stored: int
    threads: int
    pins: tuple[str, ...]
    entries: tuple[int, ...]

    def counts(self) -> tuple[int, ...]:
        """What a moment's work of the agent may change, too."""
        return self.descriptors, self.namespaces, self.stored, self.threads


@dataclass
class Node:
    """`identities`: so many service accounts have a pod here, as far as the control plane knows."""

    agent: ZtunnelProcess
    cni: CniAgent
    plane: ControlPlane
    store: subprocess.Popen[bytes]
    identities: int
    made: int = 0

    @property
    def pid(self) -> int:
        """The agent's."""
        assert self.agent.process is not None
        return self.agent.process.pid

    def cpu(self) -> float:
        """Seconds that the agent, the fd store, the control plane and this process have spent."""
        assert self.plane.process is not None
        others = sum(process_cpu(pid) for pid in (self.pid, self.store.pid, self.plane.process.pid))
        return others + time.process_time()

    @contextlib.contextmanager
    def pod(self) -> Iterator[int]:
        """One that stays; its namespace."""
        uid, fd = self._add(new_namespace(), Churn())
        try:
            yield fd
        finally:
            self._delete(uid, fd, Churn())

    def churn(self, pods: int, alive: int) -> Churn:
        """So many pods come and go, each with another identity than those before, `alive` of them at once; one request at
        a time is under way, as from Istio's CNI agent. At the end all have gone."""
        seen, there = Churn(pods), deque[tuple[str, int]]()
        ahead = Namespaces()
        try:
            began, cpu = time.monotonic(), process_cpu(self.pid)
            for _ in range(pods):
                there.append(self._add(ahead.take(), seen))
                if len(there) > alive:
                    self._delete(*there.popleft(), seen)
            while there:
                self._delete(*there.popleft(), seen)
            seen.took, seen.cpu = time.monotonic() - began, process_cpu(self.pid) - cpu
        finally:
            for _, fd in there:
                os.close(fd)
            ahead.close()
        return seen

    def _add(self, fd: int, seen: Churn) -> tuple[str, int]:
        name = f"p{self.made % self.identities}"
        uid = f"uid-churn-{self.made}"
        self.made += 1
        began = time.monotonic()
        answer = self.cni.add(CniPod(uid, name, "shop", name, Path(f"/proc/self/fd/{fd}")))
        seen.adds.append(time.monotonic() - began)
        assert answer == "", answer
        return uid, fd

    def _delete(self, uid: str, fd: int, seen: Churn) -> None:
        os.close(fd)
        began = time.monotonic()
        assert self.cni.delete(uid) == [""]
        seen.deletes.append(time.monotonic() - began)

    def held(self) -> Held:
        """At this moment."""
        (pins,) = Path(self.agent.environ["AMBIENT_PIN_DIR"]).glob("v*")
        links = open_files(self.pid)
        return Held(
            len(links),
            sum(link.startswith("net:") for link in links),
            len(open_files(self.store.pid)),
            len(os.listdir(f"/proc/{self.pid}/task")),
            tuple(sorted(each.name for each in pins.iterdir())),
            tuple(entries(pins / f"map_{name}", maps.LAYOUT[name].key_size) for name in OF_PODS),
        )

    def certificates(self) -> int:
        """How many the agent keeps, or asks for."""
        return len((self.agent.dump() or {"certificates": ()})["certificates"])

    def issued(self) -> int:
        """How many pods' certificates have come."""
        found = (self.agent.dump() or {"certificates": ()})["certificates"]
        return sum(one["state"] == "Available" for one in found)


def open_files(pid: int) -> list[str]:
    """What each descriptor of a process is."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(each))
    return found


def entries(pin: Path, key_size: int) -> int:
    """How many a pinned map has."""
    fd = bpf.pinned(pin)
    assert fd is not None
    try:
        return sum(1 for _ in bpf.map_keys(fd, key_size))
    finally:
        os.close(fd)


@contextlib.contextmanager
def node(folder: Path, identities: int) -> Iterator[Node]:
    """Everything runs, and the agent is ready; nothing is left of it."""
    with contextlib.ExitStack() as undo:
        plane = ControlPlane(folder)
        plane.put(agent_pod("n1"))
        (plane.objects / "pods.yaml").write_text(_objects(identities))
        undo.callback(plane.stop)
        plane.start()
        cni = CniAgent(folder / "zds.sock")
        undo.callback(cni.close)
        store = undo.enter_context(_store(folder / "store" / "socket"))
        agent = undo.enter_context(_agent(folder, plane, cni, folder / "store" / "socket"))
        assert cni.accept() == [""]
        agent.until(agent.ready, "ready")
        yield Node(agent, cni, plane, store, identities)


def _objects(identities: int) -> str:
    """Without the annotation of captured pods, for which agents would fetch certificates in advance."""
    made = [
        pod("shop", f"p{n}", f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}") for n in range(1, identities + 1)
    ]
    for number, each in enumerate(made):
        each["metadata"] |= {"name": f"p{number}", "uid": f"uid-p{number}", "annotations": {}}
        each["spec"]["serviceAccountName"] = f"p{number}"
    return yaml.safe_dump_all(made)


@contextlib.contextmanager
def _store(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "ebpf.fdstore", "--socket", str(path)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            deadline = time.monotonic() + 60
            while not path.exists():
                assert time.monotonic() < deadline, "no fd store"
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def _agent(folder: Path, plane: ControlPlane, cni: CniAgent, store: Path) -> Iterator[ZtunnelProcess]:
    place = folder / "agent"
    place.mkdir()
    (place / "root.pem").write_bytes(plane.root())
    (place / "token").write_text(plane.token())
    server = f"https://127.0.0.1:{plane.port}"
    settings = {
        "NODE_NAME": "n1",
        "POD_NAME": "ztunnel-n1",
        "XDS_ADDRESS": server,
        "CA_ADDRESS": server,
        "ALT_XDS_HOSTNAME": NAME,
        "ALT_CA_HOSTNAME": NAME,
        "XDS_ROOT_CA": str(place / "root.pem"),
        "CA_ROOT_CA": str(place / "root.pem"),
        "AUTH_TOKEN": str(place / "token"),
        "INPOD_UDS": str(cni.path),
        "AMBIENT_FD_STORE": str(store),
    }
    with ZtunnelProcess(place, **settings) as agent:
        yield agent
        assert "Traceback" not in agent.log, agent.log[-3000:]
