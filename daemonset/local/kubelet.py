"""One pod's life: network, enrolment, containers, end. The kubelet's part."""

import logging

import trio

from daemonset.local import cgroups
from daemonset.local.pods import Pod
from daemonset.local.runner import Runner
from ztunnel.enrol.steps import Step

log = logging.getLogger(__name__)
LEAVE_PATIENCE = 5.0


async def live(pod: Pod) -> None:
    """From creation until `scope` is cancelled; then everything of the pod is removed."""
    try:
        with pod.scope:
            await trio.to_thread.run_sync(pod.make)
            pod.networked = True
            pod.host.changed()
            await _enrolled_if_wanted(pod)
            await _run_containers(pod)
            pod.host.changed()
            await trio.sleep_forever()
    except* Exception as errors:  # one pod's misfortune must not be the others'
        pod.phase, pod.message = "Failed", str(errors.exceptions[0])
        log.exception("pod %s/%s", *pod.template.key)
        pod.host.changed()
        with pod.scope:
            await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await _remove(pod)


async def _enrolled_if_wanted(pod: Pod) -> None:
    """As on Kubernetes, no container starts before traffic is captured: never uncaptured."""
    while pod.wants_enrolment and pod.enrolment.step is not Step.IN:
        error = pod.enrolment.error
        pod.message = f"enrolment failed: {error}" if error else "waiting for the node's agent"
        pod.host.changed()
        await pod.enrolment_changed.wait()
    pod.message = ""


async def _remove(pod: Pod) -> None:
    pod.deleting = True
    pod.host.changed()
    await trio.to_thread.run_sync(cgroups.kill, pod.sandbox.cgroup)
    pod.exited = True
    pod.host.changed()
    with trio.move_on_after(0 if pod.hurried else LEAVE_PATIENCE):
        while pod.enrolment.step is not Step.OUT:
            await pod.enrolment_changed.wait()
    try:
        await trio.to_thread.run_sync(pod.unmake)
    except OSError:
        log.exception("pod %s/%s is not all gone", *pod.template.key)


async def _run_containers(pod: Pod) -> None:
    async with trio.open_nursery() as nursery:
        for container in pod.template.init:
            runner = Runner(pod, container)
            if container.sidecar:
                await nursery.start(runner.keep)
            elif not await _run_init(pod, runner):
                pod.phase = "Failed"
                nursery.cancel_scope.cancel()
                return
        async with trio.open_nursery() as main:
            for container in pod.template.containers:
                main.start_soon(Runner(pod, container).keep)
            pod.phase = "Running"
            pod.host.changed()
        failed = any(pod.statuses[c.name].exit_code for c in pod.template.containers)
        pod.phase = "Failed" if failed else "Succeeded"
        nursery.cancel_scope.cancel()


async def _run_init(pod: Pod, runner: Runner) -> bool:
    while True:
        code = await runner.once()
        if code == 0:
            return True
        if pod.template.spec.get("restartPolicy") == "Never":
            return False
        pod.message = f"Init:{'CrashLoopBackOff' if runner.status.restarts else 'Error'}"
        await runner.pause(0.0)
