"""Writes on pods whether they are captured: annotation `ambient.istio.io/redirection`, as Istio's CNI agent does.

Control planes take it for whether a pod accepts HBONE; without it peers send it plaintext. It goes through the
subresource `status` of the pod, which is all that RBAC has to allow.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from typing import Final

import trio

from istiodlite.kube.client import ApiError, KubeClient
from ztunnel.backoff import Backoff
from ztunnel.enrol.membership import REDIRECTION
from ztunnel.enrol.roster import Member
from ztunnel.logs import fields

__all__ = ["PodStatus"]

_log = logging.getLogger("ztunnel.inpod")
_UNSEEN: Final = 10.0
"""Seconds after which what was written and is not to be seen is written again."""
_GONE: Final = (404, 409, 422)


class PodStatus:
    """Keeps annotations as `members` have them. `problem`: why not, one line, or empty."""

    def __init__(
        self,
        client: KubeClient,
        members: Callable[[], Iterable[Member]],
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._client, self._members, self._draw = client, members, draw
        self._changed = trio.Event()
        self._backoff = Backoff(first=0.5, cap=15.0)
        self._written: dict[str, tuple[str, float]] = {}
        self.problem = ""
        self.failures = 0

    def check(self) -> None:
        """Something may have changed."""
        self._changed.set()

    async def run(self) -> None:
        """Endless; cancel to stop."""
        while True:
            with trio.move_on_after(_UNSEEN):
                await self._changed.wait()
            self._changed = trio.Event()
            due = list(self._due())
            if not due:
                self._forget()
            for member, value in due:
                if not await self._write(member, value):
                    await trio.sleep(self._backoff.next(self._draw()))
                    self.check()
                    break

    def _due(self) -> Iterable[tuple[Member, str]]:
        now = trio.current_time()
        for member in self._members():
            value = member.redirection
            if value is None or value == member.pod.redirection:
                continue
            written, at = self._written.get(member.pod.uid, (None, 0.0))
            if value != written or now >= at + _UNSEEN:
                yield member, value

    def _forget(self) -> None:
        known = {member.pod.uid for member in self._members()}
        self._written = {uid: what for uid, what in self._written.items() if uid in known}

    async def _write(self, member: Member, value: str) -> bool:
        pod = member.pod
        # The uid is a precondition: another pod of the same name is none of ours.
        patch = {"metadata": {"uid": pod.uid, "annotations": {REDIRECTION: value or None}}}
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/status"
        try:
            await self._client.send("PATCH", path, patch, content_type="application/merge-patch+json")
        except ApiError as error:
            if error.code not in _GONE:
                self._failed(error)
                return False
        self._written[pod.uid] = (value, trio.current_time())
        self._backoff.reset()
        self.problem = ""
        return True

    def _failed(self, error: ApiError) -> None:
        advice = "; grant patch on pods/status, or set AMBIENT_POD_STATUS=false" if error.code == 403 else ""
        self.failures += 1
        text = f"{error}{advice}"
        if text != self.problem:
            _log.warning("pods are not told of their capture", extra=fields(error=text))
        self.problem = text
        if error.code == 0:
            self._client.renew()
