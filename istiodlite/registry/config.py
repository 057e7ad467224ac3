"""Mesh-wide settings that conversions depend on, and the names Istio gave to labels and annotations."""

from dataclasses import dataclass

from istiodlite.objects import LabelSelector
from istiodlite.registry.visibility import EntryVisibility

HBONE_PORT = 15008

DATAPLANE_MODE = "istio.io/dataplane-mode"
REDIRECTION = "ambient.istio.io/redirection"
TUNNEL = "networking.istio.io/tunnel"
USE_WAYPOINT = "istio.io/use-waypoint"
USE_WAYPOINT_NAMESPACE = "istio.io/use-waypoint-namespace"
CANARY = "istio.io/use-waypoint-canary"
CANARY_NAMESPACE = "istio.io/use-waypoint-canary-namespace"
CANARY_WEIGHT = "istio.io/use-waypoint-canary-weight"
WAYPOINT_FOR = "istio.io/waypoint-for"
INGRESS_USE_WAYPOINT = "istio.io/ingress-use-waypoint"
INBOUND_BINDING = "ambient.istio.io/waypoint-inbound-binding"
GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"
GATEWAY_MANAGED = "gateway.istio.io/managed"
NETWORK = "topology.istio.io/network"
TRAFFIC_DISTRIBUTION = "networking.istio.io/traffic-distribution"
AUTOALLOCATE = "networking.istio.io/enable-autoallocate-ip"
REGISTRATION_GROUP = "istio.io/autoRegistrationGroup"
CANONICAL_NAME = "service.istio.io/canonical-name"
CANONICAL_REVISION = "service.istio.io/canonical-revision"
WORKLOAD_NAME = "service.istio.io/workload-name"

MESH_CONTROLLER = "istio.io/mesh-controller"
WAYPOINT_CLASS = "istio-waypoint"
# A Gateway that stands for one elsewhere: what leads to another network.
REMOTE_CLASS = "istio-remote"
# Values of the label GATEWAY_MANAGED whose services and pods are themselves a stop on the way.
MANAGED_HOPS = frozenset({"istio.io-mesh-controller", "istio.io-eastwest-controller"})

DEFAULT_TRUST_DOMAIN = "cluster.local"


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """`network` is used where the root namespace carries no label topology.istio.io/network. Without
    `discovery_selectors` every namespace belongs to the mesh; see `scope`, `visibility` and, for the aliases,
    `trust_domains`."""

    cluster_id: str = "Kubernetes"
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    trust_domain_aliases: tuple[str, ...] = ()
    domain: str = "cluster.local"
    root_namespace: str = "istio-system"
    network: str = ""
    discovery_selectors: tuple[LabelSelector, ...] = ()
    entry_visibility: EntryVisibility | None = None

    @property
    def trust_domains(self) -> tuple[str, ...]:
        """All names of the trust domain, its own first."""
        return tuple(dict.fromkeys((self.trust_domain, *self.trust_domain_aliases)))

    @property
    def wire_trust_domain(self) -> str:
        """The trust domain as workloads carry it: left out when it is the default."""
        return "" if self.trust_domain == DEFAULT_TRUST_DOMAIN else self.trust_domain

    def service_hostname(self, namespace: str, name: str) -> str:
        return f"{name}.{namespace}.svc.{self.domain}"
