"""The self-test's child: `python -m ebpf.trial MOUNT_POINT [CGROUP]`, byte code on stdin.

MOUNT_POINT is covered by a BPF file system that only this process sees. CGROUP is made by it; without one,
variant C is tried.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from ebpf import bytecode, netlink, netns
from ebpf.capture import Capture, PodNetwork
from ebpf.dns import DNS_PORT, DnsSockets
from ebpf.errors import CaptureError
from ebpf.marks import ONWARD_MARK
from ebpf.variants import Variant

_CONNECT_TIMEOUT: Final = 3.0
_OWN: Final = (IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"))
_FAR: Final = (IPv4Address("198.51.100.1"), IPv6Address("2001:db8:ffff::1"))
_PORT: Final = 9
_CLONE_NEWNS: Final = 0x20000
_MS_PRIVATE_ALL: Final = 0x44000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def isolate(own_cgroup: Path | None, mount_point: Path) -> None:
    """Own cgroup, own network, and a BPF file system that only this process sees."""
    if own_cgroup is not None:
        own_cgroup.mkdir()
        (own_cgroup / "cgroup.procs").write_text("0")
    netns.unshare()
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _checked(_libc.mount(b"none", b"/", None, _MS_PRIVATE_ALL, None), "mount")
    _checked(_libc.mount(b"bpf", os.fsencode(mount_point), b"bpf", 0, None), "mount bpf")


def bring_loopback_up() -> None:
    """In this thread's network namespace. OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("=16sH14x", b"lo", _IFF_UP))


def _give_addresses() -> None:
    bring_loopback_up()
    with netlink.Netlink() as link:
        for address in _OWN:
            family, bits = family_of(address), address.max_prefixlen
            body = struct.pack("=BBBBI", family, bits, 0x2, 0, 1)  # IFA_F_NODAD
            body += netlink.attributes({1: address.packed, 2: address.packed})
            with contextlib.suppress(PermissionError):  # IPv6 is switched off
                link.create(netlink.NEW_ADDRESS, body)
                await_local(link, address)


def await_local(link: netlink.Netlink, address: IPv4Address | IPv6Address) -> None:
    """The kernel makes the local route of an IPv6 address later, in a thread of its own, also without duplicate
    address detection; until then it drops what is sent there without a mark, and tells nobody."""
    deadline = time.monotonic() + _CONNECT_TIMEOUT
    while not link.is_local(address):
        _expect(time.monotonic() < deadline, f"{address} does not become a local address")
        time.sleep(0.001)


def family_of(address: IPv4Address | IPv6Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise AssertionError(otherwise)


def _outbound(listener: socket.socket, to: IPv4Address | IPv6Address) -> None:
    """An ordinary connect reaches the agent's listener, which sees the true destination."""
    with socket.socket(family_of(to)) as client:
        client.settimeout(_CONNECT_TIMEOUT)
        client.connect((str(to), _PORT))
        listener.setblocking(True)
        listener.settimeout(_CONNECT_TIMEOUT)
        accepted, _ = listener.accept()
        with accepted:
            seen = accepted.getsockname()
            _expect(
                (seen[0].removeprefix("::ffff:"), seen[1]) == (str(to), _PORT),
                f"a connection to {to} was captured as one to {seen[0]}",
            )


def _onward(own: IPv4Address | IPv6Address, client_address: IPv4Address | IPv6Address) -> None:
    """A connection under the client's address reaches the application, and its answers come back."""
    family = family_of(own)
    transparent = (socket.SOL_IP, 19) if family == socket.AF_INET else (socket.IPPROTO_IPV6, 75)
    with socket.socket(family) as application, socket.socket(family) as onward:
        application.bind((str(own), 0))
        application.listen()
        onward.settimeout(_CONNECT_TIMEOUT)
        onward.setsockopt(*transparent, 1)
        onward.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        onward.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, ONWARD_MARK)
        onward.bind((str(client_address), 0))
        onward.connect(application.getsockname()[:2])


def _question(dns: DnsSockets, to: IPv4Address | IPv6Address) -> None:
    """A question to a name server reaches the agent, and the answer comes from that name server."""
    with socket.socket(family_of(to), socket.SOCK_DGRAM) as client:
        client.connect((str(to), DNS_PORT))
        client.settimeout(_CONNECT_TIMEOUT)
        client.send(b"?")
        _expect(bool(select.select([dns.udp], [], [], _CONNECT_TIMEOUT)[0]), "the question does not come")
        question = dns.next()
        dns.done()
        _expect(question is not None and question.asked == (to, DNS_PORT), f"asked {to}, saw {question}")
        assert question is not None
        _expect(dns.answer(question, b"!"), "the kernel takes no answer")
        _expect(client.recv(9) == b"!", "another answer")


def _unreachable(to: IPv4Address | IPv6Address, mark: int = 0) -> None:
    with socket.socket(family_of(to)) as client:
        client.settimeout(_CONNECT_TIMEOUT)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        _expect(client.connect_ex((str(to), _PORT)) != 0, f"{to} answers, but nobody is there")


def _steps(collection: bytecode.Collection, own_cgroup: Path | None, mount_point: Path) -> None:
    pod_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    netns.unshare()  # capture refuses the namespace it lives in
    variant = Variant.B if own_cgroup else Variant.C
    capture = Capture.attach(collection, own_cgroup, mount_point, variant)
    with netns.inside(pod_fd):
        _give_addresses()
        _in_the_pod(capture, PodNetwork(pod_fd, netns.addresses(pod_fd), dns=True))


def _in_the_pod(capture: Capture, network: PodNetwork) -> None:
    pod = capture.enrol(network)
    pairs = [(own, far) for own, far in zip(_OWN, _FAR, strict=True) if own in network.addresses]
    for own, far in pairs:
        _step(f"outbound IPv{own.version}", _outbound, pod.outbound, far)
        assert pod.dns
        _step(f"DNS IPv{own.version}", _question, pod.dns, far)
    capture.exempt_agent(os.getpid())
    for own, far in pairs:
        _step(f"onward IPv{own.version}", _onward, own, far)
        _step(f"the agent's own IPv{own.version}", _unreachable, far, capture.dial_mark)
    _step("withdrawal", capture.withdraw, pod)
    for far in _FAR:
        _step("withdrawal", _unreachable, far)


def _step(name: str, attempt: Callable[..., object], *arguments: object) -> None:
    try:
        attempt(*arguments)
    except (OSError, AssertionError) as error:
        raise AssertionError(f"{name}: {error}") from error


def main() -> int:
    """In the child: byte code on stdin, 0 if everything works."""
    mount_point, *rest = map(Path, sys.argv[1:])
    own_cgroup = rest[0] if rest else None
    try:
        collection = bytecode.decode(sys.stdin.read())
        try:
            isolate(own_cgroup, mount_point)
        except OSError as error:
            raise AssertionError(
                f"{error}: needs SYS_ADMIN, and for variant B cgroup2 mounted writable"
            ) from error
        _steps(collection, own_cgroup, mount_point)
    except (OSError, AssertionError, CaptureError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
