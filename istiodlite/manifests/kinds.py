"""Which kinds are read, which are accepted and left to others, and which versions they come in."""

from collections.abc import Callable
from dataclasses import dataclass

from istiodlite.manifests import core, gateway, networking, security, workload_group
from istiodlite.manifests.fields import Field, shown
from istiodlite.manifests.meta import parse_meta, parse_name, parse_namespace
from istiodlite.objects import KubeObject, Meta, ObjectKey, Other

Parse = Callable[[Meta, Field], KubeObject]


@dataclass(frozen=True, slots=True)
class Kind:
    """`group` is empty for the core group; `parse` None: accepted, changes no answer."""

    name: str
    group: str
    namespaced: bool = True
    parse: Parse | None = None


_SECURITY = "security.istio.io"
_NETWORKING = "networking.istio.io"
_GATEWAY = "gateway.networking.k8s.io"

_READ = (
    Kind("Namespace", "", False, core.parse_namespace_object),
    Kind("Node", "", False, core.parse_node),
    Kind("ServiceAccount", "", True, core.parse_service_account),
    Kind("Pod", "", True, core.parse_pod),
    Kind("Service", "", True, core.parse_service),
    Kind("EndpointSlice", "discovery.k8s.io", True, core.parse_endpoint_slice),
    Kind("Gateway", _GATEWAY, True, gateway.parse_gateway),
    Kind("GatewayClass", _GATEWAY, False, gateway.parse_gateway_class),
    Kind("ServiceEntry", _NETWORKING, True, networking.parse_service_entry),
    Kind("WorkloadEntry", _NETWORKING, True, networking.parse_workload_entry),
    Kind("WorkloadGroup", _NETWORKING, True, workload_group.parse_workload_group),
    Kind("AuthorizationPolicy", _SECURITY, True, security.parse_authorization_policy),
    Kind("PeerAuthentication", _SECURITY, True, security.parse_peer_authentication),
)
_ACCEPTED = (
    *(Kind(name, "apps") for name in ("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet")),
    *(Kind(name, "batch") for name in ("Job", "CronJob")),
    *(Kind(name, "") for name in ("ConfigMap", "Secret", "Endpoints", "PersistentVolumeClaim")),
    *(Kind(name, _GATEWAY) for name in ("HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute", "ReferenceGrant")),
    Kind("BackendTLSPolicy", _GATEWAY),
    *(Kind(name, _NETWORKING) for name in ("VirtualService", "DestinationRule", "Sidecar")),
    Kind("RequestAuthentication", _SECURITY),
    Kind("Telemetry", "telemetry.istio.io"),
    Kind("NetworkPolicy", "networking.k8s.io"),
    *(Kind(name, "rbac.authorization.k8s.io") for name in ("Role", "RoleBinding")),
    *(Kind(name, "rbac.authorization.k8s.io", False) for name in ("ClusterRole", "ClusterRoleBinding")),
    Kind("CustomResourceDefinition", "apiextensions.k8s.io", False),
)
# `Gateway` exists in two groups; the one of networking.istio.io describes an ingress proxy.
KINDS = {(kind.group, kind.name): kind for kind in (*_READ, *_ACCEPTED)}
_BY_NAME = {kind.name: kind for kind in (*_ACCEPTED, *_READ)}


def kind_of(document: Field) -> Kind:
    """The kind of a document, by apiVersion and kind; raises FieldError with advice."""
    version, name = document["apiVersion"].text(), document["kind"].text()
    group, slash, _ = version.rpartition("/")
    kind = KINDS.get((group if slash else "", name))
    if kind is not None:
        return kind
    other = _BY_NAME.get(name)
    if other is not None:
        wanted = f"{other.group}/v1" if other.group else "v1"
        document["apiVersion"].fail(f"{shown(version)} has no kind {name}; use {wanted}")
    read = ", ".join(sorted(kind.name for kind in _READ))
    raise document["kind"].error(f"{shown(name)} is not known; remove the object (kinds read: {read})")


def key_of(kind: Kind, document: Field) -> ObjectKey:
    meta = document["metadata"]
    return ObjectKey(kind.name, parse_namespace(meta, kind.namespaced), parse_name(meta))


def parse_object(kind: Kind, document: Field) -> KubeObject:
    """A document as an object; raises FieldError."""
    meta = parse_meta(document["metadata"], kind.namespaced)
    return Other(meta, kind.name) if kind.parse is None else kind.parse(meta, document)
