"""What tests of capture that open it themselves share."""

from __future__ import annotations

import os
from pathlib import Path

from ebpf.capture import Capture
from ebpf.errors import CaptureError, CaptureReason
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import Lab, Pod, sh


def open_capture(lab: Lab, cgroup: Path | None = None, pin_dir: Path | None = None) -> Capture:
    return Capture.open(
        cgroup=cgroup or lab.cgroup,
        pin_dir=pin_dir or lab.pin_dir,
        agent_pid=os.getpid(),
        cache_dir=lab.cache_dir,
    )


def to_neighbour(lab: Lab, version: int = 4) -> Dial:
    return Dial((lab.pods[1].own(version), 8080))


def own_descriptors() -> list[str]:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue
    return sorted(links)


def set_sysctl(pod: Pod, name: str, value: int) -> None:
    sh(f"ip netns exec {pod.name} sysctl -qw {name}={value}")


class ExtraPod(Pod):
    """A namespace that goes away during the test; nothing but `lo` in it."""

    def __init__(self, lab: Lab, v6: bool = True) -> None:
        super().__init__(len(lab.pods))
        self._with_v6 = v6

    def __enter__(self) -> ExtraPod:
        sh(f"ip netns add {self.name}; ip -n {self.name} link set lo up")
        sh(f"ip -n {self.name} addr add {self.v4}/32 dev lo")
        if self._with_v6:
            sh(f"ip -n {self.name} addr add {self.v6}/128 dev lo nodad")
        self.fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        sh(f"ip netns del {self.name}")


def refuse(slot: int, netns_fd: int) -> None:
    raise CaptureError(CaptureReason.ATTACH_FAILED, "refused by the test")
