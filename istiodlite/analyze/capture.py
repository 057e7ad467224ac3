"""Annotations of pods about what of their traffic is captured: values that are ignored, and what captures less."""

from collections.abc import Iterator

from istiodlite.analyze.findings import Finding, Severity
from istiodlite.analyze.mesh import Mesh, Workload
from ztunnel.enrol import settings
from ztunnel.enrol.settings import CaptureSettings

_W, _I = Severity.WARNING, Severity.INFO
_READ = (
    settings.ACCELERATE,
    settings.BYPASS_INBOUND,
    settings.DNS_CAPTURE,
    settings.EXCLUDE_INBOUND,
    settings.EXCLUDE_OUTBOUND,
    settings.INCLUDE_INBOUND,
    settings.INCLUDE_OUTBOUND,
)


def check_capture(mesh: Mesh) -> Iterator[Finding]:
    """What the node's agent will make of the annotations."""
    for workload in mesh.workloads:
        asked, problems = settings.read(workload.annotations)
        for problem in problems:
            yield Finding(_W, "capture-annotation", workload.key, _field(problem.annotation), problem.text)
        if workload.enrolled:
            yield from _less(workload, asked)
        else:
            for name in (name for name in _READ if name in workload.annotations):
                text = "has no effect: the pod is not enrolled (host network, sidecar, or no dataplane-mode ambient)"
                yield Finding(_I, "capture-without-mesh", workload.key, _field(name), text)


def _less(workload: Workload, asked: CaptureSettings) -> Iterator[Finding]:
    text = "plaintext to {} goes to the application around every policy, STRICT too; use ports that need none"
    if asked.bypass_inbound:
        yield Finding(
            _I, "captured-less", workload.key, _field(settings.BYPASS_INBOUND), text.format("any port")
        )
    elif asked.include_inbound is not None:
        which = f"any port but {_ports(asked.include_inbound)}" if asked.include_inbound else "any port"
        yield Finding(_I, "captured-less", workload.key, _field(settings.INCLUDE_INBOUND), text.format(which))
    elif asked.exclude_inbound:
        which = f"port {_ports(asked.exclude_inbound)}"
        yield Finding(_I, "captured-less", workload.key, _field(settings.EXCLUDE_INBOUND), text.format(which))


def _ports(ports: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(ports)))


def _field(annotation: str) -> str:
    return f"metadata.annotations[{annotation}]"
