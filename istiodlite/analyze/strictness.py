"""PeerAuthentication: whom STRICT shuts out, and objects that change nothing."""

from collections.abc import Iterator

from istiodlite.analyze.findings import Finding, Severity
from istiodlite.analyze.mesh import Mesh, Workload
from istiodlite.objects import MtlsMode, ObjectKey, PeerAuthentication
from istiodlite.registry.world import key_of

_W, _I = Severity.WARNING, Severity.INFO


def check_peer_authentications(mesh: Mesh) -> Iterator[Finding]:
    """All that concerns strictness."""
    oldest: dict[tuple[str, tuple[tuple[str, str], ...]], PeerAuthentication] = {}
    for one in sorted(mesh.peer_authentications(), key=lambda one: one.meta.age_order):
        key, root = key_of(one), one.meta.namespace == mesh.config.root_namespace
        first = oldest.setdefault((one.meta.namespace, tuple(sorted(one.selector.items()))), one)
        if first is not one:
            text = f"{key_of(first)} is older and has the same scope, so this one has no effect; keep one of them"
            yield Finding(_W, "shadowed", key, "", text)
            continue
        if one.selector and root:
            text = (
                "selectors do not count in the root namespace, so it has no effect; move it to the workload's"
            )
            yield Finding(_W, "selector-in-root", key, "spec.selector", text)
            continue
        if MtlsMode.DISABLE in (one.mode, *one.port_modes.values()):
            text = "DISABLE means PERMISSIVE in an ambient mesh: HBONE stays possible; write PERMISSIVE"
            yield Finding(_I, "disable-is-permissive", key, "spec.mtls", text)
        yield from _effect(mesh, one)


def _effect(mesh: Mesh, one: PeerAuthentication) -> Iterator[Finding]:
    if not mesh.workloads:
        return
    key, hit = key_of(one), mesh.selected(one.meta.namespace, one.selector)
    if one.selector and not hit:
        text = f"no workload of namespace {one.meta.namespace} has these labels; correct them"
        yield Finding(_W, "selector-hits-nothing", key, "spec.selector", text)
    if one.mode is not MtlsMode.STRICT:
        return
    covered = [workload for workload in hit if workload.enrolled]
    outside = [workload for workload in hit if not workload.enrolled]
    if outside:
        text = f"{_some(outside)} not enrolled, so STRICT is not enforced there; label for dataplane-mode ambient"
        yield Finding(_W, "strict-not-enforced", key, "spec.mtls.mode", text)
    callers = [workload for workload in mesh.workloads if not workload.enrolled]
    if covered and callers:
        text = (
            f"{_some(callers)} not enrolled and cannot connect to {covered[0]}"
            f"{f' and {len(covered) - 1} more' if len(covered) > 1 else ''}; enrol them or use PERMISSIVE"
        )
        yield Finding(_W, "strict-shuts-out", key, "spec.mtls.mode", text)
    for workload in covered:
        yield from _cut(mesh, key, workload)


def _cut(mesh: Mesh, key: ObjectKey, workload: Workload) -> Iterator[Finding]:
    """Callers that were seen, not only thought of: those from outside of the cluster are among them."""
    for flow in mesh.flows:
        if (flow.namespace, flow.workload) != (workload.namespace, workload.key.name):
            continue
        caller = flow.source or "unknown callers"
        text = (
            f"agents saw {flow.connections} connections without mTLS from {caller} to {workload}, which STRICT "
            "refuses; enrol the caller, or use PERMISSIVE or a port exception"
        )
        yield Finding(_W, "strict-cuts-flows", key, "spec.mtls.mode", text)


def _some(workloads: list[Workload]) -> str:
    names = ", ".join(map(str, workloads[:3])) + (
        f" and {len(workloads) - 3} more" if len(workloads) > 3 else ""
    )
    return f"{names} {'is' if len(workloads) == 1 else 'are'}"
