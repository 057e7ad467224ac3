"""All checks over one set of objects."""

from collections.abc import Iterable, Sequence

from istiodlite.analyze.capture import check_capture
from istiodlite.analyze.findings import Finding
from istiodlite.analyze.flows import PlainFlow
from istiodlite.analyze.mesh import Input, Mesh
from istiodlite.analyze.policies import check_policies
from istiodlite.analyze.strictness import check_peer_authentications
from istiodlite.analyze.wiring import check_labels, check_services, check_waypoints
from istiodlite.registry.config import MeshConfig

_CHECKS = (
    check_policies,
    check_peer_authentications,
    check_waypoints,
    check_labels,
    check_services,
    check_capture,
)

# Every code there is, with what it is about: for the documentation and for those who filter.
CODES = {
    "action-needs-waypoint": "AUDIT or CUSTOM without targetRefs",
    "allow-needs-waypoint": "ALLOW rule with HTTP attributes and no targetRefs: left out, so it denies",
    "dataplane-mode": "a value of istio.io/dataplane-mode that means nothing",
    "capture-annotation": "an annotation about capture that is ignored, or does nothing",
    "capture-without-mesh": "an annotation about capture on a pod that is not enrolled",
    "captured-less": "an annotation that lets plaintext go around policies",
    "deny-only-http": "DENY rule with nothing but HTTP attributes and no waypoint: denies nothing",
    "deny-wider": "DENY rule with HTTP attributes and no waypoint: denies more",
    "disable-is-permissive": "PeerAuthentication DISABLE",
    "dry-run": "a policy that is not enforced yet",
    "entry-without-address": "ServiceEntry that only its own DNS leads to",
    "label-without-effect": "a label on a kind where nobody reads it",
    "malformed-principal": "a principal that no certificate can have",
    "manifest": "an object or file that cannot be read",
    "nothing-allowed": "ALLOW policies that leave a workload unreachable",
    "rule-never-matches": "a rule that contradicts itself",
    "selector-hits-nothing": "a selector without a workload",
    "selector-in-root": "PeerAuthentication with a selector in the root namespace",
    "service-port": "a policy that names the service's port instead of the pod's",
    "shadowed": "an object that an older one makes ineffective",
    "sidecar-and-ambient": "a namespace with both",
    "strict-cuts-flows": "STRICT where agents saw connections without mTLS",
    "strict-not-enforced": "STRICT on workloads that are not enrolled",
    "strict-shuts-out": "STRICT with callers that are not enrolled",
    "target-not-found": "targetRefs that name nothing",
    "target-port-missing": "a named targetPort that no container has",
    "target-without-waypoint": "targetRefs to a Service without waypoint",
    "unknown-identity": "a rule that names an account nothing runs as",
    "unknown-namespace": "a rule that names a namespace that is not there",
    "waypoint-denied": "a waypoint that does not admit the namespace",
    "waypoint-listeners": "a waypoint with other listeners than HBONE",
    "waypoint-not-allowed": "ALLOW that names callers, but not the waypoint they come through",
    "waypoint-not-found": "use-waypoint that names no waypoint",
    "waypoint-traffic-type": "a waypoint for other traffic",
}


def analyze(
    inputs: Iterable[Input], config: MeshConfig | None = None, flows: Sequence[PlainFlow] = ()
) -> list[Finding]:
    """Findings, worst first. `flows`: what agents saw come without mTLS, if that is known."""
    mesh = Mesh(inputs, config or MeshConfig(), flows)
    found = dict.fromkeys(one for check in _CHECKS for one in check(mesh))
    return sorted(found, key=lambda one: one.order)
