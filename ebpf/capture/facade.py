"""The capture facade: what the agent uses of this package.

State that has to outlive the agent is in pinned maps (`ledger`). Threads may call; they wait for each other.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

from ebpf import bpf, bytecode, compiler, evidence, loader, maps, selftest, variants
from ebpf.capture import enrolment, mending, takeover, withdrawal
from ebpf.capture.agents import Agents, at_work
from ebpf.capture.pod import EnrolledPod, PodNetwork
from ebpf.capture.state import NodeState, explained
from ebpf.direct import Direct
from ebpf.errors import CaptureError
from ebpf.fdstore import FdStore
from ebpf.ledger import Ledger
from ebpf.loader import Kernel
from ebpf.maps import Counter
from ebpf.skew import OtherLayouts
from ebpf.variants import Choice, Chosen, Variant, Why

SUCCESSION: Final = 60.0
"""Seconds within which a successor has to have begun to take pods over."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

log = logging.getLogger(__name__)


def _one_at_a_time(
    method: Callable[Concatenate[Capture, _Arguments], _Result],
) -> Callable[Concatenate[Capture, _Arguments], _Result]:
    @functools.wraps(method)
    def locked(self: Capture, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with self._lock:
            return method(self, *args, **kwargs)

    return locked


class Capture:
    """Capture on one node: maps, programs and links, pinned so that they outlive this process.

    `chosen`: by which variant, and why that one.
    """

    def __init__(self, kernel: Kernel, cgroup: Path | None = None, variant: Variant = Variant.B) -> None:
        """Not for users: see `open`."""
        self.chosen = Chosen(variant, Why.FORCED, "")
        self._lock = threading.RLock()
        self._kernel = kernel
        self._agents = Agents(kernel)
        self._cgroup = cgroup if variant is Variant.B else None
        self.direct = Direct(kernel, self._cgroup)
        self._node = NodeState(kernel, variant, Ledger(kernel), OtherLayouts(kernel.directory), self.direct)

    @classmethod
    def open(
        cls,
        *,
        cgroup: Path | None,
        pin_dir: Path,
        agent_pid: int,
        cache_dir: Path | None = None,
        choice: Choice = Choice.AUTO,
    ) -> Capture:
        """Probe the kernel, test capture in a private namespace, create or adopt the pinned state.

        `cgroup`: cgroup2 directory; sockets of processes in and below it can be captured; None if there is no
        cgroup2. `pin_dir`: on a BPF file system. `agent_pid`: the process whose connections are never captured.
        `cache_dir`: for byte code. `choice`: of the variants. About half a second, a
        tenth where `evidence` of the self-test is kept. CaptureError says in one line
        what is missing and what to do.
        """
        collection = compiler.obtain(cache_dir or compiler.CACHE_DIR)
        chosen = variants.choose(choice, collection, cgroup, pin_dir)
        log.info("capture variant %s (%s): %s", chosen.variant, chosen.why, chosen.reason)
        capture = cls.attach(collection, cgroup, pin_dir, chosen.variant)
        try:
            capture.chosen = chosen
            capture.exempt_agent(agent_pid)
        except BaseException:
            capture.close()
            raise
        return capture

    @classmethod
    def attach(
        cls,
        collection: bytecode.Collection,
        cgroup: Path | None,
        pin_dir: Path,
        variant: Variant = Variant.B,
    ) -> Capture:
        """`open` without probe, self-test and agent: create or adopt the pinned state."""
        with explained(), contextlib.ExitStack() as undo:
            kernel = Kernel.open(collection, pin_dir)
            undo.callback(kernel.close)
            if variant is Variant.B and cgroup is not None:
                kernel.attach_cgroup(cgroup)
            capture = cls(kernel, cgroup, variant)
            undo.pop_all()
        return capture

    @property
    def variant(self) -> Variant:
        """How outbound connections are captured."""
        return self.chosen.variant

    @property
    def dial_mark(self) -> int:
        """SO_MARK for connections of the agent's own in a pod (but see `marks.ONWARD_MARK`)."""
        return enrolment.dial_mark(self.variant)

    def use_store(self, store: FdStore) -> None:
        """From now on keep pods' listeners there, and look there first for those a killed agent left.

        `close` closes it.
        """
        self._node.store = store

    @_one_at_a_time
    def exempt_agent(self, pid: int) -> None:
        """Never capture connections of this process; entries of agents that are gone are dropped.

        Who is there is told by /proc, or where this process has a PID namespace of its own, by `renew`.
        """
        self._agents.exempt(pid, self._node.others)
        self._renew_store()

    @_one_at_a_time
    def renew(self) -> None:
        """Tell other agents that this one is there; to be called every few seconds."""
        self._agents.renew()
        self._renew_store()

    def _renew_store(self) -> None:
        if self._node.store:
            self._node.store.renew(lambda: takeover.served(self._node))

    @_one_at_a_time
    def has_company(self) -> bool:
        """Whether another agent is there: a successor that has started, or a predecessor that drains."""
        return self._agents.has_company()

    @_one_at_a_time
    def enrol(self, pod: PodNetwork) -> EnrolledPod:
        """Capture a pod from now on; its open connections are left alone. A few milliseconds.

        Repeating it with other addresses or ports brings the pod up to date. A pod enrolled by a former agent
        keeps its slot and gets this process's listeners; so does one that was withdrawn and still has relayed
        connections. If it fails (CaptureError), every pod is left as it was.
        """
        return enrolment.enrol(self._node, pod)

    @_one_at_a_time
    def withdraw(self, pod: EnrolledPod) -> bool:
        """Capture nothing new of the pod, close its listeners, and give it its network back exactly as it was.

        While connections are relayed that need the pod's rules, routes and sysctls, these stay, and the
        answer is False: call `release` until it says True. Repeating it is the same as `release`.
        """
        return withdrawal.withdraw(self._node, pod)

    @_one_at_a_time
    def release(self, pod: EnrolledPod) -> bool:
        """Finish a withdrawal if the pod's last relayed connection has ended; whether nothing is left to do.

        A namespace that is dead has none. A pod that has been enrolled again has nothing left to do.
        """
        return withdrawal.release(self._node, pod)

    @_one_at_a_time
    def handed_over(self) -> int:
        """How many pods that this process enrolled another agent serves: above none, a successor has come."""
        return takeover.handed_over(self._node)

    @_one_at_a_time
    def reclaim(self) -> int:
        """Serve pods again that a successor has taken and that nobody serves now, since it has gone; how many.

        Nothing while another agent is there. What waits in the lost agent's queues is reset.
        """
        return 0 if self._agents.has_company() else takeover.reclaim(self._node)

    @_one_at_a_time
    def mend(self) -> list[str]:
        """Put back hooks, maps and pods whose pins somebody removed; the names of those that were missing. Nothing
        while another agent is there. CaptureError if they cannot be put back."""
        return [] if self._agents.has_company() else mending.mend(self._node, self._cgroup)

    @_one_at_a_time
    def is_succeeded(self) -> bool:
        """Whether a younger agent decides about pods from now on: it has taken some over, or it started so lately that
        it may yet do. One that does neither has not come to work, and is not waited for."""
        age = self._agents.successor_age()
        return age is not None and (age < SUCCESSION or self.handed_over() > 0)

    @_one_at_a_time
    def let_go(self, pod: EnrolledPod) -> None:
        """Give up this process's hold on a pod: listeners and namespace. It stays captured, for a successor."""
        withdrawal.let_go(self._node, pod)

    @_one_at_a_time
    def prune(self, keep: Collection[EnrolledPod]) -> list[int]:
        """Forget every pod that is not in `keep` (a former agent's); returns the slots given back.

        A namespace that still lives and can be found is restored, too. Pins of other layout versions go.
        """
        return withdrawal.prune(self._node, keep)

    @_one_at_a_time
    def counters(self) -> dict[str, int]:
        """Counted since the maps were made: captured, outbound, inbound, hbone, dropped, failed, direct,
        fallen_back, dns, turbo, redirected.

        `captured`: connect() marked; `dropped`: no agent listened; `failed`: the kernel refused to steer;
        `direct`: went direct; `fallen_back`: lost its permission on the way and went to the agent; `turbo`: sockets that
        were accelerated; `redirected`: SYNs that went past the host.
        """
        fd = self._kernel.maps["counters"]
        return {
            counter.name.lower(): int.from_bytes(
                bpf.map_lookup(fd, maps.u32(counter), 8) or b"", sys.byteorder
            )
            for counter in Counter
        }

    @_one_at_a_time
    def close(self) -> None:
        """Let go. Pins stay: pods stay captured, and fail closed until a new agent comes.

        Withdrawals that wait are finished: what this process relayed ends with it.
        """
        self.direct.close()
        for pod in list(self._node.leaving.values()):
            withdrawal.finish(self._node, pod)
        self._agents.leave()
        for pod in list(self._node.pods.values()):
            withdrawal.let_go(self._node, pod)
        if self._node.store:
            self._node.store.close()
        self._kernel.close()

    @staticmethod
    def agents_at_work(pin_dir: Path, *, certain: bool = False) -> list[int]:
        """Processes of agents of any layout version that capture by what is pinned here. One that was killed lately may
        be among them where PID namespaces hide who lives; `certain`: then none. OSError."""
        return at_work(pin_dir, certain=certain)

    @staticmethod
    def cleanup(cgroup: Path | None, pin_dir: Path) -> list[str]:
        """Remove every trace; returns what was removed. Namespaces that can be found are restored. An agent that is at
        work (`agents_at_work`) would not know of it."""
        removed: list[str] = []
        if any(pin_dir.glob("v*")):
            with contextlib.suppress(CaptureError):
                capture = Capture(Kernel.open(compiler.shipped(), pin_dir))
                others = [f"pod slot {record.slot}" for record in capture._node.others.records]
                removed += [f"pod slot {slot}" for slot in capture.prune(())] + others
                capture.close()
        for each in sorted(pin_dir.glob("v*")):
            removed += loader.remove_layout(each)
        removed += evidence.forget(pin_dir)
        with contextlib.suppress(OSError):  # a mount point, or shared with somebody else
            pin_dir.rmdir()
        return removed + (selftest.remove_leftovers(cgroup) if cgroup is not None else [])
