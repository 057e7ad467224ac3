"""Gives the node's pods the short cut past the host (`ebpf.redirect`), and tells which of them have it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

import trio

from ebpf.errors import CaptureError
from ebpf.redirect import Redirect, State
from ztunnel.enrol.pods import Pod
from ztunnel.logs import fields

__all__ = ["Shortcut"]

_log = logging.getLogger("ztunnel.direct")


class Shortcut:
    """Only with a direct path that works. What goes wrong here leaves connections direct, by the host's way."""

    def __init__(self, redirect: Redirect, *, wanted: bool) -> None:
        self._redirect, self._wanted = redirect, wanted
        self._names: dict[int, str] = {}

    async def start(self) -> None:
        """Test it and switch it on, or switch off what a former agent left."""
        try:
            if self._wanted:
                await trio.to_thread.run_sync(self._redirect.enable)
            else:
                self._redirect.disable()
        except (CaptureError, OSError) as error:
            _log.error("no short cut: direct connections go by the host", extra=fields(error=str(error)))

    async def follow(self, pods: Iterable[Pod]) -> None:
        """Look at pods that have come or changed."""
        if self._redirect.state is not State.ON:
            return
        there = list(pods)
        self._names = {pod.enrolled.slot: f"{pod.namespace}/{pod.name}" for pod in there}
        for pod in there:
            if not self._redirect.is_known(pod.enrolled.slot, pod.addresses):
                await self._add(pod)

    async def _add(self, pod: Pod) -> None:
        slot, name = pod.enrolled.slot, f"{pod.namespace}/{pod.name}"
        try:
            netns_fd = os.dup(pod.enrolled.network.netns_fd)
            try:
                await trio.to_thread.run_sync(self._redirect.add, slot, netns_fd, pod.addresses)
            finally:
                os.close(netns_fd)
        except (CaptureError, OSError) as error:
            _log.warning("no short cut to a pod", extra=fields(pod=name, error=str(error)))
        if problem := self._redirect.left_out.get(slot):
            _log.warning("no short cut to a pod", extra=fields(pod=name, error=problem))

    async def sweep(self) -> None:
        """Now and then: veths that are gone, pods that a former agent had."""
        try:
            await trio.to_thread.run_sync(self._redirect.sweep)
        except OSError as error:
            _log.warning("short cuts not looked after", extra=fields(error=str(error)))

    def describe(self) -> dict[str, Any]:
        """For people: whether it is on, or why not; how many pods have it, and which do not and why."""
        left_out = {self._names.get(slot, str(slot)): why for slot, why in self._redirect.left_out.items()}
        return {
            "state": self._redirect.state.value,
            "problem": self._redirect.problem,
            "pods": len(self._redirect.slots),
            "left_out": left_out,
        }

    def note(self) -> str:
        """`describe` in a line."""
        told = self.describe()
        if told["state"] != State.ON:
            return f"redirect_peer: {told['state']}" + (f": {told['problem']}" if told["problem"] else "")
        left_out = "; ".join(f"{name}: {why}" for name, why in told["left_out"].items())
        return f"redirect_peer: on for {told['pods']} pods" + (f"; left out: {left_out}" if left_out else "")
