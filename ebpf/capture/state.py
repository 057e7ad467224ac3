"""What enrolment and withdrawal share: one node's maps, and the pods of this process."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass, field

from ebpf import netns
from ebpf.capture.pod import EnrolledPod
from ebpf.direct import Direct
from ebpf.errors import CaptureError, CaptureReason
from ebpf.fdstore import FdStore
from ebpf.ledger import Ledger
from ebpf.loader import Kernel
from ebpf.skew import OtherLayouts
from ebpf.variants import Variant


@dataclass(slots=True, eq=False)
class NodeState:
    """`pods`: enrolled by this process; `leaving`: withdrawn by it, with connections that are still relayed; both by
    cookie. `home`: the cookie of this process's own namespace."""

    kernel: Kernel
    variant: Variant
    ledger: Ledger
    others: OtherLayouts
    direct: Direct
    home: int = field(default_factory=netns.cookie_here)
    store: FdStore | None = None
    pods: dict[int, EnrolledPod] = field(default_factory=dict)
    leaving: dict[int, EnrolledPod] = field(default_factory=dict)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn what the kernel refuses into one line with advice."""
    try:
        yield
    except OSError as error:
        full = error.errno == errno.E2BIG
        advice = "too many addresses or exempt ports on this node" if full else "look at the kernel's log"
        raise CaptureError(CaptureReason.KERNEL_REFUSED, str(error), advice) from error
