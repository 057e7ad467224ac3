"""Probes of containers, made from an address of the node as the kubelet makes them."""

import socket
from ipaddress import ip_address
from pathlib import Path

import trio

from daemonset.local.containers import Probe
from daemonset.local.linux import inside

_HEAD_LIMIT = 4096


async def ask(probe: Probe, address: str, node: Path) -> bool:
    """One tcpSocket or httpGet probe of `address` from the node's namespace; whether the answer is good."""
    with trio.move_on_after(probe.timing.timeout):
        try:
            return await _ask(probe, probe.host or address, node)
        except (OSError, ValueError):
            return False
    return False


async def _ask(probe: Probe, address: str, node: Path) -> bool:
    family = socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6
    with inside(node):
        sock = socket.socket(family, socket.SOCK_STREAM)
    with trio.socket.from_stdlib_socket(sock) as connection:
        await connection.connect((address, probe.port))
        if probe.kind == "tcp":
            return True
        stream = trio.SocketStream(connection)
        await stream.send_all(_request(probe, address))
        return _good_status(await _first_line(stream))


def _request(probe: Probe, address: str) -> bytes:
    given = {name.lower() for name, _ in probe.headers}
    headers = list(probe.headers)
    if "host" not in given:
        host = f"[{address}]" if ":" in address else address
        headers.insert(0, ("Host", f"{host}:{probe.port}"))
    if "user-agent" not in given:
        headers.append(("User-Agent", "kube-probe/ambientlite"))
    lines = [f"GET {probe.path} HTTP/1.1", *(f"{n}: {v}" for n, v in headers), "Connection: close", "", ""]
    return "\r\n".join(lines).encode()


async def _first_line(stream: trio.SocketStream) -> bytes:
    head = b""
    while b"\n" not in head and len(head) < _HEAD_LIMIT:
        data = await stream.receive_some(_HEAD_LIMIT)
        if not data:
            break
        head += data
    return head.split(b"\n", 1)[0]


def _good_status(line: bytes) -> bool:
    """Kubernetes: 200 to 399 is success."""
    words = line.split()
    return (
        len(words) > 1 and words[0].startswith(b"HTTP/") and words[1].isdigit() and 200 <= int(words[1]) < 400
    )
