"""The cluster's name server on each node: dnsmasq, and how to know that it has read its file."""

import socket
import struct
from collections.abc import Sequence
from pathlib import Path

import trio

from daemonset.local.addresses import Address
from daemonset.local.dnsnames import DOMAIN
from daemonset.local.linux import inside

_ASK_AGAIN = 0.05
_HEADER = struct.Struct("!HHHHHH")


def command(hosts: Path, addresses: Sequence[Address]) -> list[str]:
    """dnsmasq that knows the hosts file and nothing else: other names do not exist (NXDOMAIN at once)."""
    return [
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        f"--addn-hosts={hosts}",
        "--bind-interfaces",
        *(f"--listen-address={address}" for address in addresses),
        "--cache-size=0",
        "--local-ttl=1",
        "--user=root",
        "--pid-file=",
        f"--local=/{DOMAIN}/",
        "--address=/#/",
        "--log-facility=-",
    ]


def question(name: str, number: int = 1) -> bytes:
    """A query for an A record (RFC 1035)."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return _HEADER.pack(number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)


def has_answer(packet: bytes, number: int = 1) -> bool:
    """Whether the packet answers the query with at least one record."""
    if len(packet) < _HEADER.size:
        return False
    ident, flags, _, answers, _, _ = _HEADER.unpack_from(packet)
    return bool(ident == number and flags & 0x8000 and answers)


async def knows(netns: Path, server: Address, name: str, seconds: float = 3.0) -> bool:
    """Asks until the server in the namespace knows the name; False if it does not within `seconds`."""
    with inside(netns):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with trio.move_on_after(seconds), trio.socket.from_stdlib_socket(sock) as asker:
        while True:
            try:
                await asker.sendto(question(name), (str(server), 53))
                with trio.move_on_after(_ASK_AGAIN):
                    if has_answer(await asker.recv(512)):
                        return True
            except OSError:
                pass  # nobody listens yet
            await trio.sleep(_ASK_AGAIN / 5)
    return False
