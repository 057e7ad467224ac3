"""The pods of this node: a state machine fed by ZDS requests.

A pod is *running* (captured, its three listeners in the engine, certificate asked for: `serving`) or *pending* (starting
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

import trio

from ebpf.capture import PodNetwork
from ebpf.errors import CaptureError
from ztunnel.enrol.pod import Pod, netns_key
from ztunnel.enrol.serving import Capturing, Identities, Listening, Names, Serving
from ztunnel.enrol.settings import CaptureSettings
from ztunnel.enrol.zds import Add, Delete, Keep, ProtocolError, Request, Snapshot
from ztunnel.logs import fields

__all__ = ["RETRY", "Pod", "Pods"]

_log = logging.getLogger("ztunnel.inpod")

RETRY = 5.0
FOLLOW = 30.0
RELEASE = 0.5


class Pods:
    """All pods; requests are carried out one at a time."""

    def __init__(
        self,
        *,
        capture: Capturing,
        engine: Listening,
        identities: Identities,
        network_of: Callable[[int, CaptureSettings], PodNetwork],
        trust_domain_of: Callable[[str, str, str], str],
        names: Names | None = None,
        certificate_wait: float = 5.0,
    ) -> None:
        """`network_of` reads what to capture from a namespace, under the pod's settings (in a thread);
        `trust_domain_of` tells the trust domain of a pod by its namespace, name and service account. `names` answers questions to name
        servers. Tunnels to a pod are accepted when its certificate has come, or `certificate_wait` seconds later."""
        self._serving = Serving(
            capture, engine, identities, network_of, trust_domain_of, names, certificate_wait
        )
        self._by_uid: dict[str, Pod] = {}
        self._by_tag: dict[int, Pod] = {}
        self._pending: dict[str, Add] = {}
        self._leaving: list[Pod] = []
        self._listed: set[str] | None = None
        self._lock = trio.Lock()
        self._pruned = False
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

    async def accept_tunnels(self) -> None:
        """Begin to, as certificates come; until cancelled."""
        await self._serving.run()

    async def release_left(self) -> None:
        """Finish withdrawals whose last relayed connection has ended, until cancelled."""
        while True:
            await trio.sleep(RELEASE)
            for pod in self.leaving:
                if await self._serving.release(pod):
                    self._leaving.remove(pod)
                    self._forget(pod)

    async def follow_addresses(self) -> None:
        """Bring capture up to date when a pod or the node gets or loses an address; until cancelled."""
        while True:
            await trio.sleep(FOLLOW)
            for pod in list(self._by_uid.values()):
                async with self._lock:
                    if self._by_uid.get(pod.uid) is pod:
                        await self._serving.follow(pod)

    def stop_accepting(self) -> None:
        """Close the listeners: from here on the kernel makes clients try again until another agent listens,
        instead of letting them connect to a queue that nobody empties."""
        for pod in self:
            self._serving.stop_accepting(pod)

    def let_go(self, busy: Collection[str]) -> None:
        """While draining: give up the pods (namespace/name) that have no connections left here. They stay
        captured; but a namespace that we hold would outlive its pod."""
        for pod in [pod for pod in self if pod.full_name not in busy]:
            self._serving.let_go(pod)
            del self._by_uid[pod.uid]
            self._forget(pod)

    # Rules

    async def _add(self, add: Add) -> str:
        if self._listed is not None:
            self._listed.add(add.uid)
        key = netns_key(add.netns_fd)
        running = self._by_uid.get(add.uid)
        if running is not None and running.netns_key == key:
            os.close(add.netns_fd)
            if add.settings is None:
                return ""
            running.settings = add.settings
            return await self._serving.follow(running)
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
        self.snapshot_done = True
        await self._prune()
        _log.info("pods listed", extra=fields(running=len(self._by_uid), pending=len(self._pending)))

    async def _prune(self) -> None:
        """Give up what a former agent captured and nobody named. Not while a pod is pending: it may be one
        that is still captured, and must not go out in clear because we could not take it over yet."""
        if self._pruned or self._pending or not self.snapshot_done:
            return
        gone = await self._serving.prune(list(self))
        self._pruned = True
        if gone:
            _log.info("former pods released", extra=fields(slots=gone))

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
        pod = await self._serving.start(add)
        self._by_uid[pod.uid] = self._by_tag[pod.tag] = pod
        self.started += 1
        _log.info("pod enrolled", extra=fields(**pod.shown(), uid=pod.uid))

    async def _stop(self, pod: Pod) -> None:
        del self._by_uid[pod.uid]
        restored = await self._serving.stop(pod)
        self.stopped += 1
        if restored:
            self._forget(pod)
        else:
            self._leaving.append(pod)
        _log.info("pod withdrawn", extra=fields(pod=pod.full_name, uid=pod.uid, restored=restored))

    def _forget(self, pod: Pod) -> None:
        self._serving.forget(pod)
        del self._by_tag[pod.tag]

    def _drop_pending(self, uid: str) -> None:
        add = self._pending.pop(uid, None)
        if add is not None:
            os.close(add.netns_fd)

    # Identity

    def refresh_identities(self) -> None:
        """The control plane may name another trust domain than was assumed: serve with that identity."""
        for pod in self:
            self._serving.identify(pod)
