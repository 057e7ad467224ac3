"""Which pods of this node are in, from the Kubernetes API and the node's processes: for clusters without Istio's CNI.

Watches the node's pods and all namespaces; `roster` says what is to be done, `finder` finds networks, and whoever
takes ZDS requests carries them out. While the API server is away everything stays as it was told last. An agent that
has a successor decides nothing any more: what two tell the kernel about one pod would undo each other.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import trio

from istiodlite.kube import KubeClient, ObjectKey, Watcher
from ztunnel.enrol import nodepods
from ztunnel.enrol.finder import Finder, Found, Witnesses
from ztunnel.enrol.nodepods import NodePod
from ztunnel.enrol.podstatus import PodStatus
from ztunnel.enrol.roster import Member, Roster
from ztunnel.enrol.zds import Add, Delete, Handler, Snapshot
from ztunnel.logs import fields

__all__ = ["Discovery"]

_log = logging.getLogger("ztunnel.inpod")
_kube_log = logging.getLogger("ztunnel.kube")
_ROUND: Final = 0.25
"""Seconds within which the end of a process is noticed."""
_TELL_AFTER: Final = 5.0


class Discovery:
    """One node's. `handler` gets the requests that a CNI agent would send; `is_succeeded` (asked in a thread): whether
    another agent decides by now."""

    def __init__(
        self,
        client: KubeClient,
        node: str,
        handler: Handler,
        finder: Finder,
        *,
        is_succeeded: Callable[[], bool],
        excluded: Collection[str] = (),
        writes_status: bool = True,
    ) -> None:
        self._handler, self._finder, self._is_succeeded = handler, finder, is_succeeded
        self.succeeded = False
        self.roster = Roster(excluded)
        self._pods: Watcher[NodePod] = Watcher(
            client, nodepods.pods_on(node), nodepods.read_pod, self._on_pods, log=_kube_log
        )
        self._namespaces: Watcher[str] = Watcher(
            client, nodepods.NAMESPACES, nodepods.read_namespace, self._on_namespaces, log=_kube_log
        )
        self.status = PodStatus(client, self._deciding) if writes_status else None
        self._witnesses = Witnesses()
        self._changed = trio.Event()
        self._shown: dict[ObjectKey, str] = {}

    async def run(self) -> None:
        """Endless; cancel to stop. Pods stay as they are then."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pods.run)
            nursery.start_soon(self._namespaces.run)
            if self.status is not None:
                nursery.start_soon(self.status.run)
            await self._follow()

    def age(self) -> float:
        """Seconds for which changes may have been missed; 0 while the API server is heard."""
        now = time.monotonic()
        return max(self._pods.health.age(now), self._namespaces.health.age(now))

    def describe(self) -> dict[str, Any]:
        """For people."""
        now = time.monotonic()
        return {
            "sources": [one.health.describe(now) for one in (self._pods, self._namespaces)],
            "pods": len(self.roster),
            "waiting": self.roster.waiting(),
            "problems": {
                str(one.pod): [str(problem) for problem in one.pod.problems]
                for one in self.roster
                if one.pod.problems
            },
            "statusProblem": "" if self.status is None else self.status.problem,
        }

    @property
    def synced(self) -> bool:
        """Whether all pods and namespaces have been listed once."""
        return self._pods.health.synced and self._namespaces.health.synced

    # What the API server tells

    def _on_pods(self, changes: Mapping[ObjectKey, NodePod | None]) -> None:
        for key, pod in changes.items():
            self.roster.pod(key, pod)
            self._show_problems(key, pod)
        self._changed.set()

    def _on_namespaces(self, changes: Mapping[ObjectKey, str | None]) -> None:
        for key, mode in changes.items():
            self.roster.namespace(key.name, mode)
        self._changed.set()

    def _show_problems(self, key: ObjectKey, pod: NodePod | None) -> None:
        """What annotations say that they do not do, once."""
        text = "; ".join(str(problem) for problem in pod.problems) if pod is not None else ""
        if text and text != self._shown.get(key):
            _log.warning("annotation without effect", extra=fields(pod=str(pod), error=text))
        self._shown.pop(key, None)
        if text:
            self._shown[key] = text

    # What is done

    async def _follow(self) -> None:
        while not self.synced:
            await self._news(float("inf"))
        _log.info("pods of the node are listed", extra=fields(pods=len(self.roster)))
        self._handler.connected()
        try:
            await self._rounds(trio.current_time())
        finally:
            self._handler.disconnected()
            self._witnesses.close()

    def _deciding(self) -> Iterable[Member]:
        """Pods of which it is for this agent to say whether they are in."""
        return () if self.succeeded else self.roster

    async def _rounds(self, since: float) -> None:
        listed = False
        while True:
            await self._look_for_successor()
            if self.succeeded:
                await trio.sleep(_ROUND)
                continue
            await self._round()
            now = trio.current_time()
            if not listed and self.roster.settled(now, since):
                await self._handler.handle(Snapshot())
                listed = True
            if self.status is not None:
                self.status.check()
            await self._news(min(self.roster.due(now), now + _ROUND))

    async def _look_for_successor(self) -> None:
        succeeded = await trio.to_thread.run_sync(self._is_succeeded)
        if succeeded != self.succeeded:
            _log.info("a successor decides about pods" if succeeded else "no successor came to work")
        self.succeeded = succeeded

    async def _news(self, until: float) -> None:
        with trio.move_on_at(until):
            await self._changed.wait()
        self._changed = trio.Event()

    async def _round(self) -> None:
        now = trio.current_time()
        for uid in self._witnesses.ended():
            self.roster.lost(uid, now)
        self.roster.advance(now)
        if sought := self.roster.to_look(now):
            await self._look(sought)
        for member in self.roster.to_remove():
            uid = member.pod.uid
            await self._handler.handle(Delete(uid))
            self._witnesses.drop(uid)
            self.roster.removed(uid)
        self.roster.advance(trio.current_time())

    async def _look(self, sought: list[Member]) -> None:
        wanted = {one.pod.uid: one.pod.addresses for one in sought}
        found = await trio.to_thread.run_sync(self._finder.look, wanted)
        try:
            while found:
                uid, one = found.popitem()
                if isinstance(one, Found):
                    await self._tell(uid, one)
                else:
                    self.roster.not_found(uid, one.reason, trio.current_time())
                    self._say(uid)
        finally:
            for left in found.values():
                if isinstance(left, Found):
                    left.close()

    async def _tell(self, uid: str, found: Found) -> None:
        tell = self.roster.found(uid, found.key, trio.current_time())
        member = self.roster.get(uid)
        if member is None or not member.witnessed:
            found.close()
            self._say(uid)
            return
        self._witnesses.put(uid, found.witness)
        if not tell:
            os.close(found.netns_fd)
            return
        pod = member.pod
        add = Add(uid, pod.name, pod.namespace, pod.service_account, found.netns_fd, pod.settings)
        error = await self._handler.handle(add)
        self.roster.added(uid, found.key, pod.settings, error, trio.current_time())

    def _say(self, uid: str) -> None:
        """Why a pod waits, when it has for a while; once for each reason."""
        member = self.roster.get(uid)
        if member is None or trio.current_time() < member.since + _TELL_AFTER:
            return
        if member.reason != member.said:
            member.said = member.reason
            _log.warning("pod waits to be enrolled", extra=fields(pod=str(member.pod), error=member.reason))
