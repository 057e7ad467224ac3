"""The pods of this node: a state machine fed by ZDS requests.

A pod is *running* (captured, its three listeners in the engine, certificate asked for) or *pending* (starting
failed; tried again every RETRY seconds). Rules as Istio's agent keeps them:

- Add of a running pod in the same network namespace does nothing, except that other capture settings take
  effect; in another one it moves the pod there.
- A first list (snapshot) begins each connection: pods it does not name are withdrawn at its end.
- Losing the connection changes nothing for pods.
- A pod that leaves is captured no longer from that moment on, but what is relayed for it goes on until it
  ends; then its network is as it was before.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol, TypeAlias

import trio

from ebpf.capture import EnrolledPod, PodNetwork
from ebpf.errors import CaptureError
from hbone.engine import ListenerKind
from hbone.spiffe import SpiffeId
from ztunnel.enrol.settings import CaptureSettings
from ztunnel.enrol.zds import Add, Delete, Keep, ProtocolError, Request, Snapshot
from ztunnel.logs import fields

__all__ = ["RETRY", "Pod", "Pods"]

_log = logging.getLogger("ztunnel.inpod")

RETRY = 5.0
FOLLOW = 30.0
RELEASE = 0.5

IpAddress: TypeAlias = IPv4Address | IPv6Address


class _Capture(Protocol):
    def enrol(self, pod: PodNetwork) -> EnrolledPod: ...
    def withdraw(self, pod: EnrolledPod) -> bool: ...
    def release(self, pod: EnrolledPod) -> bool: ...
    def prune(self, keep: Collection[EnrolledPod]) -> list[int]: ...
    def let_go(self, pod: EnrolledPod) -> None: ...


class _Engine(Protocol):
    def add_netns(self, netns_fd: int) -> int: ...
    def remove_netns(self, netns: int) -> None: ...
    def listen(self, fd: int, kind: ListenerKind, netns: int, tag: int, identity: int = 0) -> int: ...
    def unlisten(self, listener: int) -> None: ...
    def drain(self, tag: int) -> None: ...
    def forget(self) -> int: ...


class _Identities(Protocol):
    def hold(self, owner: str, identity: SpiffeId) -> int: ...
    def release(self, owner: str) -> None: ...


class _Names(Protocol):
    def serve(self, pod: Pod) -> None: ...
    def leave(self, pod: Pod) -> None: ...


@dataclass(slots=True, eq=False)
class Pod:
    """One running pod. `tag` is its number in the engine's events, `netns` its namespace's number there."""

    uid: str
    name: str
    namespace: str
    service_account: str
    netns_key: tuple[int, int]
    enrolled: EnrolledPod
    tag: int
    netns: int
    identity: SpiffeId
    identity_number: int
    settings: CaptureSettings
    listeners: list[int] = field(default_factory=list)

    @property
    def addresses(self) -> tuple[IpAddress, ...]:
        """The pod's own addresses, as read from its namespace."""
        return self.enrolled.network.addresses


class Pods:
    """All pods; requests are carried out one at a time."""

    def __init__(
        self,
        *,
        capture: _Capture,
        engine: _Engine,
        identities: _Identities,
        network_of: Callable[[int, CaptureSettings], PodNetwork],
        trust_domain_of: Callable[[str, str, str], str],
        names: _Names | None = None,
    ) -> None:
        """`network_of` reads what to capture from a namespace, under the pod's settings (in a thread);
        `trust_domain_of` tells the trust domain of a pod by its namespace, name and service account. `names` answers questions to name
        servers."""
        self._capture, self._engine, self._identities = capture, engine, identities
        self._network_of, self._trust_domain_of = network_of, trust_domain_of
        self._names = names
        self._by_uid: dict[str, Pod] = {}
        self._by_tag: dict[int, Pod] = {}
        self._pending: dict[str, Add] = {}
        self._leaving: list[Pod] = []
        self._listed: set[str] | None = None
        self._tags = 0
        self._lock = trio.Lock()
        self._pruned = False
        self.connected_once = False
        self.is_connected = False
        self.snapshot_done = False
        self.started = 0
        self.stopped = 0

    # What others ask

    def __iter__(self) -> Iterator[Pod]:
        return iter(self._by_uid.values())

    def __len__(self) -> int:
        return len(self._by_uid)

    def by_tag(self, tag: int) -> Pod | None:
        """The pod an engine event speaks of; None when it has been withdrawn meanwhile."""
        return self._by_tag.get(tag)

    @property
    def pending(self) -> Sequence[Add]:
        """Pods whose start failed."""
        return list(self._pending.values())

    @property
    def leaving(self) -> Sequence[Pod]:
        """Withdrawn pods that still have relayed connections."""
        return list(self._leaving)

    # ZDS

    def connected(self) -> None:
        """A connection begins with a list of all pods."""
        self._listed = set()
        self.is_connected, self.snapshot_done = True, False

    def disconnected(self) -> None:
        """Pods stay; the next connection lists them again."""
        self._listed = None
        self.is_connected = False
        _log.info("ZDS disconnected", extra=fields(pods=len(self._by_uid)))

    async def handle(self, request: Request) -> str:
        """Carry out one request; returns the error for its Ack."""
        async with self._lock:
            match request:
                case Add():
                    return await self._add(request)
                case Keep():
                    self._keep(request)
                case Delete():
                    await self._delete(request)
                case Snapshot():
                    await self._snapshot()
        return ""

    async def retry(self) -> None:
        """Start pending pods again every RETRY seconds, until cancelled."""
        while True:
            await trio.sleep(RETRY)
            async with self._lock:
                for add in list(self._pending.values()):
                    await self._start_or_keep_pending(add)
                await self._prune()

    async def release_left(self) -> None:
        """Finish withdrawals whose last relayed connection has ended, until cancelled."""
        while True:
            await trio.sleep(RELEASE)
            for pod in self.leaving:
                if await self._restored(self._capture.release, pod):
                    self._leaving.remove(pod)
                    self._forget(pod)

    async def follow_addresses(self) -> None:
        """Bring capture up to date when a pod or the node gets or loses an address; until cancelled."""
        while True:
            await trio.sleep(FOLLOW)
            for pod in list(self._by_uid.values()):
                async with self._lock:
                    if self._by_uid.get(pod.uid) is pod:
                        await self._follow(pod)

    async def _follow(self, pod: Pod) -> str:
        """Bring capture up to date with the namespace and the settings; returns the error."""

        def again() -> EnrolledPod | None:
            network = self._network_of(pod.enrolled.network.netns_fd, pod.settings)
            same = network == pod.enrolled.network or not network.addresses
            return None if same else self._capture.enrol(network)

        name = f"{pod.namespace}/{pod.name}"
        try:
            enrolled = await trio.to_thread.run_sync(again)
        except Exception as error:
            _log.warning("capture not brought up to date", extra=fields(pod=name, error=str(error)))
            return f"{name} stays captured as before: {error}"
        if enrolled is not None:
            self._engine.forget()  # verdicts that rest on the old addresses
            pod.enrolled = enrolled
            self._serve_names(pod)
            shown = ",".join(str(address) for address in pod.addresses)
            _log.info(
                "capture brought up to date", extra=fields(pod=name, addresses=shown, **_shown(pod.settings))
            )
        return ""

    def stop_accepting(self) -> None:
        """Close the listeners: from here on the kernel makes clients try again until another agent listens,
        instead of letting them connect to a queue that nobody empties."""
        for pod in self:
            for sock in (pod.enrolled.outbound, pod.enrolled.inbound, pod.enrolled.hbone):
                sock.close()

    def let_go(self, busy: Collection[str]) -> None:
        """While draining: give up the pods (namespace/name) that have no connections left here. They stay
        captured; but a namespace that we hold would outlive its pod."""
        for pod in [pod for pod in self if f"{pod.namespace}/{pod.name}" not in busy]:
            self._capture.let_go(pod.enrolled)
            if self._names is not None:
                self._names.leave(pod)
            self._identities.release(pod.uid)
            del self._by_uid[pod.uid]
            self._forget(pod)

    # Rules

    async def _add(self, add: Add) -> str:
        if self._listed is not None:
            self._listed.add(add.uid)
        key = _netns_key(add.netns_fd)
        running = self._by_uid.get(add.uid)
        if running is not None and running.netns_key == key:
            os.close(add.netns_fd)
            if add.settings is None:
                return ""
            running.settings = add.settings
            return await self._follow(running)
        if running is not None:
            await self._stop(running)
        self._drop_pending(add.uid)
        return await self._start_or_keep_pending(add)

    def _keep(self, keep: Keep) -> None:
        if self._listed is None:
            raise ProtocolError("KeepWorkload after the snapshot")
        self._listed.add(keep.uid)

    async def _delete(self, delete: Delete) -> None:
        self._drop_pending(delete.uid)
        if self._listed is not None:
            self._listed.discard(delete.uid)
            return
        pod = self._by_uid.get(delete.uid)
        if pod is not None:
            await self._stop(pod)

    async def _snapshot(self) -> None:
        if self._listed is None:
            raise ProtocolError("a second SnapshotSent")
        listed, self._listed = self._listed, None
        for pod in [pod for uid, pod in self._by_uid.items() if uid not in listed]:
            await self._stop(pod)
        for uid in [uid for uid in self._pending if uid not in listed]:
            self._drop_pending(uid)
        self.snapshot_done = self.connected_once = True
        await self._prune()
        _log.info("pods listed", extra=fields(running=len(self._by_uid), pending=len(self._pending)))

    async def _prune(self) -> None:
        """Give up what a former agent captured and nobody named. Not while a pod is pending: it may be one
        that is still captured, and must not go out in clear because we could not take it over yet."""
        if self._pruned or self._pending or not self.snapshot_done:
            return
        gone = await trio.to_thread.run_sync(self._capture.prune, [p.enrolled for p in self])
        self._pruned = True
        if gone:
            _log.info("former pods released", extra=fields(slots=len(gone)))

    # Starting and stopping

    async def _start_or_keep_pending(self, add: Add) -> str:
        try:
            await self._start(add)
        except Exception as error:
            if not isinstance(error, (CaptureError, OSError, ValueError)):
                _log.exception("enrolment failed unexpectedly")
            self._pending[add.uid] = add
            _log.warning(
                "pod not enrolled",
                extra=fields(pod=f"{add.namespace}/{add.name}", uid=add.uid, error=str(error)),
            )
            return f"{add.namespace}/{add.name} cannot be enrolled: {error}"
        self._pending.pop(add.uid, None)
        os.close(add.netns_fd)
        return ""

    async def _start(self, add: Add) -> None:
        settings = add.settings or CaptureSettings()
        enrolled = await trio.to_thread.run_sync(self._enrol, add.netns_fd, settings)
        try:
            pod = self._listen(add, enrolled, settings)
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._capture.withdraw, enrolled)
            raise
        self._by_uid[pod.uid] = self._by_tag[pod.tag] = pod
        self._serve_names(pod)
        self.started += 1
        shown = ",".join(str(address) for address in pod.addresses)
        name = f"{pod.namespace}/{pod.name}"
        _log.info("pod enrolled", extra=fields(pod=name, uid=pod.uid, addresses=shown, **_shown(settings)))

    def _enrol(self, netns_fd: int, settings: CaptureSettings) -> EnrolledPod:
        return self._capture.enrol(self._network_of(netns_fd, settings))

    def _listen(self, add: Add, enrolled: EnrolledPod, settings: CaptureSettings) -> Pod:
        self._tags += 1
        tag, identity = self._tags, self._identity_of(add)
        number = self._identities.hold(add.uid, identity)
        netns = self._engine.add_netns(add.netns_fd)
        pod = Pod(
            add.uid,
            add.name,
            add.namespace,
            add.service_account,
            _netns_key(add.netns_fd),
            enrolled,
            tag,
            netns,
            identity,
            number,
            settings,
        )
        try:
            for sock, kind in self._sockets(enrolled):
                served = number if kind is ListenerKind.HBONE else 0
                pod.listeners.append(self._engine.listen(sock.fileno(), kind, netns, tag, served))
        except BaseException:
            self._engine.drain(tag)
            self._engine.remove_netns(netns)
            self._identities.release(add.uid)
            raise
        return pod

    @staticmethod
    def _sockets(enrolled: EnrolledPod) -> list[tuple[_Socket, ListenerKind]]:
        return [
            (enrolled.outbound, ListenerKind.OUTBOUND),
            (enrolled.inbound, ListenerKind.INBOUND),
            (enrolled.hbone, ListenerKind.HBONE),
        ]

    async def _stop(self, pod: Pod) -> None:
        """Withdraw capture first, so that no connection is steered to a listener that has gone."""
        del self._by_uid[pod.uid]
        restored = await self._restored(self._capture.withdraw, pod)
        if self._names is not None:
            self._names.leave(pod)
        self._engine.drain(pod.tag)
        self._identities.release(pod.uid)
        self.stopped += 1
        if restored:
            self._forget(pod)
        else:
            self._leaving.append(pod)
        shown = fields(pod=f"{pod.namespace}/{pod.name}", uid=pod.uid, restored=restored)
        _log.info("pod withdrawn", extra=shown)

    def _serve_names(self, pod: Pod) -> None:
        if self._names is not None:
            self._names.serve(pod)

    async def _restored(self, step: Callable[[EnrolledPod], bool], pod: Pod) -> bool:
        """Take one step of a withdrawal; whether it is over. What fails is logged and not tried again."""
        try:
            return await trio.to_thread.run_sync(step, pod.enrolled)
        except Exception as error:
            if not isinstance(error, (CaptureError, OSError)):
                _log.exception("withdrawal failed unexpectedly")
            shown = fields(pod=f"{pod.namespace}/{pod.name}", uid=pod.uid, error=str(error))
            _log.warning("pod not restored", extra=shown)
            return True

    def _forget(self, pod: Pod) -> None:
        """The end of a pod: no event speaks of it any more."""
        self._engine.remove_netns(pod.netns)
        del self._by_tag[pod.tag]

    def _drop_pending(self, uid: str) -> None:
        add = self._pending.pop(uid, None)
        if add is not None:
            os.close(add.netns_fd)

    # Identity

    def _identity_of(self, pod: Add | Pod) -> SpiffeId:
        domain = self._trust_domain_of(pod.namespace, pod.name, pod.service_account)
        return SpiffeId(domain, pod.namespace, pod.service_account)

    def refresh_identities(self) -> None:
        """The control plane may name another trust domain than was assumed: serve with that identity."""
        for pod in self:
            identity = self._identity_of(pod)
            if identity == pod.identity:
                continue
            pod.identity = identity
            pod.identity_number = self._identities.hold(pod.uid, identity)
            old = pod.listeners.pop()
            pod.listeners.append(
                self._engine.listen(
                    pod.enrolled.hbone.fileno(), ListenerKind.HBONE, pod.netns, pod.tag, pod.identity_number
                )
            )
            self._engine.unlisten(old)


class _Socket(Protocol):
    def fileno(self) -> int: ...


def _shown(settings: CaptureSettings) -> dict[str, str]:
    """What differs from capturing everything, for the log."""
    return {
        each.name: ",".join(map(str, sorted(value))) if isinstance(value, frozenset) else str(value).lower()
        for each in dataclass_fields(settings)
        if (value := getattr(settings, each.name)) != each.default
    }


def _netns_key(fd: int) -> tuple[int, int]:
    stat = os.fstat(fd)
    return (stat.st_dev, stat.st_ino)
