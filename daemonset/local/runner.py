"""One container: started, watched by its probes, started again, ended."""

import logging

import trio

from daemonset.local import entry, probes
from daemonset.local.containers import BadContainer, Container, Probe, expand
from daemonset.local.pods import ContainerState, Pod
from daemonset.local.processes import end, restart_pause, start

log = logging.getLogger(__name__)
DEFAULT_GRACE = 30.0
HURRIED_GRACE = 2.0
EAGER_PROBE = 0.1  # until the first success; afterwards as the manifest says


class Runner:
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
            env = entry.environment_of(self.pod, self.container)
        except BadContainer as error:
            self._over(1, f"CreateContainerConfigError: {error}")
            return 1
        command = [expand(word, env) for word in self.container.command]
        log_file = box.log_folder / f"{self.container.name}.log"
        process = await start(command, env, entry.place_of(self.pod, self.container), log_file)
        self.status.state, self.status.pid, self.status.reason = ContainerState.RUNNING, process.pid, ""
        entry.write(self.pod, self.container, env)
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
        env = entry.environment_of(self.pod, self.container)
        with trio.move_on_after(probe.timing.timeout):
            argv = entry.place_of(self.pod, self.container).argv(probe.command)
            done = await trio.run_process(
                argv, env=env, check=False, capture_stdout=True, capture_stderr=True
            )
            return done.returncode == 0
        return False
