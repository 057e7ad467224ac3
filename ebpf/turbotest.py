"""Acceleration tried for real before it is relied on: in a child process (`ebpf.turbotrial`) with a namespace, cgroup and
BPF file system of its own, so that nothing is left behind however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ebpf import bytecode
from ebpf.errors import CaptureError, CaptureReason

_TIMEOUT: Final = 30.0


def run(collection: bytecode.Collection, offsets: Mapping[str, int], cgroup: Path, mounted: Path) -> None:
    """CaptureError if bytes come out of order, get lost, or pile up in front of a reader that has stopped.

    `mounted`: a directory, which the child covers with a file system of its own. Some 0.5 s.
    """
    own_cgroup = cgroup / f"ambientlite-selftest-turbo-{os.getpid()}"
    command = [
        sys.executable,
        "-m",
        "ebpf.turbotrial",
        str(own_cgroup),
        str(mounted),
        json.dumps(dict(offsets)),
    ]
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command,
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
    finally:
        with contextlib.suppress(OSError):
            own_cgroup.rmdir()
    if problem:
        raise CaptureError(
            CaptureReason.SELF_TEST_FAILED,
            f"acceleration: {problem}",
            "connections stay direct without it; kernel 6.13 or newer charges what waits in a socket",
        )
