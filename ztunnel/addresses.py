"""Addresses between text and value. The same few addresses come again with every connection: they are kept."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address

from hbone.connect import IPAddress, SocketAddress, canonical_ip

__all__ = ["ip_text", "peer_text", "socket_address", "socket_text"]

_KEPT = 65_536


@lru_cache(_KEPT)
def _ip(text: str) -> IPAddress:
    return canonical_ip(ip_address(text))


@lru_cache(_KEPT)
def ip_text(ip: IPAddress) -> str:
    """An address as text."""
    return str(ip)


def socket_address(address: tuple[str, int]) -> SocketAddress:
    """What the engine says (text, port) as a value."""
    return SocketAddress(_ip(address[0]), address[1])


def socket_text(address: SocketAddress) -> str:
    """`ip:port`, or `[ip]:port` for IPv6."""
    text = ip_text(address.ip)
    return f"[{text}]:{address.port}" if address.ip.version == 6 else f"{text}:{address.port}"


def peer_text(address: tuple[str, int]) -> str:
    """`socket_text` of what the engine says."""
    ip, port = address
    return f"{ip}:{port}" if ":" not in ip else socket_text(socket_address(address))
