"""A running agent without control plane, a CNI agent, and namespaces that stand for pods."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cni import CniAgent, CniPod
from tests.support.ztunnelprocess import ZtunnelProcess

NETNS = Path("/run/netns")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=60)


@pytest.fixture
def cni(tmp_path: Path) -> Iterator[CniAgent]:
    one = CniAgent(tmp_path / "zds.sock")
    yield one
    one.close()


@pytest.fixture
def agent(tmp_path: Path, cni: CniAgent) -> Iterator[ZtunnelProcess]:
    folder = tmp_path / "agent"
    folder.mkdir()
    settings = {"NODE_NAME": "n1", "XDS_ADDRESS": "", "INPOD_UDS": str(cni.path)}
    with ZtunnelProcess(folder, **settings) as one:
        yield one
        assert "Traceback" not in one.log, one.log


@pytest.fixture
def pod() -> Iterator[Callable[..., CniPod]]:
    """Makes pods: a namespace with an address, and what the CNI agent knows of it."""
    made: list[str] = []

    def make(name: str, *, uid: str = "") -> CniPod:
        netns = f"zt-cni-{os.getpid()}-{len(made)}"
        ip("netns", "add", netns)
        made.append(netns)
        ip("-n", netns, "link", "set", "lo", "up")
        ip("-n", netns, "link", "add", "eth0", "type", "veth", "peer", "name", "outside")
        ip("-n", netns, "link", "set", "outside", "up")
        ip("-n", netns, "link", "set", "eth0", "up")
        ip("-n", netns, "address", "add", f"10.91.0.{len(made)}/32", "dev", "eth0")
        return CniPod(uid or f"uid-{name}", name, "shop", name, NETNS / netns)

    yield make
    for netns in made:
        ip("netns", "delete", netns)
