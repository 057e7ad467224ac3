"""A real istiod, on loopback, against the cluster that KUBECONFIG names."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from tests.interop.control.agent import Agent
from tests.interop.istiod.binary import binary
from tests.interop.kube.conftest import Cluster
from tests.support.istiod import settings
from tests.support.ports import free_port
from tests.support.serving import wait_until

NAME = "istiod.istio-system.svc"


class Istiod:
    """The process; it shares its CA secret with whatever control plane was there before."""

    def __init__(self, cluster: Cluster, folder: Path, mesh: str = "trustDomain: cluster.local\n") -> None:
        self.cluster, self.folder, self._mesh = cluster, folder, mesh
        self.port, self.http = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Istiod:
        mesh = self.folder / "mesh"
        mesh.write_text(self._mesh)
        command = [
            *(str(binary()), "discovery", "--kubeconfig", os.environ["KUBECONFIG"]),
            *("--meshConfig", str(mesh), "--networksConfig", str(self.folder / "networks")),
            *("--namespace", "istio-system", "--domain", "cluster.local", "--shutdownDuration", "0s"),
            *("--httpAddr", f"127.0.0.1:{self.http}", "--httpsAddr", "", "--grpcAddr", ""),
            *("--secureGRPCAddr", f"127.0.0.1:{self.port}"),
            *("--monitoringAddr", f"127.0.0.1:{free_port()}"),
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **settings("istiod-test")},
            )
        wait_until(self._ready, lambda: f"istiod ready; its log: {self.log[-4000:]}")
        return self

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"istiod ended: {self.log[-4000:]}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def root(self) -> bytes:
        """The root it gives to every namespace."""
        path = "/api/v1/namespaces/istio-system/configmaps/istio-ca-root-cert"
        return str(wait_until(lambda: self.cluster.get(path), "the root")["data"]["root-cert.pem"]).encode()

    def agent(self, token: str, **fields: str) -> Agent:
        return Agent(f"127.0.0.1:{self.port}", self.root(), token, name_override=NAME, **fields)
