"""What the manifests ask for: nodes, pods, services. `compile.compile_objects` makes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from daemonset.local.servicespec import ServiceSpec, SliceSpec
from daemonset.local.template import Json, Key, PodTemplate

SYSTEM_NAMESPACE = "istio-system"


class BadManifests(Exception):
    """The manifests cannot be applied. `errors`: one line each, saying what to change."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("; ".join(errors))
        self.errors = tuple(errors)


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A node to be: its name and labels. `declared`: by a Node object, rather than by need."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    declared: bool = False


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """A Deployment: the keys of its pods, and whether old pods go before new ones come."""

    key: Key
    pods: tuple[Key, ...]
    recreate: bool = False


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything that the manifests ask for. `objects`: all of them, with namespaces filled in."""

    nodes: Mapping[str, NodeSpec]
    pods: Mapping[Key, PodTemplate]
    deployments: Mapping[Key, DeploymentSpec]
    services: Mapping[Key, ServiceSpec]
    slices: tuple[SliceSpec, ...]
    namespaces: Mapping[str, Mapping[str, str]]  # name -> labels
    config_maps: Mapping[Key, Mapping[str, str]]
    secrets: Mapping[Key, Mapping[str, str]]
    objects: tuple[Json, ...]
    notes: tuple[str, ...] = ()


EMPTY = Desired({}, {}, {}, {}, (), {}, {}, {}, ())
