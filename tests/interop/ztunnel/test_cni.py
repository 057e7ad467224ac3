"""The scripted CNI agent of tests/support against Istio's ztunnel: the script asks what a ztunnel expects, so what
ours answers to it (tests/netns/cni) is what Istio's answers."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.interop.ztunnel.binary import binary
from tests.support import pki
from tests.support.cni import CniAgent, CniPod
from tests.support.ports import wait_until

pytestmark = [pytest.mark.root, pytest.mark.ztunnel]
NETNS = Path("/run/netns")
MakeNetns = Callable[[str], Path]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=60)


@pytest.fixture
def netns() -> Iterator[MakeNetns]:
    made: list[str] = []

    def make(kind: str) -> Path:
        name = f"zc{os.getpid()}-{len(made)}-{kind}"
        ip("netns", "add", name)
        made.append(name)
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "outside")
        ip("-n", name, "link", "set", "outside", "up")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "address", "add", f"10.92.0.{len(made)}/32", "dev", "eth0")
        return NETNS / name

    yield make
    for name in made:
        ip("netns", "delete", name)


@pytest.fixture
def cni(tmp_path: Path) -> Iterator[CniAgent]:
    one = CniAgent(tmp_path / "zds.sock")
    yield one
    one.close()


class Rust:
    """Istio's ztunnel for a node, with its configuration from a file and a CA that is away."""

    def __init__(self, folder: Path, home: Path, uds: Path) -> None:
        self.home = home
        state, root, token = folder / "state.yaml", folder / "root.pem", folder / "token"
        token.write_text("none")
        state.write_text(yaml.safe_dump({"workloads": [], "services": [], "policies": []}))
        root.write_bytes(pki.Authority.root().pem)
        environment = {
            "PATH": os.environ["PATH"],
            "NODE_NAME": "n1",
            "PROXY_MODE": "shared",
            "LOCAL_XDS_PATH": str(state),
            "XDS_ADDRESS": "",
            "CA_ADDRESS": "https://127.0.0.1:1",
            "CA_ROOT_CA": str(root),
            "AUTH_TOKEN": str(token),
            "INPOD_UDS": str(uds),
            "INPOD_ENABLED": "true",
            "TERMINATION_GRACE_PERIOD_SECONDS": "2",
        }
        with (folder / "rust.log").open("wb") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", home.name, str(binary()), "proxy", "ztunnel"],
                env=environment,
                stdout=log,
                stderr=log,
            )

    def known(self) -> set[str]:
        address = "http://127.0.0.1:15000/config_dump"
        command = ["ip", "netns", "exec", self.home.name, "curl", "-sf", address]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        return set(json.loads(done.stdout)["workloadState"]) if done.stdout else set()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@pytest.fixture
def rust(tmp_path: Path, netns: MakeNetns, cni: CniAgent) -> Iterator[Rust]:
    one = Rust(tmp_path, netns("home"), cni.path)
    yield one
    one.stop()


def pod(name: str, where: Path) -> CniPod:
    return CniPod(f"uid-{name}", name, "shop", name, where)


def test_snapshot_changes_and_keep(rust: Rust, cni: CniAgent, netns: MakeNetns) -> None:
    kept, gone = pod("kept", netns("kept")), pod("gone", netns("gone"))
    cni.pods = {one.uid: one for one in (kept, gone)}
    assert cni.accept() == ["", "", ""]
    assert rust.known() == {kept.uid, gone.uid}
    late = pod("late", netns("late"))
    assert [cni.add(late), cni.add(late)] == ["", ""]
    assert cni.delete(late.uid) == [""]
    cni.close()
    again = CniAgent(cni.path, {kept.uid: dataclasses.replace(kept, netns=None)})
    try:
        assert again.accept() == ["", ""]
        wait_until(lambda: rust.known() == {kept.uid}, "the pod that was not named is left", timeout=60)
        assert again.connections[0].alive()
    finally:
        again.close()
