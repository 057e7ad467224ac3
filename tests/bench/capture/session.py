"""Fresh processes for one figure, in two pods."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.bench.capture.pods import Pods
from tests.bench.cases import Case
from tests.bench.process import Process, ProcessError
from tests.bench.results import Sample
from tests.bench.rounds import INTEGRITY, Plan, warm_up
from tests.bench.testbed import SERVER_ADDRESS, SERVER_PORT, MeasurementError, Session, Testbed
from tests.bench.variants import Variant


class PodSession(Session):
    """Programs whose name ends in "outbound" run in the client's pod, the others in the server's."""

    def __init__(self, bed: Testbed, pods: Pods, pin: int | None, undo: ExitStack) -> None:
        super().__init__(bed, pin)
        self.pods, self.undo = pods, undo

    def load_command(self, *arguments: str) -> list[str]:
        return self.pods.command("client", [str(self.bed.programs / "load"), *arguments], self.pin)

    def spawn(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        *,
        proxy: bool = True,
        apart: bool = False,
        keep: Sequence[int] = (),
    ) -> Process:
        """As `Session.spawn`, but each side has its namespace: none is apart. `keep`: descriptors that it inherits."""
        pod = "client" if name.endswith("outbound") else "server"
        process = Process(
            name,
            self.pods.command(pod, list(command), self.pin),
            self.bed.logs / f"{name}.log",
            proxy=proxy,
            environment={**os.environ, **self.bed.environment},
            keep=keep,
        )
        self._processes.append(process)
        process.wait_listening(port)
        return process

    def serve_node(self, name: str, command: Sequence[str]) -> None:
        """A program of the node's, not of a pod's, on another CPU than the measured one; until it says "ready"."""
        others = ",".join(str(cpu) for cpu in range(os.cpu_count() or 1) if cpu != self.pin)
        environment = {**os.environ, **self.bed.environment}
        log = self.bed.logs / f"{name}.log"
        process = Process(name, ["taskset", "-c", others, *command], log, proxy=True, environment=environment)
        self._processes.append(process)
        self.undo.callback(process.stop)
        process.wait_saying("ready")

    def serve(self) -> None:
        """The server in its pod."""
        command = [str(self.bed.programs / "load"), "serve", SERVER_ADDRESS]
        self.spawn("server", command, SERVER_PORT, proxy=False)

    def accept_outbound(self, listener: int, port: int) -> None:
        """A server in the client's pod that accepts what comes to a listener, as the agent does there."""
        command = [str(self.bed.programs / "load"), "serve", "0.0.0.0:0", "--listener", str(listener)]
        self.spawn("accepting-outbound", command, port, proxy=False, keep=[listener])


@contextmanager
def pod_session(bed: Testbed, pods: Pods, pin: int | None) -> Iterator[PodSession]:
    """What was started is stopped, what was changed is undone. ProcessError and OSError become MeasurementError."""
    with ExitStack() as undo:
        current = PodSession(bed, pods, pin, undo)
        undo.callback(current.stop)
        try:
            yield current
        except (ProcessError, OSError) as error:
            raise MeasurementError(str(error)) from error


def figure_in(pods: Pods) -> Callable[..., Mapping[str, Sample]]:
    """What `rounds.run` calls for one figure."""

    def figure(
        bed: Testbed, case: Case, variant: Variant, plan: Plan, *, check: bool, **_: Any
    ) -> Mapping[str, Sample]:
        with pod_session(bed, pods, plan.pin if case.pinned else None) as current:
            variant.start(current, case)
            if check:
                current.load(*INTEGRITY)
            warm_up(current)
            return case.measure(current, plan.seconds)

    return figure
