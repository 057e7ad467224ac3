"""The child of the short cut's self-test: `python -m ebpf.redirecttrial MOUNT_POINT`, byte code on stdin.

A node and two pods, joined by veths and by nothing else: the node has no route to them, and the pods send to no Ethernet
address of the node's. So what arrives has come by the short cut.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from ebpf import bpf, bytecode, maps, netlink, netns, pairs, trial
from ebpf.errors import CaptureError
from ebpf.loader import Kernel
from ebpf.maps import Address, Counter, PodRecord, ip16
from ebpf.pairs import Endpoint, Tuple4
from ebpf.redirect import Redirect, State

_OWN: Final[tuple[tuple[Address, Address], ...]] = (
    (ip_address("192.0.2.1"), ip_address("192.0.2.2")),
    (ip_address("2001:db8::1"), ip_address("2001:db8::2")),
)
_TIMEOUT: Final = 5.0
_SIZE: Final = 300_000
_LINK: Final = struct.Struct("=BBHiII")
_UP_WITHOUT_ARP: Final = 0x81
_IFNAME, _LINKINFO, _NET_NS_FD = 3, 18, 28
_KIND, _DATA, _PEER = 1, 2, 1


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise AssertionError(otherwise)


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    """A new one; this thread stays where it is."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    with netns.inside(home):
        netns.unshare()
        made = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    os.close(home)
    try:
        yield made
    finally:
        os.close(made)


def _up(link: netlink.Netlink, index: int) -> None:
    link.change(netlink.NEW_LINK, _LINK.pack(0, 0, 0, index, _UP_WITHOUT_ARP, _UP_WITHOUT_ARP))


def _index(link: netlink.Netlink, name: bytes) -> int:
    wanted = _LINK.pack(0, 0, 0, 0, 0, 0) + netlink.attribute(_IFNAME, name + b"\0")
    return int(_LINK.unpack_from(link.get(netlink.GET_LINK, wanted))[3])


def _join(pod: int, name: bytes) -> int:
    """A veth to a pod; returns the index of its end here."""
    empty = _LINK.pack(0, 0, 0, 0, 0, 0)
    peer = empty + netlink.attribute(_IFNAME, b"eth0\0") + netlink.attributes({_NET_NS_FD: pod})
    data = netlink.attribute(_DATA, netlink.attribute(_PEER, peer))
    kind = netlink.attribute(_LINKINFO, netlink.attribute(_KIND, b"veth") + data)
    with netlink.Netlink() as link:
        link.create(netlink.NEW_LINK, empty + netlink.attribute(_IFNAME, name + b"\0") + kind)
        index = _index(link, name)
        _up(link, index)
        return index


def _furnish(pod: int, addresses: tuple[Address, ...]) -> tuple[Address, ...]:
    """Addresses and routes by the veth; returns what there is: IPv6 may be switched off."""
    found: list[Address] = []
    with netns.inside(pod), netlink.Netlink() as link:
        trial.bring_loopback_up()
        eth0 = _index(link, b"eth0")
        _up(link, eth0)
        for address in addresses:
            family, bits = trial.family_of(address), address.max_prefixlen
            body = struct.pack("=BBBBI", family, bits, 0x2, 0, eth0)  # IFA_F_NODAD
            body += netlink.attributes({1: address.packed, 2: address.packed})
            with contextlib.suppress(PermissionError):
                link.create(netlink.NEW_ADDRESS, body)
                trial.await_local(link, address)
                route = struct.pack(
                    "=8BI", family, 0, 0, 0, 254, 4, 253 if family == socket.AF_INET else 0, 1, 0
                )
                link.create(netlink.NEW_ROUTE, route + netlink.attributes({4: eth0}))
                found.append(address)
    return tuple(found)


def _announce(kernel: Kernel, near: Endpoint, far: Endpoint) -> None:
    """Call a connection direct, from slot 0 to slot 1, and begun after all is in place."""
    began, asked = time.monotonic_ns() + (1 << 32), ip16(far.ip)
    entry = pairs.CONN.pack(1, 0, began, 0, 0, 0, 0, 0, 1, asked, far.port, 0, pairs.What.OPEN, 0, 0, 0, 0, 0)
    bpf.map_update(kernel.maps["direct_conns"], Tuple4(near, far).encode(), entry)


def _started(pod: int, own: Address, to: Endpoint, kernel: Kernel | None) -> socket.socket:
    """A client that connects; with `kernel` its connection is a direct one."""
    with netns.inside(pod):
        client = socket.socket(trial.family_of(own))
    client.bind((str(own), 0))
    if kernel is not None:
        _announce(kernel, Endpoint(own, client.getsockname()[1]), to)
    client.setblocking(False)
    client.connect_ex((str(to.ip), to.port))
    return client


def _converse(kernel: Kernel, pods: tuple[int, int], own: Address, far: Address) -> None:
    with netns.inside(pods[1]):
        listener = socket.create_server((str(far), 0), family=trial.family_of(far))
    to = Endpoint(far, listener.getsockname()[1])
    with listener, _started(pods[0], own, to, None) as other, _started(pods[0], own, to, kernel) as client:
        listener.settimeout(_TIMEOUT)
        try:
            accepted, peer = listener.accept()
        except TimeoutError:
            raise AssertionError(f"IPv{far.version}: packets do not arrive") from None
        with accepted:
            _expect(peer[:2] == client.getsockname()[:2], "a connection that is not direct was taken along")
            for sender, receiver in ((client, accepted), (accepted, client)):
                _pass(sender, receiver)
        _expect(not select.select([], [other], [], 0)[1], "a connection that is not direct was taken along")


def _pass(sender: socket.socket, receiver: socket.socket) -> None:
    """Enough bytes for packets that are put together of several."""
    sender.setblocking(False)
    receiver.setblocking(False)
    left = received = _SIZE
    while received:
        readable, writable, _ = select.select([receiver], [sender] if left else [], [], _TIMEOUT)
        _expect(bool(readable or writable), "bytes were lost")
        if writable:
            left -= sender.send(bytes(min(left, 65536)))
        if readable:
            got = len(receiver.recv(65536))
            _expect(got > 0, "the connection was ended")
            received -= got


def _steps(collection: bytecode.Collection, mount_point: Path) -> None:
    kernel = Kernel.open(collection, mount_point)
    admitted = {0, 1}
    redirect = Redirect(kernel, admitted.__contains__)
    redirect.state = State.ON
    with _namespace() as first, _namespace() as second:
        pods = (first, second)
        found: list[tuple[Address, ...]] = []
        for slot, pod in enumerate(pods):
            _join(pod, f"pod{slot}".encode())
            found.append(_furnish(pod, tuple(each[slot] for each in _OWN)))
            record = PodRecord(netns.cookie(pod), netns.inode(pod), slot)
            bpf.map_update(kernel.maps["slots"], maps.u32(slot), record.encode())
            redirect.add(slot, pod, found[slot])
        _expect(redirect.slots == admitted, "; ".join(redirect.left_out.values()))
        for own, far in zip(*found, strict=True):
            _converse(kernel, pods, own, far)
        counted = bpf.map_lookup(kernel.maps["counters"], maps.u32(Counter.REDIRECTED), 8)
        _expect(int.from_bytes(counted or b"", sys.byteorder) >= len(found[0]), "nothing was counted")
        redirect.disable()
        _expect(not kernel.redirects(), "programs stay attached")


def main() -> int:
    """In the child; 0 if everything works."""
    mount_point = Path(sys.argv[1])
    try:
        collection = bytecode.decode(sys.stdin.read())
        trial.isolate(None, mount_point)
        _steps(collection, mount_point)
    except (OSError, AssertionError, CaptureError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
