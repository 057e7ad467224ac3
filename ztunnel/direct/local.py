"""An enrolled pod as the direct path sees it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from ebpf import direct as kernel
from ebpf.pairs import DirectConnection
from ztunnel.logs import fields
from ztunnel.state.model import Workload

__all__ = ["Local"]

_log = logging.getLogger("ztunnel.direct")


@dataclass(slots=True, eq=False)
class Local:
    """An enrolled pod and its namespace, kept open while connections of it live."""

    name: str
    slot: int
    netns_fd: int
    workload: Workload
    live: int = 0
    gone: bool = False

    def end(self, connection: DirectConnection) -> None:
        """End a connection of this pod's."""
        try:
            kernel.destroy(self.netns_fd, connection)
        except OSError as error:
            _log.error("direct connection not ended", extra=fields(pod=self.name, error=str(error)))

    def release(self) -> None:
        """Close the namespace if nobody needs it any more."""
        if self.gone and not self.live and self.netns_fd >= 0:
            os.close(self.netns_fd)
            self.netns_fd = -1
