"""The Kubernetes manifests and the Containerfile fit the programs that they start."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from ztunnel.config import SETTINGS, Config, load

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "daemonset" / "kubernetes"


def pod_spec(name: str) -> dict[str, Any]:
    for file in (FOLDER / "base").glob("*.yaml"):
        for body in yaml.safe_load_all(file.read_text()):
            if body["kind"] in ("DaemonSet", "Deployment") and body["metadata"]["name"] == name:
                spec: dict[str, Any] = body["spec"]["template"]["spec"]
                return spec
    raise AssertionError(name)


def agent_config() -> Config:
    env = pod_spec("ztunnel")["containers"][0]["env"]
    return load({one["name"]: one.get("value", "told") for one in env})


def test_the_agents_settings_are_settings_and_can_be_read() -> None:
    known = {name for row in SETTINGS for name in (row.env, *row.also)}
    names = [one["name"] for one in pod_spec("ztunnel")["containers"][0]["env"]]
    assert set(names) <= known
    assert agent_config().enrol == "auto"


@pytest.mark.parametrize("name", ["cgroup", "fd_store", "pin_dir", "inpod_uds"])
def test_paths_of_the_host_are_mounted_where_the_agent_looks(name: str) -> None:
    path = getattr(agent_config(), name)
    spec = pod_spec("ztunnel")
    hosts = {one["name"] for one in spec["volumes"] if "hostPath" in one}
    mounts = [Path(m["mountPath"]) for m in spec["containers"][0]["volumeMounts"] if m["name"] in hosts]
    assert any(path.is_relative_to(mount) for mount in mounts)


def test_agent_and_fd_store_mean_the_same_socket_of_the_host() -> None:
    def folder(name: str) -> tuple[str, str]:
        spec = pod_spec(name)
        (volume,) = [one for one in spec["volumes"] if one["name"] == "fdstore"]
        (mount,) = [one for one in spec["containers"][0]["volumeMounts"] if one["name"] == "fdstore"]
        return volume["hostPath"]["path"], mount["mountPath"]

    assert folder("ztunnel") == folder("ztunnel-fdstore")
    assert str(agent_config().fd_store) in pod_spec("ztunnel-fdstore")["containers"][0]["command"]


def test_every_file_of_the_kustomizations_is_there() -> None:
    for part in ("base", "crds"):
        listed = yaml.safe_load((FOLDER / part / "kustomization.yaml").read_text())["resources"]
        present = {file.name for file in (FOLDER / part).glob("*.yaml")} - {"kustomization.yaml"}
        assert set(listed) <= present


def test_the_image_holds_every_package_and_the_commands_of_the_manifests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    text = (FOLDER / "Containerfile").read_text()
    copied = {part for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for part in line.split()}
    assert all((ROOT / part).exists() for part in copied)
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages | {"pyproject.toml", "Makefile", project["project"]["readme"]} <= copied
    assert set(project["project"]["license-files"]) <= copied
    assert "make install" in text
    commands = {pod_spec(name)["containers"][0]["command"][0] for name in ("ztunnel", "istiodlite")}
    assert commands <= project["project"]["scripts"].keys()
