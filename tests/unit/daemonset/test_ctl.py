"""The command line's own decisions."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daemonset.ctl.errors import CommandFailed
from daemonset.ctl.inspect import listing
from daemonset.ctl.state import container_of, find_pod
from daemonset.ctl.table import table

ROOT = Path(__file__).resolve().parents[3]


def pod(namespace: str, name: str, deployment: str = "", ready: bool = True) -> dict[str, Any]:
    return {"namespace": namespace, "name": name, "deployment": deployment, "ready": ready}


def state(*pods: dict[str, Any]) -> dict[str, Any]:
    return {"pods": {f"{p['namespace']}/{p['name']}": p for p in pods}}


MANY = state(
    pod("a", "x"),
    pod("b", "x"),
    pod("default", "y"),
    pod("b", "y"),
    pod("b", "web-1", "web", ready=False),
    pod("b", "web-2", "web"),
)


@pytest.mark.parametrize(
    ("text", "namespace", "found"),
    [
        ("a/x", "", "a/x"),
        ("x", "b", "b/x"),
        ("y", "", "default/y"),
        ("web", "", "b/web-2"),
        ("b/web-1", "", "b/web-1"),
    ],
)
def test_pods_are_found(text: str, namespace: str, found: str) -> None:
    one = find_pod(MANY, text, namespace)
    assert f"{one['namespace']}/{one['name']}" == found


@pytest.mark.parametrize(("text", "error"), [("x", "ambiguous: say one of a/x, b/x"), ("z", "no pod z")])
def test_pods_that_cannot_be_found(text: str, error: str) -> None:
    with pytest.raises(CommandFailed, match=error):
        find_pod(MANY, text)


def test_first_running_container_is_meant() -> None:
    containers = {"init": {"state": "terminated"}, "main": {"state": "running"}}
    assert container_of({"name": "p", "containers": containers}, "") == "main"


def test_table_is_aligned_and_marks_empty_cells() -> None:
    assert table(("A", "LONG"), [("xyz", ""), ("", "b")]).splitlines() == ["A    LONG", "xyz  -", "-    b"]


def test_agents_that_agree_are_shown_once() -> None:
    item = {"namespace": "ns", "name": "w", "workloadIps": ["10.1.0.1"], "protocol": "HBONE"}
    text = listing("workloads", {"n1": [item], "n2": [item]})
    assert len(text.splitlines()) == 2
    assert text.splitlines()[1].startswith("all ")
    assert len(listing("workloads", {"n1": [item], "n2": []}).splitlines()) == 2
    assert "n1" in listing("workloads", {"n1": [item], "n2": []})


def ctl(*words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "daemonset.ctl", *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)} | env
    )


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("status", "--mesh", "no-such-mesh"), "there is no mesh no-such-mesh"),
        (("status", "--mesh", "../etc"), "mesh name '../etc'"),
        (("up", "/no/such/folder", "--mesh", "t-none"), "/no/such/folder: No such file"),
    ],
)
def test_mistakes_are_told_in_one_line(words: tuple[str, ...], error: str) -> None:
    if words[0] == "up" and os.geteuid() != 0:
        error = "needs root"
    done = ctl(*words)
    assert done.returncode == 1
    assert done.stderr.startswith("ambientctl: ")
    assert error in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.root
@pytest.mark.parametrize("words", [("up", "."), ("down",), ("exec", "p", "--", "true")])
def test_without_root_nothing_is_tried(words: tuple[str, ...]) -> None:
    program = "import os, sys; os.setuid(65534); from daemonset.ctl.__main__ import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert (
        done.stderr == f"ambientctl: ambientctl {words[0]} needs root: run it with sudo\n"
        or done.stderr == (f"ambientctl: {words[0]} needs root: run it with sudo\n")
    )
