"""Runs what tells which pods are in: the ZDS client or own discovery, as `choice` says."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from ztunnel.config import Config
from ztunnel.enrol import choice
from ztunnel.enrol.choice import Chosen, Setting, Source, ZdsSocket
from ztunnel.enrol.finder import Finder, places
from ztunnel.enrol.pods import Pods
from ztunnel.enrol.zds import ZdsClient
from ztunnel.logs import fields

if TYPE_CHECKING:
    from istiodlite.kube import Access, KubeClient
    from ztunnel.enrol.discovery import Discovery

__all__ = ["EnrolError", "PodSource"]

_log = logging.getLogger("ztunnel.inpod")
_LOOK: Final = 1.0


class EnrolError(Exception):
    """Own discovery cannot start; one line with advice."""


class PodSource:
    """Feeds `pods` with requests. `chosen` is None until it is known by whom."""

    def __init__(
        self,
        config: Config,
        pods: Pods,
        is_succeeded: Callable[[], bool],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """`is_succeeded`: see `Discovery`."""
        self._config, self._pods, self._environ = config, pods, environ
        self._is_succeeded = is_succeeded
        self.zds = ZdsClient(config.inpod_uds, pods) if config.inpod_uds is not None else None
        self.discovery: Discovery | None = None
        self.chosen: Chosen | None = None
        self._in_cluster = bool(environ.get("KUBERNETES_SERVICE_HOST"))

    @property
    def exists(self) -> bool:
        """Whether there is anybody to wait for."""
        setting = self._config.enrol
        own = setting is Setting.KUBERNETES or (setting is Setting.AUTO and self._in_cluster)
        return own or self.zds is not None

    async def run(self) -> None:
        """Endless; cancel to stop. EnrolError."""
        began = trio.current_time()
        while (chosen := await self._choose(trio.current_time() - began)) is None:
            await trio.sleep(_LOOK)
        self._take(chosen)
        if chosen.source is Source.KUBERNETES:
            await self._discover()
        if self.zds is not None:
            await self.zds.run()

    async def _choose(self, waited: float) -> Chosen | None:
        found = ZdsSocket.ABSENT
        if self._config.enrol is Setting.AUTO and self._in_cluster:
            found = await _look_at(self._config.inpod_uds)
        return choice.choose(self._config.enrol, found, in_cluster=self._in_cluster, waited=waited)

    def _take(self, chosen: Chosen) -> None:
        self.chosen = chosen
        _log.info("enrolment", extra=fields(by=chosen.source, why=chosen.why))

    async def _discover(self) -> None:
        """Until a CNI agent turns up, where that may be."""
        # With the HTTP client: several MiB that an agent under a CNI agent never needs.
        from ztunnel.enrol.discovery import Discovery

        config = self._config
        async with self._client() as client, trio.open_nursery() as nursery:
            self.discovery = Discovery(
                client,
                config.node_name,
                self._pods,
                Finder(places(config.pod_cgroups, config.cgroup, Path("/proc/mounts").read_text())),
                is_succeeded=self._is_succeeded,
                excluded=config.enrol_excluded,
                writes_status=config.pod_status,
            )
            nursery.start_soon(self.discovery.run)
            if config.enrol is not Setting.AUTO:
                await trio.sleep_forever()
            while (found := await self._choose(0.0)) is None or found.source is not Source.ZDS:
                await trio.sleep(_LOOK)
            nursery.cancel_scope.cancel()
        self.discovery = None
        self._take(found)

    def _access(self) -> Access:
        from istiodlite.kube import find_access

        return find_access(None, "", self._environ)

    def _client(self) -> KubeClient:
        from istiodlite.kube import AccessError, KubeClient

        try:
            return KubeClient(self._access(), "ztunnel")
        except AccessError as error:
            advice = str(error).replace("use --kubeconfig FILE", "set KUBECONFIG=FILE")
            raise EnrolError(f"AMBIENT_ENROL: {advice}") from None

    # What people ask

    def note(self) -> str:
        """One line for readiness: by whom, why so, what is amiss."""
        if self.chosen is None:
            return f"enrolment: not known yet; a ZDS socket is there and silent: {self._config.inpod_uds}"
        text = f"enrolment: {self.chosen.source} ({self.chosen.why})"
        if self.discovery is None:
            return text
        if not self.discovery.synced:
            return f"{text}: pods are not listed yet"
        if self.discovery.succeeded:
            return f"{text}: a successor decides"
        waiting = len(self.discovery.roster.waiting())
        text += f": {len(self._pods)} in, {waiting} waiting"
        age = self.discovery.age()
        return f"{text}; the API server has not been heard for {age:.0f} s" if age else text

    def describe(self) -> dict[str, Any]:
        """The admin page."""
        told = {"source": self.chosen.source, "why": self.chosen.why} if self.chosen else {}
        return told | ({} if self.discovery is None else self.discovery.describe())


async def _look_at(path: Path | None) -> ZdsSocket:
    if path is None or not path.is_socket():
        return ZdsSocket.ABSENT
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe, trio.move_on_after(1.0):
        try:
            await probe.connect(str(path))
        except OSError:
            return ZdsSocket.SILENT
        return ZdsSocket.ANSWERS
    return ZdsSocket.SILENT
