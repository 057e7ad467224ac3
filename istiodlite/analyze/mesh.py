"""The manifests as the checks look at them: workloads (pods and pod templates), services, waypoints."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from istiodlite.analyze.flows import PlainFlow
from istiodlite.objects import (
    AuthorizationPolicy,
    Gateway,
    KubeObject,
    Namespace,
    ObjectKey,
    PeerAuthentication,
    Pod,
    Service,
    ServiceEntry,
    WorkloadEntry,
    WorkloadGroup,
)
from istiodlite.registry.config import DATAPLANE_MODE, USE_WAYPOINT, USE_WAYPOINT_NAMESPACE, MeshConfig
from istiodlite.registry.world import View, World, selects

_T = TypeVar("_T", bound=KubeObject)
_TEMPLATES = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job")
_SIDECAR = "sidecar.istio.io/status"


@dataclass(frozen=True, slots=True)
class Input:
    """An object with its document as plain values (needed for kinds that run pods)."""

    object: KubeObject
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Workload:
    """Pods that are alike. `enrolled`: the mesh speaks for them; `ports`: name -> container port."""

    key: ObjectKey
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    account: str
    enrolled: bool
    ports: Mapping[str, int]
    numbers: frozenset[int]

    @property
    def namespace(self) -> str:
        return self.key.namespace

    def __str__(self) -> str:
        return f"{self.key.namespace}/{self.key.name}"


@dataclass(frozen=True, slots=True)
class WaypointUse:
    """An object (or namespace) that asks for a waypoint, and which."""

    key: ObjectKey
    labels: Mapping[str, str]
    namespace: str
    name: str


class Mesh:
    """Read access for the checks; built once from the input."""

    def __init__(self, inputs: Iterable[Input], config: MeshConfig, flows: Sequence[PlainFlow] = ()) -> None:
        self.config, self.flows = config, flows
        world = World(config)
        given = list(inputs)
        for one in given:
            meta = one.object.meta
            world.replace(ObjectKey(one.object.kind, meta.namespace, meta.name), one.object)
        self.view = View(world)
        self._world = world
        self.workloads = _without_replicas(
            [found for one in given if (found := self._workload(one)) is not None]
        )
        self.accounts = {(one.namespace, one.account) for one in self.workloads}
        self.accounts |= {(key.namespace, key.name) for key in world.objects if key.kind == "ServiceAccount"}
        self.accounts |= {
            (one.meta.namespace, one.endpoint.service_account)
            for one in self.all(WorkloadEntry, "WorkloadEntry")
        }
        self.accounts |= {
            (one.meta.namespace, one.template.service_account)
            for one in self.all(WorkloadGroup, "WorkloadGroup")
        }
        self.accounts |= {(one.meta.namespace, one.meta.name) for one in self.all(Gateway, "Gateway")}
        self.namespaces = {key.namespace for key in world.objects if key.namespace}
        self.namespaces |= {one.meta.name for one in self.all(Namespace, "Namespace")}

    def _workload(self, one: Input) -> Workload | None:
        obj = one.object
        key = ObjectKey(obj.kind, obj.meta.namespace, obj.meta.name)
        if isinstance(obj, Pod):
            if obj.phase in ("Succeeded", "Failed"):
                return None
            containers = [(port.name, port.number) for c in obj.containers for port in c.ports]
            enrolled = self._enrolled(key, obj.meta.labels, obj.meta.annotations, obj.host_network)
            labels, annotations = obj.meta.labels, obj.meta.annotations
            return _made(key, labels, annotations, obj.service_account, enrolled, containers)
        if obj.kind not in _TEMPLATES and obj.kind != "CronJob":
            return None
        template = _path(
            one.body, "spec", *(("jobTemplate", "spec") if obj.kind == "CronJob" else ()), "template"
        )
        meta, spec = _path(template, "metadata"), _path(template, "spec")
        labels = _texts(meta.get("labels"))
        containers = [
            (str(port.get("name", "")), port["containerPort"])
            for container in _maps(spec.get("containers"))
            for port in _maps(container.get("ports"))
            if isinstance(port.get("containerPort"), int)
        ]
        annotations = _texts(meta.get("annotations"))
        enrolled = self._enrolled(key, labels, annotations, bool(spec.get("hostNetwork")))
        account = str(spec.get("serviceAccountName") or "default")
        return _made(key, labels, annotations, account, enrolled, containers)

    def _enrolled(
        self, key: ObjectKey, labels: Mapping[str, str], annotations: Mapping[str, str], host: bool
    ) -> bool:
        if host or _SIDECAR in annotations:
            return False
        mode = labels.get(DATAPLANE_MODE) or self.view.namespace_labels(key.namespace).get(DATAPLANE_MODE)
        return mode == "ambient"

    def all(self, type_: type[_T], kind: str) -> list[_T]:
        """All objects of a kind, in the order of their keys."""
        found = (self._world.objects[key] for key in sorted(self._world.objects) if key.kind == kind)
        return [one for one in found if isinstance(one, type_)]

    @property
    def objects(self) -> Mapping[ObjectKey, KubeObject]:
        return self._world.objects

    def policies(self) -> list[AuthorizationPolicy]:
        return self.all(AuthorizationPolicy, "AuthorizationPolicy")

    def peer_authentications(self) -> list[PeerAuthentication]:
        return self.all(PeerAuthentication, "PeerAuthentication")

    def services(self) -> list[Service]:
        return self.all(Service, "Service")

    def selected(self, namespace: str, selector: Mapping[str, str]) -> list[Workload]:
        """Workloads of the namespace (of all for the root namespace) that have these labels."""
        everywhere = namespace == self.config.root_namespace
        here = (one for one in self.workloads if everywhere or one.namespace == namespace)
        return [one for one in here if selects(selector, one.labels)]

    def services_of(self, workload: Workload) -> list[Service]:
        found = self.view.selecting(Service, workload.namespace, workload.labels)
        return [one for one in found if one.selector]

    def waypoint_of(self, service: Service | ServiceEntry) -> tuple[str, str] | None:
        """(namespace, name) that a service asks for, by its own label or its namespace's."""
        namespace = service.meta.namespace
        for labels in (service.meta.labels, self.view.namespace_labels(namespace)):
            if name := labels.get(USE_WAYPOINT, ""):
                return None if name == "none" else (labels.get(USE_WAYPOINT_NAMESPACE) or namespace, name)
        return None

    def waypoint_uses(self) -> Iterator[WaypointUse]:
        """Every label that names a waypoint."""
        for key in sorted(self._world.objects):
            if key.kind not in ("Namespace", "Service", "ServiceEntry", "Pod", "WorkloadEntry"):
                continue
            labels = self._world.objects[key].meta.labels
            name = labels.get(USE_WAYPOINT, "")
            if name and name != "none":
                place = key.name if key.kind == "Namespace" else key.namespace
                yield WaypointUse(key, labels, labels.get(USE_WAYPOINT_NAMESPACE) or place, name)


def _without_replicas(workloads: list[Workload]) -> list[Workload]:
    """A dump of a cluster has the pods beside the Deployments that made them: one of the two is enough."""
    templates = [one for one in workloads if one.key.kind != "Pod"]
    return [
        one
        for one in workloads
        if one.key.kind != "Pod"
        or not any(t.namespace == one.namespace and selects(t.labels, one.labels) for t in templates)
    ]


def _made(
    key: ObjectKey,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    account: str,
    enrolled: bool,
    ports: list[tuple[str, int]],
) -> Workload:
    named = {name: number for name, number in ports if name}
    return Workload(
        key, labels, annotations, account, enrolled, named, frozenset(number for _, number in ports)
    )


def _path(value: Any, *names: str) -> Mapping[str, Any]:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _texts(value: Any) -> dict[str, str]:
    return {str(key): str(text) for key, text in value.items()} if isinstance(value, Mapping) else {}


def _maps(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []
