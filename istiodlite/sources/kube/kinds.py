"""What is watched, and where the API server has it. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WatchedKind:
    """One kind. `versions` are tried in order (all have the fields we read). `name` narrows the watch to
    objects of that one name. `optional`: comes with a CRD that a cluster need not have."""

    kind: str
    group: str
    versions: tuple[str, ...]
    plural: str
    optional: bool = False
    name: str = ""

    def path(self, version: str) -> str:
        """The collection over all namespaces."""
        root = f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"
        return f"{root}/{self.plural}"

    @property
    def resource(self) -> str:
        """As kubectl and RBAC name it: `pods`, `gateways.gateway.networking.k8s.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


_V1 = ("v1",)
# Istio served v1 from 1.22 on, and v1beta1 with the same fields before.
_SINCE_BETA = ("v1", "v1beta1")

WATCHED = (
    WatchedKind("Namespace", "", _V1, "namespaces"),
    WatchedKind("Node", "", _V1, "nodes"),
    WatchedKind("ServiceAccount", "", _V1, "serviceaccounts"),
    WatchedKind("Pod", "", _V1, "pods"),
    WatchedKind("Service", "", _V1, "services"),
    WatchedKind("EndpointSlice", "discovery.k8s.io", _V1, "endpointslices"),
    WatchedKind("Gateway", "gateway.networking.k8s.io", _SINCE_BETA, "gateways", optional=True),
    WatchedKind("GatewayClass", "gateway.networking.k8s.io", _SINCE_BETA, "gatewayclasses", optional=True),
    WatchedKind("ServiceEntry", "networking.istio.io", _SINCE_BETA, "serviceentries", optional=True),
    WatchedKind("WorkloadEntry", "networking.istio.io", _SINCE_BETA, "workloadentries", optional=True),
    WatchedKind(
        "AuthorizationPolicy", "security.istio.io", _SINCE_BETA, "authorizationpolicies", optional=True
    ),
    WatchedKind("PeerAuthentication", "security.istio.io", _SINCE_BETA, "peerauthentications", optional=True),
)
