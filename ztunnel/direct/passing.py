"""Direct connections that have ended well before anybody looked: most of them.

What those between the same two ends have in common is worked out once. From there on one takes a few microseconds:
counters of both sides, and a log line of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ebpf.maps import address_of
from ebpf.pairs import DirectConnection, Field, What, decode_event
from ebpf.sockets import State
from ztunnel.flows.registry import Registry, Shared

__all__ = ["Passing", "is_plain", "without_fin"]

_KEPT: Final = 10_000
_ORDERLY: Final = frozenset({State.FIN_WAIT2, State.LAST_ACK, State.CLOSING})
_FIN_CAME: Final = frozenset({State.CLOSE_WAIT, State.LAST_ACK, State.CLOSING})
# An enum's members as subscripts cost more than the rest of a record.
_BEGAN, _ENDED, _SENT, _RECEIVED = (int(f) for f in (Field.BEGAN, Field.ENDED, Field.SENT, Field.RECEIVED))
_ANSWERED, _SERVED, _STATE = (int(f) for f in (Field.ANSWERED, Field.SERVED, Field.STATE))
_WHAT, _ESTABLISHED = int(Field.WHAT), int(Field.ESTABLISHED)
_CLIENT_IP, _CLIENT_PORT = int(Field.CLIENT_IP), int(Field.CLIENT_PORT)
_SERVER_IP, _SERVER_PORT = int(Field.SERVER_IP), int(Field.SERVER_PORT)
_ALIKE: Final = slice(int(Field.FROM_SLOT), int(Field.TURBO))


def is_plain(record: tuple[Any, ...]) -> bool:
    """Whether a record (`pairs.RECORD`) is that of a connection that ended well."""
    return record[_STATE] in _ORDERLY and record[_WHAT] == What.ENDED and bool(record[_ESTABLISHED])


def without_fin(received: int, state: int) -> int:
    """Bytes of the application that a client received, which may have counted a FIN."""
    return max(0, received - (state in _FIN_CAME))


class Passing:
    """Registers such connections. Use from the trio thread only."""

    def __init__(
        self, flows: Registry, share: Callable[[DirectConnection], tuple[Shared, Shared] | None]
    ) -> None:
        """`share` gives what the two flows of a connection have in common with others; None if a pod is unknown."""
        self._flows, self._share = flows, share
        self._shared: dict[tuple[Any, ...], tuple[Shared, Shared] | None] = {}
        self._clients: dict[bytes, str] = {}

    def forget(self) -> None:
        """What was worked out holds no longer: the mesh or the pods have changed."""
        self._shared.clear()

    def passed(self, record: tuple[Any, ...]) -> None:
        """A connection that `is_plain`."""
        key = (record[_ALIKE], record[_SERVER_IP], record[_SERVER_PORT])
        try:
            shared = self._shared[key]
        except KeyError:
            shared = self._new(key, record)
        if shared is None:
            return
        up = record[_SENT]
        down = record[_ANSWERED] if record[_SERVED] else without_fin(record[_RECEIVED], record[_STATE])
        client_ip = record[_CLIENT_IP]
        peer = (self._clients.get(client_ip) or self._text(client_ip), record[_CLIENT_PORT])
        began, ended = record[_BEGAN] / 1e9, record[_ENDED] / 1e9
        passed = self._flows.passed
        passed(shared[0], 0, peer, began, ended, up, down)
        passed(shared[1], 0, peer, began, ended, up, down)

    def _new(self, key: tuple[Any, ...], record: tuple[Any, ...]) -> tuple[Shared, Shared] | None:
        if len(self._shared) >= _KEPT:
            self._shared.clear()
        shared = self._shared[key] = self._share(decode_event(record).connection)
        return shared

    def _text(self, client_ip: bytes) -> str:
        if len(self._clients) >= _KEPT:
            self._clients.clear()
        text = self._clients[client_ip] = str(address_of(client_ip))
        return text
