"""Acceleration tried for real before it is relied on: in a child process (`ebpf.turbotrial`) with a namespace, cgroup and
BPF file system of its own, so that nothing is left behind however it ends."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ebpf import bytecode, child
from ebpf.errors import CaptureError, CaptureReason

_TIMEOUT: Final = 30.0


def run(collection: bytecode.Collection, offsets: Mapping[str, int], cgroup: Path, mounted: Path) -> None:
    """CaptureError if bytes come out of order, get lost, or pile up in front of a reader that has stopped.

    `mounted`: a directory, which the child covers with a file system of its own. Some 0.5 s.
    """
    own_cgroup = cgroup / f"ambientlite-selftest-turbo-{os.getpid()}"
    arguments = [str(own_cgroup), str(mounted), json.dumps(dict(offsets))]
    problem = child.run("ebpf.turbotrial", arguments, collection, seconds=_TIMEOUT, cgroup=own_cgroup)
    if problem:
        raise CaptureError(
            CaptureReason.SELF_TEST_FAILED,
            f"acceleration: {problem}",
            "connections stay direct without it; kernel 6.13 or newer charges what waits in a socket",
        )
