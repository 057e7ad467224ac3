"""A pod to be, as its manifest or its Deployment has it. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daemonset.local.containers import BadContainer, Container, parse_containers
from daemonset.local.names import digest

Json = Mapping[str, Any]
Key = tuple[str, str]  # namespace, name

_SAFE = "bcdfghjklmnpqrstvwxz2456789"  # as Kubernetes: no vowels, so no words


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """A pod to be. `fingerprint` covers all that cannot change in a running pod."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    spec: Json
    init: tuple[Container, ...]
    containers: tuple[Container, ...]
    fingerprint: str
    deployment: str = ""
    template_hash: str = ""

    @property
    def key(self) -> Key:
        """(namespace, name)."""
        return self.namespace, self.name

    @property
    def owner(self) -> str:
        """What the user wrote, as kind and name."""
        kind, name = ("Deployment", self.deployment) if self.deployment else ("Pod", self.name)
        return f"{kind} {self.namespace}/{name}"

    @property
    def host_network(self) -> bool:
        """Whether the pod lives in its node's network namespace."""
        return bool(self.spec.get("hostNetwork"))

    @property
    def service_account(self) -> str:
        """Name of the pod's service account."""
        return str(self.spec.get("serviceAccountName") or self.spec.get("serviceAccount") or "default")

    @property
    def named_ports(self) -> dict[str, int]:
        """Numbers of the containers' named ports."""
        containers = (*self.containers, *(c for c in self.init if c.sidecar))
        return {p.name: p.number for c in containers for p in c.ports if p.name}


def make_template(
    namespace: str,
    name: str,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    spec: Json,
    deployment: str = "",
    template_hash: str = "",
) -> PodTemplate:
    """A pod's template from its manifest; BadContainer if it cannot be run."""
    if not isinstance(spec, Mapping):
        raise BadContainer("spec has to be a mapping")
    init, containers = parse_containers(spec)
    if spec.get("restartPolicy", "Always") not in ("Always", "OnFailure", "Never"):
        raise BadContainer("restartPolicy has to be Always, OnFailure or Never")
    fingerprint = digest(canonical(spec), 32)
    return PodTemplate(
        namespace, name, labels, annotations, spec, init, containers, fingerprint, deployment, template_hash
    )


def canonical(value: object) -> str:
    """The same text for the same manifest."""
    return json.dumps(value, sort_keys=True, default=str)


def safe_hash(text: str, length: int) -> str:
    """A hash in Kubernetes' alphabet for generated names."""
    number = int(digest(text, 32), 16)
    letters = []
    for _ in range(length):
        number, index = divmod(number, len(_SAFE))
        letters.append(_SAFE[index])
    return "".join(letters)
