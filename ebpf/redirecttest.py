"""The short cut tried for real before it is relied on: in a child process (`ebpf.redirecttrial`) with namespaces and a BPF
file system of its own, so that nothing is left behind however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from ebpf import bytecode
from ebpf.errors import CaptureError, CaptureReason

_TIMEOUT: Final = 30.0


def run(collection: bytecode.Collection, mounted: Path) -> None:
    """CaptureError if packets of a direct connection do not come by the short cut, or others do.

    `mounted`: a directory, which the child covers with a file system of its own. Some 0.3 s.
    """
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ebpf.redirecttrial", str(mounted)],
            input=bytecode.encode(collection),
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        told = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        problem = told[-1] if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = f"did not finish: {error}"
    if problem:
        raise CaptureError(
            CaptureReason.SELF_TEST_FAILED,
            f"redirect_peer: {problem}",
            "direct connections go by the host without it; kernel 6.6 or newer has tcx",
        )
