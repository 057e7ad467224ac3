"""The C core's binding. Use `hbone.engine.Engine`, its typed face."""

from collections.abc import Mapping
from typing import Any

REASONS: tuple[str, ...]
MACHINES: tuple[tuple[str, tuple[tuple[str, str], ...], tuple[tuple[str | None, str, str], ...]], ...]
"""State machines as the code consults them: (name, ((state, text), ...), ((from, to, why), ...)); from None: a start."""
CONFIG: tuple[tuple[str, float, float, float], ...]
"""(name, default, least, most) of every field of EngineConfig."""
BUDGET_RATES: tuple[tuple[str, int, int, str], ...]
"""(name, burst, per second, what draws on it)."""
BUDGET_COUNTS: tuple[tuple[str, int, str], ...]
BUFFER_SIZES: tuple[tuple[str, int, str], ...]
"""(name, bytes or number, what it is)."""

class Core:
    event_fd: int
    uses_ipsec_mb: bool
    def __init__(self, config: Mapping[str, float]) -> None: ...
    def take(self, limit: int, /) -> list[tuple[Any, ...]]: ...
    def add_netns(self, netns_fd: int, /) -> int: ...
    def remove_netns(self, netns: int, /) -> None: ...
    def listen(self, fd: int, kind: int, netns: int, tag: int, identity: int, /) -> int: ...
    def unlisten(self, listener: int, /) -> None: ...
    def set_identity(
        self,
        identity: int,
        chain_pem: bytes,
        key_pem: bytes,
        roots_pem: bytes,
        trust_domains: tuple[str, ...],
        /,
    ) -> None: ...
    def set_crls(self, files: tuple[bytes, ...], /) -> None: ...
    def drop_identity(self, identity: int, /) -> None: ...
    def connect_plain(
        self,
        token: int,
        ip: str,
        port: int,
        netns: int,
        source_ip: str | None,
        headers: tuple[tuple[str, str], ...],
        mark: int,
        /,
    ) -> None: ...
    def connect_tunnel(
        self,
        token: int,
        ip: str,
        port: int,
        netns: int,
        identity: int,
        sans: tuple[str, ...],
        authority: str,
        headers: tuple[tuple[str, str], ...],
        mark: int,
        /,
    ) -> None: ...
    def refuse(self, token: int, reason_code: int, status: int, /) -> None: ...
    def keep_plain(
        self,
        whom: tuple[Any, ...],
        ip: str,
        port: int,
        netns: int,
        source_ip: str | None,
        headers: tuple[tuple[str, str], ...],
        mark: int,
        /,
    ) -> int: ...
    def keep_tunnel(
        self,
        whom: tuple[Any, ...],
        ip: str,
        port: int,
        netns: int,
        identity: int,
        sans: tuple[str, ...],
        authority: str,
        headers: tuple[tuple[str, str], ...],
        varying: bytes,
        texts: int,
        mark: int,
        /,
    ) -> int: ...
    def forget(self) -> int: ...
    def epoch(self) -> int: ...
    def flush(self) -> None: ...
    def cut(self, token: int, reason_code: int, /) -> None: ...
    def drain(self, tag: int, /) -> None: ...
    def drain_all(self) -> None: ...
    def counters(self) -> list[tuple[int, int, int]]: ...
    def stats(self) -> dict[str, int]: ...
    def stop(self) -> None: ...
