"""Istio's istiod, istiodlite and one set of objects, all on one API server; left out where there is none."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.istiod.objects import Applied, applied, crds_present
from tests.interop.istiod.process import Istiod
from tests.interop.kube.conftest import Cluster, KubeServing
from tests.interop.kube.conftest import cluster as cluster


@pytest.fixture(scope="package")
def istiod(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Istiod]:
    """One for all tests of this folder."""
    one = Istiod(cluster, tmp_path_factory.mktemp("istiod"))
    try:
        yield one.start()
    finally:
        one.stop()


@pytest.fixture(scope="package")
def istiodlite(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeServing]:
    """Ours, with the rights of its own service account."""
    one = KubeServing(cluster, tmp_path_factory.mktemp("istiodlite")).start()
    yield one
    assert one.stop() == 0, one.log
    assert "Traceback" not in one.log, one.log


@pytest.fixture(scope="package")
def gold(cluster: Cluster) -> Iterator[Applied]:
    """The objects of objects.yaml."""
    crds_present(cluster)
    with applied(cluster) as one:
        yield one


@pytest.fixture
def pod_netns() -> Iterator[Path]:
    """A network namespace with an address of a gold pod."""
    name = f"zt-istiod-{os.getpid()}"
    words = [
        ("netns", "add", name),
        ("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "outside"),
        ("-n", name, "link", "set", "outside", "up"),
        ("-n", name, "link", "set", "eth0", "up"),
        ("-n", name, "address", "add", "10.244.1.5/32", "dev", "eth0"),
    ]
    for command in words:
        subprocess.run(["ip", *command], check=True, capture_output=True, timeout=60)
    yield Path("/run/netns") / name
    subprocess.run(["ip", "netns", "delete", name], check=True, capture_output=True, timeout=60)
