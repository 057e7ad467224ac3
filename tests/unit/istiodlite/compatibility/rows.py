"""The table. Each row sets one field of one object of a small mesh; what must come of it is the row's claim."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class Outcome(enum.StrEnum):
    """What a field does."""

    SUPPORTED = "supported"
    """What agents are told changes."""
    WAYPOINT = "needs a waypoint"
    """HTTP only. At L4 a rule that has it is left out of ALLOW, so it lets nobody in, as with Istio."""
    REFUSED = "refused"
    """The object is refused, and the message begins with the path of the field that does not fit."""
    IGNORED = "ignored"
    """Nothing changes."""


@dataclass(frozen=True, slots=True)
class Row:
    kind: str
    field: str
    value: Any
    outcome: Outcome
    note: str = ""
    at: str = ""
    """Refused only: the path that the message names, where it is another than `field`."""
    groups: int | None = None
    """Supported, AuthorizationPolicy only: how many rules agents get, where it is not all of them."""


S, W, R, X = Outcome.SUPPORTED, Outcome.WAYPOINT, Outcome.REFUSED, Outcome.IGNORED
_RULE, _SOURCE = "spec.rules[0]", "spec.rules[0].from[0].source"
_OPERATION = "spec.rules[0].to[0].operation"
_PRINCIPAL = "cluster.local/ns/shop/sa/other"

ROWS = (
    # -- Namespace
    Row("Namespace", "metadata.labels[istio.io/use-waypoint]", "waypoint", S, "for all services and workloads"),
    Row("Namespace", "metadata.labels[istio.io/ingress-use-waypoint]", "true", S, "of services with a waypoint"),
    Row("Namespace", "metadata.annotations[networking.istio.io/traffic-distribution]", "PreferClose", S),
    Row("Namespace", "metadata.labels[istio.io/dataplane-mode]", "none", X, "agents and CNI read it, resources do not"),
    Row("Namespace", "metadata.labels[istio-injection]", "enabled", X, "there are no sidecars"),
    Row("Namespace", "metadata.labels[istio.io/rev]", "canary", X, "one control plane serves all"),
    # -- Node
    Row("Node", "metadata.labels[topology.kubernetes.io/region]", "r2", S),
    Row("Node", "metadata.labels[topology.kubernetes.io/zone]", "z2", S),
    Row("Node", "metadata.labels[topology.istio.io/subzone]", "s2", S),
    # -- Pod
    Row("Pod", "spec.nodeName", "n2", S),
    Row("Pod", "spec.serviceAccountName", "other", S),
    Row("Pod", "spec.hostNetwork", True, S),
    Row("Pod", "spec.containers[0].ports[0].containerPort", 9090, S, "by name, where a Service's targetPort is one"),
    Row("Pod", "status.podIPs", [{"ip": "10.1.0.99"}, {"ip": "fd00::99"}], S),
    Row("Pod", "status.phase", "Succeeded", S, "workload removed"),
    Row("Pod", "status.conditions", [{"type": "Ready", "status": "False"}], S, "unhealthy"),
    Row("Pod", "metadata.deletionTimestamp", "2026-01-01T00:00:00Z", S, "unhealthy at once"),
    Row("Pod", "metadata.labels[app]", "other", S, "selectors of services and policies"),
    Row("Pod", "metadata.labels[service.istio.io/canonical-name]", "canon", S),
    Row("Pod", "metadata.labels[service.istio.io/canonical-revision]", "v9", S),
    Row("Pod", "metadata.labels[version]", "v9", S, "canonical revision"),
    Row("Pod", "metadata.labels[networking.istio.io/tunnel]", "http", S, "speaks HBONE itself"),
    Row("Pod", "metadata.labels[istio.io/use-waypoint]", "workloads", S),
    Row("Pod", "metadata.labels[istio.io/use-waypoint]", "none", X, "no waypoint is what it has"),
    Row("Pod", "metadata.annotations[ambient.istio.io/redirection]", "disabled", S),
    Row("Pod", "spec.priority", 7, X),
    Row("Pod", "status.podIPs", [{"ip": "10.1.0.256"}], R, at="status.podIPs[0].ip"),
    # -- Service
    Row("Service", "spec.clusterIP", "10.96.0.99", S),
    Row("Service", "spec.clusterIPs", ["10.96.0.10", "fd00:96::10"], S),
    Row("Service", "spec.clusterIP", "None", S, "headless"),
    Row("Service", "spec.type", "ExternalName", S, "no service: clients follow the CNAME"),
    Row("Service", "spec.selector", {"app": "other"}, S),
    Row("Service", "spec.ports[0].port", 81, S),
    Row("Service", "spec.ports[0].targetPort", 8081, S),
    Row("Service", "spec.ports[0].appProtocol", "grpc", S),
    Row("Service", "spec.ports[0].protocol", "UDP", S, "listed; UDP is not carried"),
    Row("Service", "spec.ipFamilies", ["IPv6"], S),
    Row("Service", "spec.publishNotReadyAddresses", True, S),
    Row("Service", "spec.internalTrafficPolicy", "Local", S),
    Row("Service", "spec.trafficDistribution", "PreferClose", S),
    Row("Service", "spec.trafficDistribution", "PreferSameNode", S),
    Row("Service", "spec.trafficDistribution", "Other", X),
    Row("Service", "metadata.annotations[networking.istio.io/traffic-distribution]", "PreferClose", S),
    Row("Service", "metadata.labels[istio.io/use-waypoint]", "waypoint", S),
    Row("Service", "metadata.labels[istio.io/use-waypoint]", "missing", X, "status condition WaypointBound says why"),
    Row("Service", "metadata.labels[istio.io/ingress-use-waypoint]", "true", X, "without a waypoint"),
    Row("Service", "spec.sessionAffinity", "ClientIP", X, "as in Istio"),
    Row("Service", "spec.externalIPs", ["192.0.2.7"], X, "as in Istio"),
    Row("Service", "spec.externalTrafficPolicy", "Local", X, "as in Istio"),
    Row("Service", "metadata.annotations[networking.istio.io/exportTo]", "~", X, "every service is visible"),
    Row("Service", "spec.ports[0].port", 70000, R),
    Row("Service", "spec.clusterIP", "10.96.0.300", R),
    # -- ServiceEntry
    Row("ServiceEntry", "spec.hosts", ["b.example.com"], S),
    Row("ServiceEntry", "spec.addresses", ["192.0.2.9"], S),
    Row("ServiceEntry", "spec.addresses", ["192.0.2.0/24"], S),
    Row("ServiceEntry", "spec.ports[0].number", 81, S),
    Row("ServiceEntry", "spec.ports[0].targetPort", 8081, S),
    Row("ServiceEntry", "spec.ports[0].protocol", "GRPC", S),
    Row("ServiceEntry", "spec.resolution", "DNS", X, "with addresses as endpoints; hosts are resolved by the agent"),
    Row("ServiceEntry", "spec.resolution", "DYNAMIC_DNS", R, "of a host without wildcard", at="spec.hosts"),
    Row("ServiceEntry", "spec.endpoints", [], S, "no endpoints"),
    Row("ServiceEntry", "spec.endpoints[0].address", "203.0.113.9", S),
    Row("ServiceEntry", "spec.endpoints[0].ports", {"http": 9000}, S),
    Row("ServiceEntry", "spec.endpoints[0].labels", {"version": "v7"}, X, "names are read from the entry's labels"),
    Row("ServiceEntry", "spec.endpoints[0].labels", {"istio.io/use-waypoint": "workloads"}, S),
    Row("ServiceEntry", "spec.endpoints[0].network", "other", S),
    Row("ServiceEntry", "spec.endpoints[0].locality", "r1/z1", S),
    Row("ServiceEntry", "spec.endpoints[0].weight", 5, S),
    Row("ServiceEntry", "spec.endpoints[0].serviceAccount", "other", S),
    Row("ServiceEntry", "spec.subjectAltNames", ["spiffe://cluster.local/ns/x/sa/y"], S),
    Row("ServiceEntry", "metadata.labels[istio.io/use-waypoint]", "waypoint", S),
    Row("ServiceEntry", "metadata.labels[networking.istio.io/enable-autoallocate-ip]", "false", S),
    Row("ServiceEntry", "status.addresses", [{"value": "240.240.7.7", "host": "a.example.com"}], S, "kept as allocated"),
    Row("ServiceEntry", "spec.location", "MESH_INTERNAL", X, "agents decide by the endpoint's tunnel protocol"),
    Row("ServiceEntry", "spec.exportTo", ["."], X, "every entry is visible"),
    Row("ServiceEntry", "spec.hosts", ["*"], R, at="spec.hosts[0]"),
    Row("ServiceEntry", "spec.hosts", [], R),
    Row("ServiceEntry", "spec.resolution", "NONE", R, "with endpoints", at="spec.endpoints"),
    Row("ServiceEntry", "spec.workloadSelector", {"labels": {"app": "x"}}, R, "together with endpoints", at="spec.endpoints"),
    Row("ServiceEntry", "spec.endpoints[0].address", "unix:///run/x", R, "the mesh carries TCP"),
    Row("ServiceEntry", "spec.ports[0].protocol", "SMTP", R),
    Row("ServiceEntry", "spec.unknown", 1, R),
    # -- WorkloadEntry
    Row("WorkloadEntry", "spec.address", "203.0.113.8", S),
    Row("WorkloadEntry", "spec.labels", {"app": "web"}, S, "selected by services and policies"),
    Row("WorkloadEntry", "spec.network", "other", S),
    Row("WorkloadEntry", "spec.locality", "r9", S),
    Row("WorkloadEntry", "spec.weight", 3, S),
    Row("WorkloadEntry", "spec.serviceAccount", "other", S),
    Row("WorkloadEntry", "metadata.labels[istio.io/use-waypoint]", "workloads", S),
    Row("WorkloadEntry", "status.conditions", [{"type": "Healthy", "status": "False"}], S),
    Row("WorkloadEntry", "metadata.annotations[istio.io/autoRegistrationGroup]", "machines", S, "name for telemetry"),
    Row("WorkloadEntry", "metadata.annotations[proxy.istio.io/health-checks-enabled]", "true", S, "unhealthy until the condition Healthy is true; with Istio healthy"),
    Row("WorkloadEntry", "metadata.labels[service.istio.io/workload-name]", "named", S),
    Row("WorkloadEntry", "metadata.labels[networking.istio.io/tunnel]", "http", S, "speaks HBONE itself"),
    Row("WorkloadEntry", "spec.address", "", R),
    # -- WorkloadGroup
    Row("WorkloadGroup", "spec.template.serviceAccount", "other", X, "counts when a machine registers, as with Istio"),
    Row("WorkloadGroup", "spec.template.labels", {"app": "web"}, X, "counts when a machine registers"),
    Row("WorkloadGroup", "spec.template.network", "other", X, "counts when a machine registers"),
    Row("WorkloadGroup", "spec.metadata.labels", {"app": "web"}, X, "counts when a machine registers"),
    Row("WorkloadGroup", "spec.metadata.annotations", {"a": "b"}, X, "counts when a machine registers"),
    Row("WorkloadGroup", "spec.probe", {"tcpSocket": {"port": 80}}, X, "the machine's own agent probes; a sidecar's matter with Istio"),
    Row("WorkloadGroup", "spec.probe", {"periodSeconds": 5}, R, "without a method"),
    Row("WorkloadGroup", "spec.template", None, R),
    Row("WorkloadGroup", "spec.unknown", 1, R),
    # -- Gateway
    Row("Gateway", "spec.gatewayClassName", "other", X, "waypoints of other implementations count"),
    Row("Gateway", "status.addresses", [{"type": "IPAddress", "value": "10.96.7.7"}], S),
    Row("Gateway", "status.addresses", [{"type": "Hostname", "value": "wp.shop.svc.cluster.local"}], S),
    Row("Gateway", "metadata.labels[istio.io/waypoint-for]", "workload", S),
    Row("Gateway", "spec.listeners[0].allowedRoutes", {"namespaces": {"from": "None"}}, S),
    Row(
        "Gateway",
        "spec.listeners[0].allowedRoutes",
        {"namespaces": {"from": "Selector", "selector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}},
        S,
    ),
    Row("Gateway", "spec.listeners[0].hostname", "x.example.com", X, "a waypoint serves all hosts of its services"),
    Row("Gateway", "metadata.labels[topology.istio.io/network]", "other", X, "of class istio-remote only: what leads to that network"),
    # -- AuthorizationPolicy
    Row("AuthorizationPolicy", "spec.action", "DENY", S),
    Row("AuthorizationPolicy", "spec.action", "AUDIT", S, "not sent to agents: nothing is enforced at L4, as in Istio"),
    Row("AuthorizationPolicy", "spec.selector", {"matchLabels": {"app": "web"}}, S),
    Row("AuthorizationPolicy", "spec.targetRefs", [{"kind": "Service", "name": "web"}], S, "left to the waypoint"),
    Row("AuthorizationPolicy", "spec.rules", [], S, "allows nothing", groups=0),
    Row("AuthorizationPolicy", f"{_SOURCE}.principals", [_PRINCIPAL, "*/sa/x", "cluster.local/*"], S),
    Row("AuthorizationPolicy", f"{_SOURCE}.notPrincipals", [_PRINCIPAL], S),
    Row("AuthorizationPolicy", f"{_SOURCE}.namespaces", ["other"], S),
    Row("AuthorizationPolicy", f"{_SOURCE}.notNamespaces", ["other"], S),
    Row("AuthorizationPolicy", f"{_SOURCE}.ipBlocks", ["10.0.0.0/8", "fd00::/8", "192.0.2.1"], S),
    Row("AuthorizationPolicy", f"{_SOURCE}.notIpBlocks", ["10.9.0.0/16"], S),
    Row("AuthorizationPolicy", "spec.rules[1]", {"from": [{"source": {"serviceAccounts": ["other"]}}]}, S),
    Row("AuthorizationPolicy", "spec.rules[1]", {"from": [{"source": {"notServiceAccounts": ["shop/other"]}}]}, S),
    Row("AuthorizationPolicy", f"{_OPERATION}.ports", ["9090"], S),
    Row("AuthorizationPolicy", f"{_OPERATION}.notPorts", ["9090"], S),
    Row("AuthorizationPolicy", f"{_RULE}.when", [{"key": "source.ip", "values": ["10.0.0.0/8"]}], S),
    Row("AuthorizationPolicy", f"{_RULE}.when", [{"key": "source.namespace", "values": ["x"]}], S),
    Row("AuthorizationPolicy", f"{_RULE}.when", [{"key": "source.principal", "notValues": ["a/b"]}], S),
    Row("AuthorizationPolicy", f"{_RULE}.when", [{"key": "source.serviceAccount", "values": ["x"]}], W, "as in Istio; source.serviceAccounts is not"),
    Row("AuthorizationPolicy", f"{_RULE}.when", [{"key": "destination.ip", "values": ["10.0.0.0/8"]}], S),
    Row("AuthorizationPolicy", f"{_RULE}.when", [{"key": "destination.port", "values": ["80"]}], S),
    Row("AuthorizationPolicy", f"{_SOURCE}.requestPrincipals", ["*"], W),
    Row("AuthorizationPolicy", f"{_SOURCE}.notRequestPrincipals", ["x"], W),
    Row("AuthorizationPolicy", f"{_SOURCE}.remoteIpBlocks", ["10.0.0.0/8"], W),
    Row("AuthorizationPolicy", f"{_SOURCE}.notRemoteIpBlocks", ["10.0.0.0/8"], W),
    Row("AuthorizationPolicy", f"{_SOURCE}.trustDomains", ["cluster.local"], W, "agents are told none; Istio leaves it out"),
    Row("AuthorizationPolicy", f"{_SOURCE}.notTrustDomains", ["cluster.local"], W, "agents are told none; Istio leaves it out"),
    Row("AuthorizationPolicy", f"{_OPERATION}.hosts", ["a.example.com"], W),
    Row("AuthorizationPolicy", f"{_OPERATION}.notHosts", ["a.example.com"], W),
    Row("AuthorizationPolicy", f"{_OPERATION}.methods", ["GET"], W),
    Row("AuthorizationPolicy", f"{_OPERATION}.notMethods", ["GET"], W),
    Row("AuthorizationPolicy", f"{_OPERATION}.paths", ["/x*"], W),
    Row("AuthorizationPolicy", f"{_OPERATION}.notPaths", ["/x"], W),
    Row("AuthorizationPolicy", f"{_RULE}.when", [{"key": "request.headers[x]", "values": ["y"]}], W),
    Row("AuthorizationPolicy", f"{_RULE}.when", [{"key": "request.auth.claims[iss]", "values": ["y"]}], W),
    Row("AuthorizationPolicy", f"{_RULE}.when", [{"key": "remote.ip", "values": ["10.0.0.1"]}], W),
    Row("AuthorizationPolicy", f"{_RULE}.when", [{"key": "connection.sni", "values": ["y"]}], W),
    Row("AuthorizationPolicy", f"{_RULE}.when", [{"key": "unknown.key", "values": ["y"]}], R, at=f"{_RULE}.when[0].key"),
    Row("AuthorizationPolicy", f"{_SOURCE}.ipBlocks", ["10.0.0.0/33"], R, at=f"{_SOURCE}.ipBlocks[0]"),
    Row("AuthorizationPolicy", f"{_OPERATION}.ports", ["http"], R, at=f"{_OPERATION}.ports[0]"),
    Row("AuthorizationPolicy", "spec.action", "MAYBE", R),
    Row("AuthorizationPolicy", "spec.action", "CUSTOM", R, "of a rule with principals", at=f"{_SOURCE}.principals"),
    Row("AuthorizationPolicy", "spec", {"action": "CUSTOM", "rules": [{}]}, R, "CUSTOM without one", at="spec.provider.name"),
    Row("AuthorizationPolicy", "spec.unknown", 1, R),
    # -- PeerAuthentication
    Row("PeerAuthentication", "spec.mtls.mode", "PERMISSIVE", S),
    Row("PeerAuthentication", "spec.mtls.mode", "DISABLE", S, "as PERMISSIVE: HBONE stays possible"),
    Row("PeerAuthentication", "spec.mtls.mode", "UNSET", S, "inherits"),
    Row("PeerAuthentication", "spec.selector", {"matchLabels": {"app": "other"}}, S),
    Row("PeerAuthentication", "spec.portLevelMtls", {"8080": {"mode": "PERMISSIVE"}}, S),
    Row("PeerAuthentication", "spec.portLevelMtls", {"http": {"mode": "PERMISSIVE"}}, R),
    Row("PeerAuthentication", "spec.mtls.mode", "SOMETIMES", R),
    # -- EndpointSlice
    Row("EndpointSlice", "endpoints[0].addresses", ["203.0.113.77"], S),
    Row("EndpointSlice", "endpoints[0].conditions.ready", False, S),
    Row("EndpointSlice", "ports[0].port", 9999, S),
    Row("EndpointSlice", "endpoints[0].targetRef", {"kind": "Pod", "name": "x"}, S, "pods speak for themselves"),
    Row("EndpointSlice", "addressType", "FQDN", S, "not served"),
    Row("EndpointSlice", "endpoints[0].hints", {"forZones": [{"name": "z1"}]}, X),
)  # fmt: skip
