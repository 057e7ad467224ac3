"""The short cut tried for real before it is relied on: in a child process (`ebpf.redirecttrial`) with namespaces and a BPF
file system of its own, so that nothing is left behind however it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ebpf import bytecode, child
from ebpf.errors import CaptureError, CaptureReason

_TIMEOUT: Final = 30.0


def run(collection: bytecode.Collection, mounted: Path) -> None:
    """CaptureError if packets of a direct connection do not come by the short cut, or others do.

    `mounted`: a directory, which the child covers with a file system of its own. Some 0.3 s.
    """
    problem = child.run("ebpf.redirecttrial", [str(mounted)], collection, seconds=_TIMEOUT)
    if problem:
        raise CaptureError(
            CaptureReason.SELF_TEST_FAILED,
            f"redirect_peer: {problem}",
            "direct connections go by the host without it; kernel 6.6 or newer has tcx",
        )
