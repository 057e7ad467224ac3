"""The harness with the real engine and the agent's real path, once: every part has to fit the others."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from daemonset.local import cgroups
from tests.bench.__main__ import main
from tests.bench.results import problems


@pytest.mark.root
def test_group_hbone_measures_ours_against_none_and_leaves_nothing_behind(tmp_path: Path) -> None:
    arguments = ["--only", "hbone", "--quick", "--cases", "rr-1-64b", "--variants", "ours,none"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "hbone.json").read_text())
    assert problems(result) == []
    (row,) = result["rows"]
    assert row["median"]["ours"] > 0
    assert row["median"]["none"] > 0
    assert row["cpu_s_per_unit"]["ours"] > 0
    assert "failed" not in row
    names = subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
    assert f"albench-{os.getpid()}-" not in names


@pytest.mark.root
def test_group_capture_measures_capture_and_the_direct_path_and_leaves_nothing_behind(tmp_path: Path) -> None:
    cases = "capture-connect,same-node-direct-rr-1"
    arguments = ["--only", "capture", "--quick", "--cases", cases, "--variants", "ours,none,redirect"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "capture.json").read_text())
    assert problems(result) == []
    capture, direct = result["rows"]
    assert all(capture["median"][name] > 0 for name in ("ours", "none", "redirect"))
    assert all(direct["median"][name] > 0 for name in ("ours", "none"))
    assert "failed" not in capture
    assert "failed" not in direct
    names = subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
    assert f"albench-{os.getpid()}-" not in names
    assert not (cgroups.find() / f"albench-{os.getpid()}").exists()
