"""One mixed mesh for all tests of this folder, taken out of the run where there is no ztunnel to mix."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemonset.local import cleanup
from tests.interop.ztunnel.lab import Lab
from tests.interop.ztunnel.mesh import MixedMesh


@contextlib.contextmanager
def running(folder: Path, name: str, **environment: str) -> Iterator[MixedMesh]:
    """A mixed mesh whose agents get `environment`."""
    folder.mkdir()
    made = MixedMesh(name, folder)
    try:
        made.launch(**environment)
        yield made
    finally:
        made.ctl("down")
        cleanup.clean(made.name)


@pytest.fixture(scope="package")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedMesh]:
    """The mesh; tests leave it with both agents running and without policies of their own."""
    folder = tmp_path_factory.mktemp("mixed") / "objects"
    with running(folder, f"zt{os.getpid()}") as made:
        made.write("40-shapes.yaml", Path(__file__).with_name("objects.yaml").read_text())
        made.up()
        yield made


@pytest.fixture(scope="module")
def brisk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedMesh]:
    """A mesh whose certificates are renewed after seconds, and whose agents take five seconds to drain.

    150 s are little more than the two minutes by which the control plane dates certificates back, as Istio's
    does: half life comes 15 s after issue.
    """
    folder = tmp_path_factory.mktemp("brisk") / "objects"
    environment = {"SECRET_TTL": "150s", "TERMINATION_GRACE_PERIOD_SECONDS": "6"}
    with running(folder, f"zb{os.getpid()}", **environment) as made:
        yield made


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedMesh]:
    """A mesh whose agents take half a minute to drain: time enough to look at one that does."""
    folder = tmp_path_factory.mktemp("patient") / "objects"
    with running(folder, f"zp{os.getpid()}", TERMINATION_GRACE_PERIOD_SECONDS="31") as made:
        yield made


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One engine and one ztunnel, without a mesh."""
    with Lab(tmp_path_factory.mktemp("lab")) as found:
        yield found
        assert found.host.alive
        assert found.rust.poll() is None, "the ztunnel ended"
