"""A pod as it is: where it lives, how far it is, what its containers do."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio

from daemonset.local.containers import PodFacts
from daemonset.local.template import PodTemplate
from ztunnel.enrol.steps import OUT, Enrolment


class ContainerState(enum.Enum):
    """Kubernetes' container states."""

    WAITING = "waiting"
    RUNNING = "running"
    TERMINATED = "terminated"


@dataclass
class ContainerStatus:
    """What a container is doing."""

    name: str
    state: ContainerState = ContainerState.WAITING
    reason: str = "ContainerCreating"
    exit_code: int | None = None
    restarts: int = 0
    ready: bool = False
    pid: int = 0


class Host(Protocol):
    """What a pod needs of the supervisor."""

    def changed(self) -> None:
        """Something about a pod changed: publish it."""

    def config_map(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """Data of a ConfigMap."""

    def secret(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """Data of a Secret."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Where a pod lives. `addresses` are texts; for hostNetwork those of the node."""

    node: str
    node_netns: Path
    node_addresses: tuple[str, ...]
    netns: Path
    cgroup: Path
    folder: Path
    log_folder: Path
    addresses: tuple[str, ...]


@dataclass
class Pod:
    """A pod that exists; `kubelet.live` is its life. `make` and `unmake` build and remove its network."""

    template: PodTemplate
    uid: str
    created: str
    sandbox: Sandbox
    host: Host
    make: Callable[[], None]
    unmake: Callable[[], None]
    enrolment: Enrolment = OUT
    wants_enrolment: bool = False
    networked: bool = False
    deleting: bool = False
    exited: bool = False
    phase: str = "Pending"
    message: str = ""
    why: str = ""
    statuses: dict[str, ContainerStatus] = field(default_factory=dict)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    hurried: bool = False
    enrolment_changed: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        for container in (*self.template.init, *self.template.containers):
            self.statuses[container.name] = ContainerStatus(container.name)

    @property
    def ready(self) -> bool:
        """The Ready condition."""
        if self.deleting or self.phase != "Running":
            return False
        return all(self.statuses[c.name].ready for c in self.template.containers)

    @property
    def finished(self) -> bool:
        """Whether all containers have ended for good."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def restarts(self) -> int:
        """Restarts of all containers together."""
        return sum(s.restarts for s in self.statuses.values())

    @property
    def status_text(self) -> str:
        """One word for people, as kubectl's STATUS column."""
        if self.deleting:
            return "Terminating"
        if self.phase == "Pending" and self.message:
            return self.message
        stuck = [s.reason for s in self.statuses.values() if s.state is ContainerState.WAITING and s.restarts]
        return stuck[0] if stuck else self.phase

    def facts(self) -> PodFacts:
        """What the downward API tells."""
        t = self.template
        return PodFacts(
            t.name,
            t.namespace,
            self.uid,
            t.labels,
            t.annotations,
            self.sandbox.node,
            t.service_account,
            self.sandbox.addresses,
            self.sandbox.node_addresses,
        )

    def set_enrolment(self, state: Enrolment) -> None:
        """Notes how far enrolment is; wakes whoever waits for it."""
        if state != self.enrolment:
            self.enrolment = state
            self.enrolment_changed.set()
            self.enrolment_changed = trio.Event()

    def stop(self, why: str) -> None:
        """Begins the end of the pod. `hurried`, set before, makes it short: the whole mesh goes."""
        self.deleting, self.why = True, why
        self.scope.cancel()
        self.host.changed()
