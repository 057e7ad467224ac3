"""What the control plane watches. Pure."""

from istiodlite.kube.kinds import WatchedKind

_V1 = ("v1",)
# Istio served v1 from 1.22 on, and v1beta1 with the same fields before.
_SINCE_BETA = ("v1", "v1beta1")

WATCHED = (
    WatchedKind("Namespace", "", _V1, "namespaces", namespaced=False),
    WatchedKind("Node", "", _V1, "nodes", namespaced=False),
    WatchedKind("ServiceAccount", "", _V1, "serviceaccounts"),
    WatchedKind("Pod", "", _V1, "pods"),
    WatchedKind("Service", "", _V1, "services"),
    WatchedKind("EndpointSlice", "discovery.k8s.io", _V1, "endpointslices"),
    WatchedKind("Gateway", "gateway.networking.k8s.io", _SINCE_BETA, "gateways", optional=True),
    WatchedKind(
        "GatewayClass",
        "gateway.networking.k8s.io",
        _SINCE_BETA,
        "gatewayclasses",
        optional=True,
        namespaced=False,
    ),
    WatchedKind("ServiceEntry", "networking.istio.io", _SINCE_BETA, "serviceentries", optional=True),
    WatchedKind("WorkloadEntry", "networking.istio.io", _SINCE_BETA, "workloadentries", optional=True),
    WatchedKind("WorkloadGroup", "networking.istio.io", _SINCE_BETA, "workloadgroups", optional=True),
    WatchedKind(
        "AuthorizationPolicy", "security.istio.io", _SINCE_BETA, "authorizationpolicies", optional=True
    ),
    WatchedKind("PeerAuthentication", "security.istio.io", _SINCE_BETA, "peerauthentications", optional=True),
)
