"""One pod's life: network, enrolment, containers, probes, restarts, end. The kubelet's part."""

import enum
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio

from daemonset.local import cgroups, probes
from daemonset.local.containers import BadContainer, Container, PodFacts, Probe, environment, expand
from daemonset.local.desired import PodTemplate
from daemonset.local.folder import write_atomically
from daemonset.local.processes import Place, end, restart_pause, start
from ztunnel.enrol.steps import OUT, Enrolment, Step

log = logging.getLogger(__name__)
DEFAULT_GRACE = 30.0
HURRIED_GRACE = 2.0
LEAVE_PATIENCE = 5.0
EAGER_PROBE = 0.1  # until the first success; afterwards as the manifest says


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
    """A pod that exists; `run` is its life. `make` and `unmake` build and remove its network."""

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
    _enrolment_changed: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        for container in (*self.template.init, *self.template.containers):
            self.statuses[container.name] = ContainerStatus(container.name)

    # -- what others ask ---------------------------------------------------------------------------

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
            self._enrolment_changed.set()
            self._enrolment_changed = trio.Event()

    def stop(self, why: str) -> None:
        """Begins the end of the pod. `hurried`, set before, makes it short: the whole mesh goes."""
        self.deleting, self.why = True, why
        self.scope.cancel()
        self.host.changed()

    # -- life --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From creation until `scope` is cancelled; then everything of the pod is removed."""
        try:
            with self.scope:
                await trio.to_thread.run_sync(self.make)
                self.networked = True
                self.host.changed()
                await self._enrolled_if_wanted()
                await self._run_containers()
                self.host.changed()
                await trio.sleep_forever()
        except* Exception as errors:  # one pod's misfortune must not be the others'
            self.phase, self.message = "Failed", str(errors.exceptions[0])
            log.exception("pod %s/%s", *self.template.key)
            self.host.changed()
            with self.scope:
                await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await self._remove()

    async def _enrolled_if_wanted(self) -> None:
        """As on Kubernetes, no container starts before traffic is captured: never uncaptured."""
        while self.wants_enrolment and self.enrolment.step is not Step.IN:
            error = self.enrolment.error
            self.message = f"enrolment failed: {error}" if error else "waiting for the node's agent"
            self.host.changed()
            await self._enrolment_changed.wait()
        self.message = ""

    async def _remove(self) -> None:
        self.deleting = True
        self.host.changed()
        await trio.to_thread.run_sync(cgroups.kill, self.sandbox.cgroup)
        self.exited = True
        self.host.changed()
        with trio.move_on_after(0 if self.hurried else LEAVE_PATIENCE):
            while self.enrolment.step is not Step.OUT:
                await self._enrolment_changed.wait()
        try:
            await trio.to_thread.run_sync(self.unmake)
        except OSError:
            log.exception("pod %s/%s is not all gone", *self.template.key)

    async def _run_containers(self) -> None:
        async with trio.open_nursery() as nursery:
            for container in self.template.init:
                runner = _Runner(self, container)
                if container.sidecar:
                    await nursery.start(runner.keep)
                elif not await self._run_init(runner):
                    self.phase = "Failed"
                    nursery.cancel_scope.cancel()
                    return
            async with trio.open_nursery() as main:
                for container in self.template.containers:
                    main.start_soon(_Runner(self, container).keep)
                self.phase = "Running"
                self.host.changed()
            failed = any(self.statuses[c.name].exit_code for c in self.template.containers)
            self.phase = "Failed" if failed else "Succeeded"
            nursery.cancel_scope.cancel()

    async def _run_init(self, runner: "_Runner") -> bool:
        while True:
            code = await runner.once()
            if code == 0:
                return True
            if self.template.spec.get("restartPolicy") == "Never":
                return False
            self.message = f"Init:{'CrashLoopBackOff' if runner.status.restarts else 'Error'}"
            await runner.pause(0.0)


class _Runner:
    """Starts one container, watches it, starts it again."""

    def __init__(self, pod: Pod, container: Container) -> None:
        self.pod, self.container = pod, container
        self.status = pod.statuses[container.name]
        self.cgroup = pod.sandbox.cgroup / container.name
        self.policy = (
            "Always" if container.sidecar else str(pod.template.spec.get("restartPolicy") or "Always")
        )
        self._crashes = 0

    async def keep(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until the restart policy says that it is over."""
        while True:
            began = trio.current_time()
            code = await self.once(task_status)
            if self.policy == "Never" or (self.policy == "OnFailure" and code == 0):
                return
            await self.pause(trio.current_time() - began)

    async def pause(self, lived: float) -> None:
        """Kubernetes' back-off, with shorter times."""
        seconds = restart_pause(self._crashes, lived)
        self._crashes += 1
        self.status.restarts += 1
        self.status.state = ContainerState.WAITING
        self.status.reason = "CrashLoopBackOff" if seconds else "Restarting"
        self.pod.host.changed()
        await trio.sleep(seconds)

    async def once(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> int:
        """One run; the exit code."""
        box = self.pod.sandbox
        try:
            env = container_env(self.pod, self.container)
        except BadContainer as error:
            self._over(1, f"CreateContainerConfigError: {error}")
            return 1
        command = [expand(word, env) for word in self.container.command]
        log_file = box.log_folder / f"{self.container.name}.log"
        process = await start(command, env, container_place(self.pod, self.container), log_file)
        self.status.state, self.status.pid, self.status.reason = ContainerState.RUNNING, process.pid, ""
        write_entry(self.pod, self.container, env)
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, process)
                code = await process.wait()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                code = await end(process, self.cgroup, self._grace())
                self._over(code, "Completed" if code == 0 else "Error")
        return code

    def _grace(self) -> float:
        wanted = self.pod.template.spec.get("terminationGracePeriodSeconds")
        grace = DEFAULT_GRACE if wanted is None else float(wanted)
        return min(HURRIED_GRACE, grace) if self.pod.hurried else grace

    def _over(self, code: int, reason: str) -> None:
        status = self.status
        status.state, status.exit_code, status.reason = ContainerState.TERMINATED, code, reason
        status.ready, status.pid = False, 0
        self.pod.host.changed()

    # -- probes ------------------------------------------------------------------------------------

    async def _watch(self, process: trio.Process) -> None:
        self.status.ready = self.container.readiness is None
        self.pod.host.changed()
        async with trio.open_nursery() as nursery:
            if self.container.startup is not None:
                await self._until_failed(self.container.startup, until_success=True, process=process)
            if self.container.readiness is not None:
                nursery.start_soon(self._readiness, self.container.readiness)
            if self.container.liveness is not None:
                await self._until_failed(self.container.liveness, until_success=False, process=process)

    async def _until_failed(self, probe: Probe, *, until_success: bool, process: trio.Process) -> None:
        """Ends the container when the probe has failed often enough; a startup probe is over at its first success."""
        await trio.sleep(probe.timing.initial_delay)
        failures = 0
        while failures < probe.timing.failures:
            good = await self._ask(probe)
            if good and until_success:
                return
            failures = 0 if good else failures + 1
            await trio.sleep(probe.timing.period)
        log.warning("pod %s/%s: %s is not alive", *self.pod.template.key, self.container.name)
        await end(process, self.cgroup, self._grace())

    async def _readiness(self, probe: Probe) -> None:
        await trio.sleep(probe.timing.initial_delay)
        row, ever = 0, False
        while True:
            good = await self._ask(probe)
            row = row + 1 if good != self.status.ready else 0
            if row >= (probe.timing.successes if good else probe.timing.failures):
                self.status.ready, row = good, 0
                ever = ever or good
                self.pod.host.changed()
            await trio.sleep(probe.timing.period if ever else min(EAGER_PROBE, probe.timing.period))

    async def _ask(self, probe: Probe) -> bool:
        box = self.pod.sandbox
        if probe.kind != "exec":
            return await probes.ask(probe, box.addresses[0], box.node_netns)
        env = container_env(self.pod, self.container)
        with trio.move_on_after(probe.timing.timeout):
            argv = container_place(self.pod, self.container).argv(probe.command)
            done = await trio.run_process(
                argv, env=env, check=False, capture_stdout=True, capture_stderr=True
            )
            return done.returncode == 0
        return False


def container_env(pod: Pod, container: Container) -> dict[str, str]:
    """The variables of a container's programs. PATH begins with this installation's programs."""
    here = os.path.dirname(sys.executable)
    base = {
        "PATH": f"{here}:{os.environ.get('PATH', '/usr/local/bin:/usr/bin:/bin')}",
        "HOME": os.environ.get("HOME", "/root"),
        "HOSTNAME": pod.template.name,
        "LANG": "C.UTF-8",
    }
    return base | environment(container, pod.facts(), pod.host.config_map, pod.host.secret)


def container_place(pod: Pod, container: Container) -> Place:
    """Where a container's programs run."""
    box = pod.sandbox
    binds = {f"/etc/{name}": str(box.folder / name) for name in ("resolv.conf", "hosts")}
    host_network = pod.template.host_network
    return Place(
        cgroup=box.cgroup / container.name,
        netns=box.netns,
        binds=binds,
        hostname="" if host_network else pod.template.name,
        cwd=container.working_dir,
    )


def entry_file(folder: Path, container: str) -> Path:
    """Where a started container's entry is: how another program joins it (`ambientctl exec`)."""
    return folder / f"exec.{container}.json"


def write_entry(pod: Pod, container: Container, env: Mapping[str, str]) -> None:
    """Notes how to join a container that has been started."""
    entry = {"plan": container_place(pod, container).plan(), "env": dict(env)}
    write_atomically(entry_file(pod.sandbox.folder, container.name), json.dumps(entry), mode=0o600)
