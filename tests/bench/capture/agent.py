"""The agent's side of the direct path: `python -m tests.bench.capture.agent CGROUP PIN_DIR CLIENT SERVER [accelerated]`.

The product's own parts, joined as the node agent joins them: capture, the plan of pairs over a snapshot (`mesh_state`),
the reader of the kernel's records, flow registry, metrics, access log (on stdout). What is missing is what brings pods
and state (enrolment protocol, xDS), and the engine. Says "ready" on stderr when the pair is in force.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import trio

from ebpf import compiler
from ebpf.capture import Capture, EnrolledPod, PodNetwork
from ebpf.turbo import offsets
from tests.bench.capture.pods import ADDRESSES
from tests.bench.mesh_state import NODE, build
from ztunnel.accesslog import AccessLog
from ztunnel.direct.keeper import Keeper, Scissors
from ztunnel.enrol.settings import CaptureSettings
from ztunnel.flows.redecide import Redecider
from ztunnel.flows.registry import Registry
from ztunnel.logs import LineWriter
from ztunnel.metrics import Traffic
from ztunnel.store import Store

DEADLINE_S = 10.0


@dataclass
class LocalPod:
    """What the keeper asks of an enrolled pod."""

    enrolled: EnrolledPod
    name: str
    settings: CaptureSettings
    namespace: str = "bench"

    @property
    def service_account(self) -> str:
        return self.name

    @property
    def addresses(self) -> tuple[Any, ...]:
        return self.enrolled.network.addresses


@dataclass
class LocalPods:
    """In the place of `Pods`."""

    pods: list[LocalPod]
    snapshot_done: bool = field(default=True)

    def __iter__(self) -> Any:
        return iter(self.pods)


class NoEngine:
    """Nothing is relayed."""

    def cut(self, token: int, reason_code: int) -> None:
        raise AssertionError("a relayed connection was cut")

    def flush(self) -> None:
        pass


def enrol(capture: Capture, name: str, netns: str, settings: CaptureSettings) -> LocalPod:
    """A pod, captured."""
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return LocalPod(capture.enrol(PodNetwork(fd, (ip_address(ADDRESSES[name]),))), name, settings)
    finally:
        os.close(fd)


async def work(capture: Capture, pods: list[LocalPod]) -> None:
    """Until SIGTERM."""
    store, log = Store(NODE), AccessLog(LineWriter(sys.stdout.fileno()), as_json=False)
    flows = Registry(Traffic(), log)
    redecider = Redecider(flows, Scissors(NoEngine(), lambda: keeper), lambda: store.snapshot)
    keeper = Keeper(
        capture.direct, LocalPods(pods), flows, log, enabled=True, network="",
        current=lambda: store.snapshot, monotonic=time.monotonic,
    )  # fmt: skip
    store.subscribe(keeper.changed)
    store.subscribe(redecider.changed)
    await store.apply(build())
    with trio.open_signal_receiver(signal.SIGTERM) as ended:
        async with trio.open_nursery() as nursery:
            for part in (store.run, redecider.run, keeper.run):
                nursery.start_soon(part)
            with trio.fail_after(DEADLINE_S):
                while not capture.direct.pairs or not capture.direct.is_lent:
                    await trio.sleep(0.01)
            print("ready", file=sys.stderr, flush=True)
            await ended.__anext__()
            nursery.cancel_scope.cancel()


def main() -> int:
    cgroup, pin_dir, client, server, *rest = sys.argv[1:]
    logging.getLogger("ztunnel").setLevel(logging.INFO)
    accelerated = rest == ["accelerated"]
    capture = Capture.attach(compiler.shipped(), Path(cgroup), Path(pin_dir))
    if accelerated:
        capture.direct.turbo.attach(offsets())
    settings = CaptureSettings(accelerate=accelerated)
    netns = {"client": client, "server": server}
    try:
        trio.run(work, capture, [enrol(capture, name, netns[name], settings) for name in netns])
    finally:
        capture.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
