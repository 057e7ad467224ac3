"""This project: one process outbound and one inbound, the engine in C, each decision by Python on trio."""

from __future__ import annotations

import importlib
import sys

from tests.bench.cases import Case
from tests.bench.mesh_state import SERVICE_PORT
from tests.bench.namespace import VIRTUAL_IP
from tests.bench.testbed import HBONE_ADDRESS, HBONE_PORT, Session
from tests.bench.variants.base import Variant


class Ours(Variant):
    """`decide` is `ztunnel` (the real decision functions over a small snapshot) or `static` (engine alone).

    Without `ipsec_mb` OpenSSL protects all records, as where that library is not installed.
    """

    def __init__(
        self, name: str, workers: int | None = None, decide: str = "ztunnel", *, ipsec_mb: bool = True
    ) -> None:
        self.name, self.workers, self.decide, self.ipsec_mb = name, workers, decide, ipsec_mb

    def absent(self) -> str | None:
        try:
            importlib.import_module("hbone.engine")
        except ImportError as error:
            return f"the engine is not built ({error}): run make install"
        return None

    def meaningless(self, case: Case) -> str | None:
        fixed = case.workers is not None and self.workers is not None
        return "this variant has its own number of threads" if fixed else None

    def version(self) -> str | None:
        """Which library protects the records."""
        module = importlib.import_module("hbone.engine")
        engine = module.Engine(module.EngineConfig(ipsec_mb=self.ipsec_mb))
        engine.stop()
        return "records by " + ("ipsec-mb" if engine.uses_ipsec_mb else "OpenSSL")

    def start(self, session: Session, case: Case) -> None:
        files = session.bed.certificates
        common = ["--roots", str(files.roots), "--decide", self.decide]
        workers = case.workers or (1 if case.one_tunnel else self.workers)  # a tunnel belongs to one worker
        if workers is not None:
            common += ["--workers", str(workers)]
        if not self.ipsec_mb:
            common.append("--no-ipsec-mb")
        if case.cold:
            common.append("--cold")
        if case.sessions is not None:
            common += ["--sessions", str(case.sessions)]
        service = f"{VIRTUAL_IP}:{SERVICE_PORT}"
        inbound = ["--listen", HBONE_ADDRESS, "--chain", str(files.server_chain)]
        inbound += ["--key", str(files.server_key)]
        outbound = ["--listen", service, "--chain", str(files.client_chain)]
        outbound += ["--key", str(files.client_key)]
        agent = [sys.executable, "-m", "tests.bench.agent"]
        session.spawn(f"{self.name}-inbound", [*agent, "inbound", *inbound, *common], HBONE_PORT)
        session.spawn(f"{self.name}-outbound", [*agent, "outbound", *outbound, *common], SERVICE_PORT)
        session.entry = service
