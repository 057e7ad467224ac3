"""The capture facade: what the agent uses of this package.

State that has to outlive the agent is in pinned maps (`ledger`). Threads may call; they wait for each other.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

from ebpf import (
    bpf,
    bytecode,
    compiler,
    loader,
    looping,
    maps,
    netns,
    routes,
    selftest,
    sockets,
    variants,
)
from ebpf.direct import Direct
from ebpf.dns import DNS_PORT, DnsSockets, adopt_dns, close_all, open_dns
from ebpf.errors import CaptureError, CaptureReason
from ebpf.fdstore import FdStore
from ebpf.ledger import Ledger
from ebpf.listeners import PORTS, Listeners, adopt, open_listeners
from ebpf.loader import Kernel
from ebpf.maps import Counter, PodFlag, PodRecord
from ebpf.marks import AGENT_MARK
from ebpf.skew import OtherLayouts
from ebpf.variants import Choice, Chosen, Variant, Why

SEEN: Final = 15
"""Seconds after the last `renew` for which an agent counts as there."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """What is to be captured.

    `netns_fd`: open descriptor of the pod's network namespace; stays the caller's (capture keeps a copy).
    `addresses`: the pod's own; at least one. `node_addresses`: plaintext inbound traffic from these is left
    to the application (kubelet probes). `exempt_inbound_ports`: local ports left alone (never 15008).
    `exempt_outbound_ports`: destination ports left alone. `only_inbound_ports`: if not None, plaintext inbound
    traffic is captured on these ports only. `bypass_inbound`: of the inbound traffic only HBONE is captured.
    `dns`: questions to name servers (UDP and TCP port 53) are captured, too.
    """

    netns_fd: int
    addresses: tuple[IPv4Address | IPv6Address, ...]
    node_addresses: tuple[IPv4Address | IPv6Address, ...] = ()
    exempt_inbound_ports: frozenset[int] = frozenset()
    exempt_outbound_ports: frozenset[int] = frozenset()
    only_inbound_ports: frozenset[int] | None = None
    bypass_inbound: bool = False
    dns: bool = False

    @property
    def captures_dns(self) -> bool:
        """Whether they are: not where port 53 is to be left alone."""
        return self.dns and DNS_PORT not in self.exempt_outbound_ports


@dataclass(frozen=True, slots=True, eq=False)
class EnrolledPod:
    """A captured pod: its number in the kernel's maps, its namespace's cookie, its three listeners, and `dns`
    if its questions to name servers are captured.

    The sockets (non-blocking, dual stack) belong to `Capture`: `withdraw` and `close` close them.
    `network.netns_fd` is a copy that belongs to `Capture`, too.
    """

    slot: int
    cookie: int
    outbound: socket.socket
    inbound: socket.socket
    hbone: socket.socket
    network: PodNetwork
    dns: DnsSockets | None = None

    @property
    def listeners(self) -> Listeners:
        """The three sockets together."""
        return Listeners(self.outbound, self.inbound, self.hbone)

    def descriptors(self) -> list[int]:
        """For the fd store: those that clients wait at."""
        dns = self.dns.descriptors() if self.dns is not None and self.dns.are_open() else []
        return [*self.listeners.descriptors(), *dns]

    def close(self) -> None:
        """Close this process's descriptors of the sockets."""
        self.listeners.close()
        if self.dns is not None:
            self.dns.close()


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
        self._store: FdStore | None = None
        self._home = netns.cookie_here()
        self._agent: int | None = None
        self._ledger = Ledger(kernel)
        self._others = OtherLayouts(kernel.directory)
        self.direct = Direct(kernel, cgroup if variant is Variant.B else None)
        self._pods: dict[int, EnrolledPod] = {}  # by cookie; enrolled by this process
        self._leaving: dict[int, EnrolledPod] = {}  # withdrawn by it, with connections that are still relayed

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
        `cache_dir`: for byte code. `choice`: of the variants. About half a second. CaptureError says in one line
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
        with _explained(), contextlib.ExitStack() as undo:
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
        return AGENT_MARK if self.variant is Variant.C else 0

    def use_store(self, store: FdStore) -> None:
        """From now on keep pods' listeners there, and look there first for those a killed agent left.

        `close` closes it.
        """
        self._store = store

    @_one_at_a_time
    def exempt_agent(self, pid: int) -> None:
        """Never capture connections of this process; entries of agents that are gone are dropped.

        Who is there is told by /proc, or where this process has a PID namespace of its own, by `renew`.
        """
        in_kernel = loader.own_process() if pid == os.getpid() else None
        process = in_kernel or pid
        same_view = process == pid
        for key, value in self._others.agents().items():
            bpf.map_update(self._kernel.maps["agents"], key, value)
        for other, seen in self._agents():
            alive = Path(f"/proc/{other}").exists() if same_view else seen
            if not alive:
                bpf.map_delete(self._kernel.maps["agents"], maps.u32(other))
        self._agent = process
        self.renew()

    @_one_at_a_time
    def renew(self) -> None:
        """Tell other agents that this one is there; to be called every few seconds."""
        if self._agent is not None:
            now = int(time.monotonic())
            bpf.map_update(self._kernel.maps["agents"], maps.u32(self._agent), maps.u32(now))
        if self._store:
            pods = [pod for pod in self._pods.values() if pod.listeners.are_open()]
            self._store.renew({pod.cookie: pod.descriptors() for pod in pods})

    @_one_at_a_time
    def has_company(self) -> bool:
        """Whether another agent is there: a successor that has started, or a predecessor that drains."""
        return any(seen for other, seen in self._agents() if other != self._agent)

    @_one_at_a_time
    def enrol(self, pod: PodNetwork) -> EnrolledPod:
        """Capture a pod from now on; its open connections are left alone. A few milliseconds.

        Repeating it with other addresses or ports brings the pod up to date. A pod enrolled by a former agent
        keeps its slot and gets this process's listeners; so does one that was withdrawn and still has relayed
        connections. If it fails (CaptureError), every pod is left as it was.
        """
        _check(pod)
        with contextlib.ExitStack() as undo:
            cookie = self._cookie(pod.netns_fd)
            former = self._pods.get(cookie)
            netns_fd = former.network.netns_fd if former else os.dup(pod.netns_fd)
            if not former:
                undo.callback(os.close, netns_fd)
            listeners, left_dns = former.listeners if former else None, None
            if not listeners or not listeners.are_open():
                listeners, left_dns = self._left_behind(cookie)
                listeners = listeners or open_listeners(netns_fd)
                undo.callback(listeners.close)
                listeners.mark(self.dial_mark)
            dns = former.dns if former and pod.captures_dns else None
            if pod.captures_dns and not (dns and dns.are_open()):
                dns, left_dns = open_dns(netns_fd, left_dns), None
                undo.callback(dns.close)
            close_all(left_dns or ())
            with _explained():
                record, is_new = self._claim(cookie, netns_fd, pod)
                if is_new:
                    undo.callback(self._forget, record, netns_fd)
                elif cookie in self._leaving:
                    undo.callback(self._ledger.leave, record)
                self._capture(record, netns_fd, pod, listeners, dns)
            undo.pop_all()
        if former and former.dns and former.dns is not dns:
            former.dns.close()
        self._others.hand_over(cookie)
        left = self._leaving.pop(cookie, None)
        if left:
            os.close(left.network.netns_fd)
        enrolled = EnrolledPod(
            record.slot,
            cookie,
            listeners.outbound,
            listeners.inbound,
            listeners.hbone,
            replace(pod, netns_fd=netns_fd),
            dns,
        )
        if self._store:
            self._store.keep(cookie, enrolled.descriptors())
        self._pods[cookie] = enrolled
        self.direct.admit(enrolled.slot)
        return enrolled

    @_one_at_a_time
    def withdraw(self, pod: EnrolledPod) -> bool:
        """Capture nothing new of the pod, close its listeners, and give it its network back exactly as it was.

        While connections are relayed that need the pod's rules, routes and sysctls, these stay, and the
        answer is False: call `release` until it says True. Repeating it is the same as `release`.
        """
        mine = self._pods.get(pod.cookie)
        if mine is None or mine.slot != pod.slot:
            return self.release(pod)
        del self._pods[pod.cookie]
        self._leaving[pod.cookie] = mine
        self.direct.expel(mine.slot)
        try:
            self._ledger.leave(self._ledger.records[pod.cookie])
            _spare_dns(mine.network)
            if self.variant is Variant.C:
                _narrow(mine.network)
            mine.listeners.await_accepted()
        finally:
            if self._store:
                self._store.forget(pod.cookie)
            mine.close()
        return self.release(pod)

    @_one_at_a_time
    def release(self, pod: EnrolledPod) -> bool:
        """Finish a withdrawal if the pod's last relayed connection has ended; whether nothing is left to do.

        A namespace that is dead has none. A pod that has been enrolled again has nothing left to do.
        """
        mine = self._leaving.get(pod.cookie)
        if mine is None or mine.network.netns_fd != pod.network.netns_fd:
            return True
        if _relays(mine.network):
            return False
        self._finish(mine)
        return True

    @_one_at_a_time
    def handed_over(self) -> int:
        """How many pods that this process enrolled another agent serves: above none, a successor has come."""
        return sum(
            record is None or not self._ledger.hands_over_to(record, pod.listeners)
            for record, pod in ((self._ledger.records.get(pod.cookie), pod) for pod in self._pods.values())
        )

    @_one_at_a_time
    def let_go(self, pod: EnrolledPod) -> None:
        """Give up this process's hold on a pod: listeners and namespace. It stays captured, for a successor."""
        mine = self._pods.pop(pod.cookie, None)
        if mine is not None:
            mine.close()
            os.close(mine.network.netns_fd)

    @_one_at_a_time
    def prune(self, keep: Collection[EnrolledPod]) -> list[int]:
        """Forget every pod that is not in `keep` (a former agent's); returns the slots given back.

        A namespace that still lives and can be found is restored, too. Pins of other layout versions go.
        """
        kept = {pod.cookie for pod in keep}
        slots: list[int] = []
        for cookie, record in list(self._ledger.records.items()):
            if cookie in kept:
                continue
            mine = self._pods.get(cookie) or self._leaving.get(cookie)
            if mine and not self.withdraw(mine):
                continue
            slots.append(record.slot)
            if not mine:
                self._forget_lost(record)
        if self.variant is Variant.C:
            self._kernel.detach_cgroup()  # not before: until now it may have held pods
        for record in self._others.records:
            if record.cookie not in kept:
                self._forget_other(record)
        self._others.remove()
        return slots

    @_one_at_a_time
    def counters(self) -> dict[str, int]:
        """Counted since the maps were made: captured, outbound, inbound, hbone, dropped, failed, direct,
        fallen_back, dns, turbo.

        `captured`: connect() marked; `dropped`: no agent listened; `failed`: the kernel refused to steer;
        `direct`: went direct; `fallen_back`: lost its permission on the way and went to the agent; `turbo`: sockets that
        were accelerated.
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
        self.direct.end_lease()
        for pod in list(self._leaving.values()):
            self._finish(pod)
        if self._agent is not None:
            bpf.map_delete(self._kernel.maps["agents"], maps.u32(self._agent))
        for pod in list(self._pods.values()):
            self.let_go(pod)
        if self._store:
            self._store.close()
        self._kernel.close()

    @staticmethod
    def cleanup(cgroup: Path | None, pin_dir: Path) -> list[str]:
        """Remove every trace; returns what was removed. Namespaces that can be found are restored."""
        removed: list[str] = []
        if any(pin_dir.glob("v*")):
            with contextlib.suppress(CaptureError):
                capture = Capture(Kernel.open(compiler.shipped(), pin_dir))
                others = [f"pod slot {record.slot}" for record in capture._others.records]
                removed += [f"pod slot {slot}" for slot in capture.prune(())] + others
                capture.close()
        for each in sorted(pin_dir.glob("v*")):
            removed += loader.remove_layout(each)
        with contextlib.suppress(OSError):  # a mount point, or shared with somebody else
            pin_dir.rmdir()
        return removed + (selftest.remove_leftovers(cgroup) if cgroup is not None else [])

    def _left_behind(
        self, cookie: int
    ) -> tuple[Listeners | None, tuple[socket.socket, socket.socket] | None]:
        """What a killed agent's clients wait for: the listeners, and the sockets for DNS."""
        if self._store is None:
            return None, None
        fds = self._store.take(cookie)
        return adopt(fds[: len(PORTS)], cookie), adopt_dns(fds[len(PORTS) :], cookie)

    def _agents(self) -> list[tuple[int, bool]]:
        """Processes that are not captured, and whether they were seen lately."""
        fd, now, found = self._kernel.maps["agents"], int(time.monotonic()), []
        for key in list(bpf.map_keys(fd, 4)):
            raw = bpf.map_lookup(fd, key, 4)
            if raw:
                process, seen = (int.from_bytes(each, sys.byteorder) for each in (key, raw))
                found.append((process, now - seen < SEEN))
        return found

    def _cookie(self, netns_fd: int) -> int:
        """Of a pod's namespace; never the agent's own, which is the node's."""
        try:
            cookie = netns.cookie(netns_fd)
        except OSError as error:
            raise CaptureError(
                CaptureReason.NETNS_UNUSABLE, f"network namespace: {error.strerror}", "is the pod alive?"
            ) from error
        if cookie == self._home:
            raise CaptureError(
                CaptureReason.UNSUPPORTED,
                "this is the agent's own network namespace",
                "leave hostNetwork pods out",
            )
        return cookie

    def _claim(self, cookie: int, netns_fd: int, pod: PodNetwork) -> tuple[PodRecord, bool]:
        with netns.inside(netns_fd):
            sysctls = routes.current_sysctls()
            if self.variant is Variant.C:
                sysctls = looping.current_sysctls(sysctls)
        saved = self._others.saved(cookie).or_else(sysctls)
        return self._ledger.claim(cookie, netns.inode(netns_fd), self._flags(pod), saved)

    def _capture(
        self,
        record: PodRecord,
        netns_fd: int,
        pod: PodNetwork,
        listeners: Listeners,
        dns: DnsSockets | None,
    ) -> None:
        """Everything in its order: what steers before what marks or loops."""
        slot = record.slot
        if dns is None:
            with netns.inside(netns_fd):
                routes.spare_dns()
        self._ledger.set_listeners(slot, listeners)
        self._ledger.set_dns(slot, dns)
        own = maps.address_entries(slot, pod.addresses, pod.node_addresses)
        exempt = maps.exempt_entries(
            slot, pod.exempt_inbound_ports, pod.exempt_outbound_ports, pod.only_inbound_ports or ()
        )
        self._ledger.set_entries("addresses", slot, own)
        self._ledger.set_entries("exempt", slot, exempt)
        with netns.inside(netns_fd):
            routes.set_sysctls()
            routes.apply(routes.plan(pod.addresses))
            if self.variant is Variant.B:
                looping.narrow(pod.addresses)  # a former agent's
        self._kernel.attach_pod(slot, netns_fd)
        self._ledger.mark_connections(self._ledger.settle(record, self._flags(pod)))
        if dns is not None:
            with netns.inside(netns_fd):
                routes.capture_dns(routes.plan(pod.addresses))
        if self.variant is Variant.C:
            with netns.inside(netns_fd):
                looping.set_sysctls()
                rules = looping.plan(
                    pod.addresses, pod.node_addresses, pod.exempt_inbound_ports, pod.exempt_outbound_ports
                )
                looping.keep(pod.addresses, rules)

    def _flags(self, pod: PodNetwork) -> PodFlag:
        """Variant C cannot tell the answers of an application from its own connections by the port alone that
        would have to be left out: it goes on capturing."""
        flags = PodFlag.BYPASS_INBOUND if pod.bypass_inbound else maps.NO_FLAGS
        if pod.only_inbound_ports is not None:
            flags |= PodFlag.LISTED_INBOUND
        if flags and self.variant is Variant.C:
            log.warning("variant C captures every inbound port: bypass and included ports have no effect")
            flags = maps.NO_FLAGS
        return flags | PodFlag.CAPTURE_DNS if pod.captures_dns else flags

    def _forget(self, record: PodRecord, netns_fd: int | None) -> None:
        """Undo `_claim` and `_capture`: what marks before what steers. `netns_fd` None if it is gone."""
        self._ledger.spare_connections(record)
        if netns_fd is not None:
            _restore(netns_fd, record)
        self._kernel.detach_pod(record.slot)
        self._ledger.erase(record)

    def _finish(self, pod: EnrolledPod) -> None:
        """The second half of a withdrawal, unless another agent has taken the pod over meanwhile."""
        del self._leaving[pod.cookie]
        record = self._ledger.records.get(pod.cookie)
        try:
            if record and self._ledger.is_leaving(record):
                self._forget(record, pod.network.netns_fd)
        finally:
            os.close(pod.network.netns_fd)

    def _forget_other(self, record: PodRecord) -> None:
        """Forget a pod that an agent of another layout left and nobody named."""
        self._others.spare(record.cookie)
        netns_fd = netns.find(record.netns, record.cookie)
        if netns_fd is not None:
            _restore(netns_fd, record)
            os.close(netns_fd)
        self._others.hand_over(record.cookie)

    def _forget_lost(self, record: PodRecord) -> None:
        """Forget a pod this process never enrolled; its namespace has to be found again."""
        netns_fd = netns.find(record.netns, record.cookie)
        try:
            self._forget(record, netns_fd)
        finally:
            if netns_fd is not None:
                os.close(netns_fd)


def _restore(netns_fd: int, record: PodRecord) -> None:
    """A pod's network as it was. What fails is logged."""
    try:
        with netns.inside(netns_fd):
            looping.revert()
            routes.revert()
            routes.restore_sysctls(record.saved)
            looping.restore_sysctls(record.saved)
    except OSError as error:
        log.warning("slot %d: network namespace not restored: %s", record.slot, error)


def _narrow(network: PodNetwork) -> None:
    """Loop only what is relayed. The namespace may be gone."""
    try:
        with netns.inside(network.netns_fd):
            looping.narrow(network.addresses)
    except (OSError, CaptureError) as error:
        log.warning("the pod's connections are still looped: %s", error)


def _relays(network: PodNetwork) -> bool:
    """Whether the agent relays connections of a pod. False if the namespace or the kernel cannot tell."""
    try:
        with netns.inside(network.netns_fd):
            return sockets.relayed(network.addresses)
    except OSError as error:
        log.warning("relayed connections cannot be listed: %s", error)
        return False


def _spare_dns(network: PodNetwork) -> None:
    """No more questions from a pod that leaves. Its namespace may be gone."""
    try:
        with netns.inside(network.netns_fd):
            routes.spare_dns()
    except OSError as error:
        log.warning("rule for port 53 not removed: %s", error)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what the kernel refuses into one line with advice."""
    try:
        yield
    except OSError as error:
        full = error.errno == errno.E2BIG
        advice = "too many addresses or exempt ports on this node" if full else "look at the kernel's log"
        raise CaptureError(CaptureReason.KERNEL_REFUSED, str(error), advice) from error


def _check(pod: PodNetwork) -> None:
    for port in (
        pod.exempt_inbound_ports | pod.exempt_outbound_ports | (pod.only_inbound_ports or frozenset())
    ):
        if not 0 < port < 65536:
            raise CaptureError(CaptureReason.UNSUPPORTED, f"exempt port {port}", "give ports from 1 to 65535")
    if not pod.addresses:
        raise CaptureError(
            CaptureReason.NO_ADDRESS, "the pod has no address of global scope", "enrol it when it has one"
        )
