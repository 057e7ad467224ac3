"""Kubernetes objects as the control plane needs them: small, typed, immutable, comparable.

In: nothing (plain values). Out: the types that `istiodlite.manifests` parses into and that
`istiodlite.registry` and `istiodlite.ca` read. Only the fields that change an answer are kept, so two
objects that are equal here never cause a push.
"""

from istiodlite.objects.core import (
    Container,
    ContainerPort,
    EndpointSlice,
    Namespace,
    Node,
    Pod,
    Service,
    ServiceAccount,
    ServicePort,
    SliceEndpoint,
    SlicePort,
    TargetRef,
)
from istiodlite.objects.gateway import (
    Gateway,
    GatewayAddress,
    GatewayClass,
    Listener,
    NamespaceSelector,
)
from istiodlite.objects.meta import Meta, ObjectKey, Other, OwnerRef
from istiodlite.objects.networking import (
    Endpoint,
    EntryPort,
    ServiceEntry,
    WorkloadEntry,
    WorkloadGroup,
)
from istiodlite.objects.security import (
    AuthorizationPolicy,
    Condition,
    MtlsMode,
    Operation,
    PeerAuthentication,
    PolicyAction,
    PolicyTarget,
    Rule,
    Source,
)
from istiodlite.objects.selector import LabelSelector, Requirement

KubeObject = (
    Namespace
    | Node
    | ServiceAccount
    | Pod
    | Service
    | EndpointSlice
    | Gateway
    | GatewayClass
    | ServiceEntry
    | WorkloadEntry
    | WorkloadGroup
    | AuthorizationPolicy
    | PeerAuthentication
    | Other
)

__all__ = [
    "AuthorizationPolicy",
    "Condition",
    "Container",
    "ContainerPort",
    "Endpoint",
    "EndpointSlice",
    "EntryPort",
    "Gateway",
    "GatewayAddress",
    "GatewayClass",
    "KubeObject",
    "LabelSelector",
    "Listener",
    "Meta",
    "MtlsMode",
    "Namespace",
    "NamespaceSelector",
    "Node",
    "ObjectKey",
    "Operation",
    "Other",
    "OwnerRef",
    "PeerAuthentication",
    "Pod",
    "PolicyAction",
    "PolicyTarget",
    "Requirement",
    "Rule",
    "Service",
    "ServiceAccount",
    "ServiceEntry",
    "ServicePort",
    "SliceEndpoint",
    "SlicePort",
    "Source",
    "TargetRef",
    "WorkloadEntry",
    "WorkloadGroup",
]
