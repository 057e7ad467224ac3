"""What somebody took away from under a living agent: without its pins a hook is gone, and pods' traffic in clear."""

from __future__ import annotations

import logging
from pathlib import Path

from ebpf.capture import enrolment
from ebpf.capture.state import NodeState, explained
from ebpf.errors import CaptureError
from ebpf.variants import Variant

log = logging.getLogger(__name__)


def mend(node: NodeState, cgroup: Path | None) -> list[str]:
    """See `Capture.mend`; no other agent is there."""
    lost = node.kernel.lost(hooks=node.variant is Variant.B)
    if not lost or node.others.came():
        return []
    with explained():
        node.kernel.pin_again()
        if cgroup is not None:
            node.kernel.attach_cgroup(cgroup)
            node.direct.attach_again()
    for pod in list(node.pods.values()):
        try:
            enrolment.enrol(node, pod.network)
        except CaptureError as error:
            log.warning("slot %d: not captured any more: %s", pod.slot, error)
    return lost
