"""Host names of workloads that have no address: the system's resolver, with a small cache."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address

import trio

from hbone.connect import canonical_ip
from ztunnel.state.model import IPAddress

__all__ = ["Resolver"]

_TTL = 30.0
_ENTRIES = 4096
_SECONDS = 5.0


class Resolver:
    """resolver(name) gives every address of a name; empty when there is none. Answers are kept for 30 s."""

    def __init__(self, *, monotonic: Callable[[], float] = trio.current_time) -> None:
        self._now = monotonic
        self._cache: dict[str, tuple[float, tuple[IPAddress, ...]]] = {}
        self.lookups = 0

    async def __call__(self, name: str) -> tuple[IPAddress, ...]:
        """Look a name up, at most 5 s long."""
        known = self._cache.get(name)
        if known is not None and known[0] > self._now():
            return known[1]
        self.lookups += 1
        found: tuple[IPAddress, ...] = ()
        with trio.move_on_after(_SECONDS):
            found = await self._system(name)
        if len(self._cache) >= _ENTRIES:
            self._cache.clear()
        self._cache[name] = (self._now() + _TTL, found)
        return found

    async def _system(self, name: str) -> tuple[IPAddress, ...]:
        try:
            rows = await trio.socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError:
            return ()
        # A link-local answer carries a zone ("fe80::1%eth0"), which means nothing outside this host.
        texts = dict.fromkeys(str(row[4][0]) for row in rows)
        return tuple(canonical_ip(ip_address(text)) for text in texts if "%" not in text)
