"""Istio's ztunnel as a node agent of the large mesh, where ZTUNNEL_BIN names a binary of it (release profile)."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.control.objects import pod
from tests.bench.native import BuildError
from tests.bench.process import process_cpu, process_rss
from tests.bench.results import Sample

CASES = frozenset({"ztunnel-ready-50000", "ztunnel-rss-50000"})
_READY = "http://127.0.0.1:15021/healthz/ready"
_PATIENCE = 120.0


def absent() -> str | None:
    """Why it cannot run; None if it can."""
    named = os.environ.get("ZTUNNEL_BIN")
    if not named:
        return "ZTUNNEL_BIN is not set"
    return None if os.access(named, os.X_OK) else f"ZTUNNEL_BIN={named} is not a program"


def measure(
    command: Callable[[Sequence[str]], list[str]], port: int, data: str, nodes: int
) -> dict[str, Sample]:
    """From its start until it says that it is ready, and its memory then. `command` makes an argv run where the
    control plane is."""
    with tempfile.TemporaryFile() as log:
        begin = time.monotonic()
        process = subprocess.Popen(
            command([str(Path(os.environ["ZTUNNEL_BIN"]).resolve()), "proxy", "ztunnel"]),
            env={"PATH": os.environ["PATH"], **_environment(port, data, nodes)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while subprocess.run(command(["curl", "-sf", _READY]), capture_output=True).returncode:
                if process.poll() is not None or time.monotonic() > begin + _PATIENCE:
                    log.seek(0)
                    raise BuildError(f"ztunnel did not become ready: {log.read()[-500:].decode()}")
                time.sleep(0.01)
            took = time.monotonic() - begin
            return {
                "ztunnel-ready-50000": Sample(took, process_cpu(process.pid)),
                "ztunnel-rss-50000": Sample(process_rss(process.pid)),
            }
        finally:
            process.kill()
            process.wait()


def _environment(port: int, data: str, nodes: int) -> dict[str, str]:
    own = pod(0, nodes)
    address = f"https://localhost:{port}"
    return {
        "PROXY_MODE": "dedicated",
        "PROXY_WORKLOAD_INFO": f"{own.meta.namespace}/{own.meta.name}/{own.service_account}",
        "NODE_NAME": own.node,
        "POD_NAME": "ztunnel-bench",
        "POD_NAMESPACE": "istio-system",
        "XDS_ADDRESS": address,
        "XDS_ROOT_CA": f"{data}/root.pem",
        "CA_ADDRESS": address,
        "CA_ROOT_CA": f"{data}/root.pem",
        "AUTH_TOKEN": f"{data}/token",
        "ENABLE_ORIG_SRC": "false",
        "ISTIO_META_DNS_CAPTURE": "false",
    }
