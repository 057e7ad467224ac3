"""What the agent says when it cannot start, and that it leaves nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ztunnel.capabilities import cgroup2_mount

pytestmark = pytest.mark.root
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def cgroup() -> Iterator[Path]:
    mount = cgroup2_mount(Path("/proc/mounts").read_text())
    assert mount is not None
    made = mount / f"zt-start-{os.getpid()}"
    made.mkdir()
    yield made
    made.rmdir()


def ztunnel(cgroup: Path, pins: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "NODE_NAME": "n1",
        "AMBIENT_CGROUP": str(cgroup),
        "AMBIENT_PIN_DIR": str(pins),
        "INPOD_UDS": "",
        "XDS_ADDRESS": "",
        **environ,
    }
    command = [sys.executable, "-m", "ztunnel", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("setting", ["STATS_PORT", "READINESS_PORT", "ADMIN_PORT"])
def test_a_taken_port_is_named_before_anything_is_touched(cgroup: Path, tmp_path: Path, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"STATS_PORT": "0", "READINESS_PORT": "0", "ADMIN_PORT": "0", setting: str(port)}
        done = ztunnel(cgroup, tmp_path / "pins", **ports)
    assert done.returncode == 1
    assert f":{port}: Address already in use; stop what uses the port or set {setting}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "pins").exists()


def test_pins_need_a_bpf_file_system(cgroup: Path, tmp_path: Path) -> None:
    ports = {"STATS_PORT": "0", "READINESS_PORT": "0", "ADMIN_PORT": "0"}
    done = ztunnel(cgroup, tmp_path, **ports)
    assert done.returncode == 1
    assert done.stderr.startswith("ztunnel: bpffs_missing")
    assert done.stderr.count("\n") == 1


def test_cleanup_of_nothing_says_so(cgroup: Path, tmp_path: Path) -> None:
    done = ztunnel(cgroup, tmp_path / "pins", "cleanup")
    assert (done.returncode, done.stdout) == (0, "nothing to remove\n")
