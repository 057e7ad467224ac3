"""The `ztunnel` command: usage, versions, and one-line errors before anything is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ztunnel.capabilities import cgroup2_mount, kernel_tls, missing_capabilities

ROOT = Path(__file__).resolve().parents[3]


def ztunnel(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(
        [sys.executable, "-m", "ztunnel", *arguments], env=env, capture_output=True, text=True, timeout=60
    )


def test_help_lists_commands_and_settings() -> None:
    done = ztunnel("--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("proxy", "version", "cleanup", "NODE_NAME", "AMBIENT_CGROUP"))


def test_version_is_one_line() -> None:
    done = ztunnel("version")
    assert done.returncode == 0
    assert done.stdout.startswith("ztunnel ")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("proxy", "ztunnel")])
def test_a_missing_setting_is_one_line_on_stderr(arguments: tuple[str, ...]) -> None:
    done = ztunnel(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert (
        done.stderr == "ztunnel: NODE_NAME must be set: name of this node; pods of other nodes are not ours\n"
    )


def test_a_bad_log_level_is_one_line() -> None:
    done = ztunnel(NODE_NAME="n1", LOG_LEVEL="loud")
    assert done.returncode == 1
    assert done.stderr.startswith("ztunnel: LOG_LEVEL: 'loud' is no log level")
    assert done.stderr.count("\n") == 1


def test_unknown_commands_are_wrong_usage() -> None:
    assert ztunnel("dance").returncode == 2


def test_missing_capabilities_are_named() -> None:
    assert missing_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n") == []
    assert missing_capabilities("CapEff:\t0000000000003000\n") == ["CAP_SYS_ADMIN"]
    assert len(missing_capabilities("")) == 3


def test_the_cgroup2_mount_is_found_wherever_it_is() -> None:
    mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw 0 0\n"
    assert cgroup2_mount(mounts) == Path("/sys/fs/cgroup/uni fied")
    assert cgroup2_mount("proc /proc proc rw 0 0\n") is None


def test_kernel_tls_is_what_the_kernel_lists() -> None:
    """Asking loads the module where there is one; the list then has it."""
    offered = kernel_tls()
    assert offered == ("tls" in Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split())
