"""Host names of workloads that have no address: the system's resolver, with a small cache."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

import trio

from hbone.connect import canonical_ip
from ztunnel.state.model import IPAddress

__all__ = ["Resolver", "ask_system"]

_KEPT = 30.0
_FAILURE_KEPT = 1.0
_ENTRIES = 4096
_SECONDS = 5.0


async def ask_system(name: str) -> tuple[IPAddress, ...]:
    """Every address of a name by getaddrinfo(3); empty when it has none or nobody knows."""
    try:
        rows = await trio.socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return ()
    # A link-local answer carries a zone ("fe80::1%eth0"), which means nothing outside this host.
    texts = dict.fromkeys(str(row[4][0]) for row in rows)
    return tuple(canonical_ip(ip_address(text)) for text in texts if "%" not in text)


class Resolver:
    """resolver(name) gives every address of a name; empty when there is none.

    Answers are kept for 30 s; no answer for 1 s only, so that a name server's short absence is not made longer.
    """

    def __init__(
        self,
        *,
        ask: Callable[[str], Awaitable[tuple[IPAddress, ...]]] = ask_system,
        monotonic: Callable[[], float] = trio.current_time,
    ) -> None:
        self._ask = ask
        self._now = monotonic
        self._cache: dict[str, tuple[float, tuple[IPAddress, ...]]] = {}

    async def __call__(self, name: str) -> tuple[IPAddress, ...]:
        """Look a name up, at most 5 s long."""
        known = self._cache.get(name)
        if known is not None and known[0] > self._now():
            return known[1]
        found: tuple[IPAddress, ...] = ()
        with trio.move_on_after(_SECONDS):
            found = await self._ask(name)
        if len(self._cache) >= _ENTRIES:
            self._cache.clear()
        self._cache[name] = (self._now() + (_KEPT if found else _FAILURE_KEPT), found)
        return found
