"""What stands for a running pod: its capture, its listeners in the engine, its certificate, its names.

Each is begun and ended here, in an order in which no connection is steered to what is not there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from typing import Protocol

import trio

from ebpf.capture import EnrolledPod, PodNetwork
from ebpf.errors import CaptureError
from hbone.engine import ListenerKind
from hbone.spiffe import SpiffeId
from ztunnel.enrol.pod import Pod, netns_key
from ztunnel.enrol.settings import CaptureSettings
from ztunnel.enrol.zds import Add
from ztunnel.logs import fields

__all__ = ["Capturing", "Identities", "Listening", "Names", "Serving"]

_log = logging.getLogger("ztunnel.inpod")


class Capturing(Protocol):
    """`ebpf.capture.Capture`, as far as pods need it."""

    def enrol(self, pod: PodNetwork) -> EnrolledPod: ...
    def withdraw(self, pod: EnrolledPod) -> bool: ...
    def release(self, pod: EnrolledPod) -> bool: ...
    def prune(self, keep: Collection[EnrolledPod]) -> list[int]: ...
    def let_go(self, pod: EnrolledPod) -> None: ...


class Listening(Protocol):
    """`hbone.engine.Engine`, as far as pods need it."""

    def add_netns(self, netns_fd: int) -> int: ...
    def remove_netns(self, netns: int) -> None: ...
    def listen(self, fd: int, kind: ListenerKind, netns: int, tag: int, identity: int = 0) -> int: ...
    def unlisten(self, listener: int) -> None: ...
    def drain(self, tag: int) -> None: ...
    def forget(self) -> int: ...


class Identities(Protocol):
    """Who keeps certificates."""

    def hold(self, owner: str, identity: SpiffeId) -> int: ...
    def ready(self, identity: SpiffeId) -> bool: ...
    async def arrival(self, identity: SpiffeId, timeout: float) -> bool: ...
    def release(self, owner: str) -> None: ...


class Names(Protocol):
    """Who answers questions to name servers."""

    def serve(self, pod: Pod) -> None: ...
    def leave(self, pod: Pod) -> None: ...


class Serving:
    """Starts and stops single pods; which ones is `Pods`' business."""

    def __init__(
        self,
        capture: Capturing,
        engine: Listening,
        identities: Identities,
        network_of: Callable[[int, CaptureSettings], PodNetwork],
        trust_domain_of: Callable[[str, str, str], str],
        names: Names | None,
        certificate_wait: float,
    ) -> None:
        """As `Pods` takes them."""
        self._capture, self._engine, self._identities = capture, engine, identities
        self._network_of, self._trust_domain_of = network_of, trust_domain_of
        self._names, self._certificate_wait = names, certificate_wait
        self._closed: set[Pod] = set()  # pods that accept no tunnels yet
        self._newly_closed, self._to_open = trio.open_memory_channel[Pod](math.inf)
        self._tags = 0

    async def run(self) -> None:
        """Accept tunnels for a pod when its certificate has come, or is late: then peers are told. Until cancelled."""
        async with trio.open_nursery() as nursery:
            async for pod in self._to_open:
                nursery.start_soon(self._open_when_ready, pod)

    async def start(self, add: Add) -> Pod:
        """Capture it, then listen. CaptureError, OSError, ValueError; then nothing is left of it."""
        settings = add.settings or CaptureSettings()
        enrolled = await trio.to_thread.run_sync(self._enrol, add.netns_fd, settings)
        try:
            pod = self._listen(add, enrolled, settings)
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._capture.withdraw, enrolled)
            raise
        self._serve_names(pod)
        return pod

    async def stop(self, pod: Pod) -> bool:
        """Withdraw capture first, so that no connection is steered to a listener that has gone. Whether nothing is
        relayed for the pod any more; if not, `release` until that says so."""
        self._closed.discard(pod)
        restored = await self._attempt(self._capture.withdraw, pod)
        if self._names is not None:
            self._names.leave(pod)
        self._engine.drain(pod.tag)
        self._identities.release(pod.uid)
        return restored

    async def release(self, pod: Pod) -> bool:
        """Finish what `stop` began, if the last relayed connection has ended."""
        return await self._attempt(self._capture.release, pod)

    def forget(self, pod: Pod) -> None:
        """The end of a pod: no event speaks of it any more."""
        self._engine.remove_netns(pod.netns)

    def let_go(self, pod: Pod) -> None:
        """Give a pod up that stays captured, for a successor."""
        self._closed.discard(pod)
        self._capture.let_go(pod.enrolled)
        if self._names is not None:
            self._names.leave(pod)
        self._identities.release(pod.uid)

    def stop_accepting(self, pod: Pod) -> None:
        """Close the listeners: what a queue still holds goes to another agent, or is refused."""
        self._closed.discard(pod)
        for sock in (pod.enrolled.outbound, pod.enrolled.inbound, pod.enrolled.hbone):
            sock.close()

    async def follow(self, pod: Pod) -> str:
        """Bring capture up to date with the namespace and the settings; returns the error."""

        def again() -> EnrolledPod | None:
            network = self._network_of(pod.enrolled.network.netns_fd, pod.settings)
            same = network == pod.enrolled.network or not network.addresses
            return None if same else self._capture.enrol(network)

        try:
            enrolled = await trio.to_thread.run_sync(again)
        except Exception as error:
            _log.warning("capture not brought up to date", extra=fields(pod=pod.full_name, error=str(error)))
            return f"{pod.full_name} stays captured as before: {error}"
        if enrolled is not None:
            self._engine.forget()  # verdicts that rest on the old addresses
            pod.enrolled = enrolled
            self._serve_names(pod)
            _log.info("capture brought up to date", extra=fields(**pod.shown()))
        return ""

    async def prune(self, keep: Collection[Pod]) -> int:
        """Give up what former agents captured and is not among these; how many."""
        return len(await trio.to_thread.run_sync(self._capture.prune, [pod.enrolled for pod in keep]))

    def identify(self, pod: Pod) -> None:
        """Serve under the identity that the pod has now."""
        identity = self._identity_of(pod)
        if identity == pod.identity:
            return
        pod.identity = identity
        pod.identity_number = self._identities.hold(pod.uid, identity)
        if pod not in self._closed:
            old = pod.listeners.pop()
            self._accept_tunnels(pod)
            self._engine.unlisten(old)

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
            netns_key(add.netns_fd),
            enrolled,
            tag,
            netns,
            identity,
            number,
            settings,
        )
        try:
            for sock, kind in (
                (enrolled.outbound, ListenerKind.OUTBOUND),
                (enrolled.inbound, ListenerKind.INBOUND),
            ):
                pod.listeners.append(self._engine.listen(sock.fileno(), kind, netns, tag, 0))
            if self._identities.ready(identity):
                self._accept_tunnels(pod)
            else:
                self._closed.add(pod)
                self._newly_closed.send_nowait(pod)
        except BaseException:
            self._engine.drain(tag)
            self._engine.remove_netns(netns)
            self._identities.release(add.uid)
            raise
        return pod

    def _accept_tunnels(self, pod: Pod) -> None:
        hbone, number = pod.enrolled.hbone.fileno(), pod.identity_number
        pod.listeners.append(self._engine.listen(hbone, ListenerKind.HBONE, pod.netns, pod.tag, number))

    async def _open_when_ready(self, pod: Pod) -> None:
        """Tunnels that come sooner wait in the socket's queue: a restarted agent's peers must not be turned away."""
        await self._identities.arrival(pod.identity, self._certificate_wait)
        if pod not in self._closed:
            return
        self._closed.remove(pod)
        try:
            self._accept_tunnels(pod)
        except (OSError, ValueError) as error:
            _log.warning("no tunnels to a pod", extra=fields(pod=pod.full_name, error=str(error)))

    def _serve_names(self, pod: Pod) -> None:
        if self._names is not None:
            self._names.serve(pod)

    def _identity_of(self, pod: Add | Pod) -> SpiffeId:
        domain = self._trust_domain_of(pod.namespace, pod.name, pod.service_account)
        return SpiffeId(domain, pod.namespace, pod.service_account)

    @staticmethod
    async def _attempt(step: Callable[[EnrolledPod], bool], pod: Pod) -> bool:
        """Take one step of a withdrawal; whether it is over. What fails is logged and not tried again."""
        try:
            return await trio.to_thread.run_sync(step, pod.enrolled)
        except Exception as error:
            if not isinstance(error, (CaptureError, OSError)):
                _log.exception("withdrawal failed unexpectedly")
            shown = fields(pod=pod.full_name, uid=pod.uid, error=str(error))
            _log.warning("pod not restored", extra=shown)
            return True
