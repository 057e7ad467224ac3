"""Finding pods' processes in directories of cgroups; networks themselves need root (tests/netns/kube)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.ztunnel.enrol_objects import UID
from ztunnel.enrol.finder import Finder, Witnesses, places
from ztunnel.enrol.netchoice import Undecided

HOME = "none of its processes is in a network of its own yet"


def reason(finder: Finder) -> str:
    found = finder.look({UID: ()})[UID]
    assert isinstance(found, Undecided)
    return found.reason


def container(parent: Path, *pids: int, name: str = "3fc1") -> None:
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))


@pytest.mark.parametrize(
    "place",
    [
        f"kubepods/pod{UID}",
        f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice",
        f"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UID.replace('-', '_')}.slice",
        f"pids/kubepods/besteffort/pod{UID}",
    ],
)
def test_a_pods_directory_is_found_wherever_the_kubelet_keeps_it(tmp_path: Path, place: str) -> None:
    assert reason(Finder([tmp_path])) == "it has no cgroup yet"
    container(tmp_path / place, os.getpid())
    assert reason(Finder([tmp_path])) == HOME


def test_a_pod_that_comes_later_is_found_among_the_others(tmp_path: Path) -> None:
    (tmp_path / "kubepods" / "burstable").mkdir(parents=True)
    finder = Finder([tmp_path])
    assert reason(finder) == "it has no cgroup yet"
    container(tmp_path / "kubepods" / "burstable" / f"pod{UID}", os.getpid())
    assert reason(finder) == HOME


def test_processes_of_another_pid_namespace_show_as_zero_and_the_advice_says_what_to_do(
    tmp_path: Path,
) -> None:
    container(tmp_path / "kubepods" / f"pod{UID}", 0)
    assert (
        reason(Finder([tmp_path]))
        == "its processes cannot be seen from here; the agent's pod needs hostPID: true"
    )


def test_a_process_that_has_ended_is_none(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(60)
    container(tmp_path / "kubepods" / f"pod{UID}", child.pid)
    assert reason(Finder([tmp_path])) == HOME


def test_where_to_look() -> None:
    table = "cgroup2 /a cgroup2 rw 0 0\ncgroup /b cgroup rw 0 0\n"
    named, cgroup = (Path("/x"), Path("/y")), Path("/z")
    assert places(named, cgroup, table) == named
    assert places((), cgroup, table) == (cgroup,)
    assert places(named, None, table) == named
    assert places((), None, table) == (Path("/a"), Path("/b"))


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_the_end_of_a_witness_is_told_once(child: subprocess.Popen[bytes]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    witnesses = Witnesses()
    witnesses.put("web", os.pidfd_open(os.getpid()))
    witnesses.put("web", os.pidfd_open(child.pid))
    witnesses.put("other", os.pidfd_open(os.getpid()))
    assert witnesses.ended() == []
    child.kill()
    child.wait(60)
    deadline = time.monotonic() + 60
    while not (ended := witnesses.ended()):
        assert time.monotonic() < deadline
    assert ended == ["web"]
    assert witnesses.ended() == []
    witnesses.close()
    assert len(os.listdir("/proc/self/fd")) == before
