"""A large mesh as the registry gets it: 5,000 services of ten pods each, on as many nodes as are asked for."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from dataclasses import replace

from istiodlite.objects import (
    AuthorizationPolicy,
    Container,
    ContainerPort,
    KubeObject,
    Meta,
    Namespace,
    Node,
    ObjectKey,
    OwnerRef,
    Pod,
    Rule,
    Service,
    ServicePort,
    Source,
)

SERVICES = 5_000
PODS = 50_000
SERVICES_A_NAMESPACE = 50
_ANNOTATIONS = {"ambient.istio.io/redirection": "enabled"}
_CONTAINERS = (Container("main", (ContainerPort(8080, "http"),)),)
# Addresses that no pod of the mesh has, for pods that change.
_MOVED = 0x0B_00_00_00


def _namespace(service: int) -> str:
    return f"team-{service // SERVICES_A_NAMESPACE}"


def _address(number: int, base: int = 0x0A_00_00_00) -> str:
    value = base + number + 1
    return ".".join(str(value >> shift & 255) for shift in (24, 16, 8, 0))


@functools.cache
def _labels(service: int) -> dict[str, str]:
    """One for all replicas, as the sources hold them too."""
    return {"app": f"app-{service}", "version": "v1", "pod-template-hash": "6d4cf56db6"}


@functools.cache
def _made_by(service: int) -> tuple[str, tuple[OwnerRef, ...]]:
    """generateName and owners: one for all replicas, too."""
    name = f"app-{service}-6d4cf56db6"
    return f"{name}-", (OwnerRef("ReplicaSet", name, controller=True),)


def pod(number: int, nodes: int, address: str | None = None) -> Pod:
    """Pod `number`; `address` replaces its own."""
    service = number % SERVICES
    generated, owners = _made_by(service)
    meta = Meta(
        name=f"{generated}{number:05d}",
        namespace=sys.intern(_namespace(service)),
        uid=f"uid-{number}",
        labels=_labels(service),
        annotations=_ANNOTATIONS,
        created="2026-01-01T00:00:00Z",
        generate_name=generated,
        owners=owners,
    )
    return Pod(
        meta=meta,
        node=sys.intern(f"node-{number % nodes}"),
        service_account=sys.intern(f"app-{service}"),
        phase="Running",
        ready=True,
        addresses=(address or _address(number),),
        containers=_CONTAINERS,
    )


def _service(number: int) -> Service:
    return Service(
        meta=Meta(f"app-{number}", _namespace(number), created="2026-01-01T00:00:00Z"),
        cluster_ips=(_address(number, 0xAC_10_00_00),),
        ports=(ServicePort(80, "http", "http"), ServicePort(9090, "grpc-metrics", 9090)),
        selector={"app": f"app-{number}"},
        ip_families=("IPv4",),
    )


def _policy(service: int) -> AuthorizationPolicy:
    caller = f"cluster.local/ns/{_namespace(service)}/sa/app-{(service + 1) % SERVICES}"
    return AuthorizationPolicy(
        Meta(f"callers-{service}", _namespace(service)),
        selector={"app": f"app-{service}"},
        rules=(Rule(sources=(Source(principals=(caller,)),)),),
    )


def _all(nodes: int) -> Iterator[KubeObject]:
    for number in range(0, SERVICES, SERVICES_A_NAMESPACE):
        yield Namespace(Meta(_namespace(number), labels={"istio.io/dataplane-mode": "ambient"}))
    for number in range(nodes):
        labels = {"topology.kubernetes.io/region": "r1", "topology.kubernetes.io/zone": f"z{number % 3}"}
        yield Node(Meta(f"node-{number}", labels=labels))
    for number in range(SERVICES):
        yield _service(number)
        if number % 10 == 0:
            yield _policy(number)
    for number in range(PODS):
        yield pod(number, nodes)


def _key(obj: KubeObject) -> ObjectKey:
    return ObjectKey(obj.kind, obj.meta.namespace, obj.meta.name)


def mesh(nodes: int) -> dict[ObjectKey, KubeObject]:
    """Everything, as one batch."""
    return {_key(obj): obj for obj in _all(nodes)}


def churn(turn: int, size: int, nodes: int) -> dict[ObjectKey, KubeObject]:
    """A batch in which `size` pods get another address, and become unready or ready."""
    out: dict[ObjectKey, KubeObject] = {}
    for step in range(size):
        number = (turn * size + step) % PODS
        changed = pod(number, nodes, _address(number, _MOVED + (turn % 100 << 24)))
        out[_key(changed)] = replace(changed, ready=turn % 2 == 1)
    return out
