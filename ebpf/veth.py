"""The host's end of a pod's veth: found from inside the pod, and proved from outside.

An interface tells its peer's index and that index alone means nothing: it counts within a namespace. So the interface of
that index in the namespace of whoever asks has to name the pod's interface as *its* peer, in the pod's own namespace.
Sources: rtnetlink(7), include/uapi/linux/{if_link,net_namespace}.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ebpf import netlink, netns
from ebpf.maps import Address, ip16

_IFLA_ADDRESS, _IFLA_LINK, _IFLA_LINKINFO, _IFLA_LINK_NETNSID = 1, 5, 18, 37
_IFLA_INFO_KIND: Final = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NETNSA_NSID, _NETNSA_FD = 1, 3
_LINK_HEADER: Final = struct.Struct("=BBHiII")
_HOST: Final = struct.Struct("=QII6s6s4x")
_MAC: Final = 6
HOST_SIZE: Final = _HOST.size


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface as the kernel describes it. `peer`: index of its other end, in the namespace that `peer_netns`
    names (a number that counts within the namespace that was asked); None where there is none, or it is here."""

    index: int
    kind: str
    mac: bytes
    peer: int | None
    peer_netns: int | None


@dataclass(frozen=True, slots=True)
class HostEnd:
    """The host's end of a pod's veth: its index, its Ethernet address and the pod's."""

    ifindex: int
    mac: bytes
    pod_mac: bytes

    def encode(self, slot: int, since: int) -> bytes:
        """`struct redirect_host` (redirect.h), 32 bytes; `since`: nanoseconds of CLOCK_MONOTONIC."""
        return _HOST.pack(since, self.ifindex, slot, self.pod_mac, self.mac)


class NoHostEndError(Exception):
    """The pod has none here; `str()` says why."""


def decode_host(raw: bytes) -> tuple[HostEnd, int, int]:
    """Inverse of `HostEnd.encode`: with slot and `since`."""
    since, ifindex, slot, pod_mac, mac = _HOST.unpack(raw)
    return HostEnd(ifindex, mac, pod_mac), slot, since


def parse_interface(body: bytes) -> Interface:
    """The body of an RTM_NEWLINK message."""
    _, _, _, index, _, _ = _LINK_HEADER.unpack_from(body)
    values = netlink.parse_attributes(body[_LINK_HEADER.size :])
    info = netlink.parse_attributes(values.get(_IFLA_LINKINFO, b""))
    peer, peer_netns = (
        struct.unpack("=i", values[each])[0] if each in values else None
        for each in (_IFLA_LINK, _IFLA_LINK_NETNSID)
    )
    kind = info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")
    return Interface(index, kind, values.get(_IFLA_ADDRESS, b""), peer, peer_netns)


def parse_address(body: bytes) -> tuple[bytes, int]:
    """The body of an RTM_NEWADDR message: the address as `ip16`, and its interface's index."""
    family, _, _, _, index = struct.unpack_from("=BBBBI", body)
    values = netlink.parse_attributes(body[8:])
    raw = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS) or b""
    mapped = bytes(10) + b"\xff\xff" if family == socket.AF_INET else b""
    return mapped + raw, index


def are_ends(inner: Interface, outer: Interface, inner_netns: int) -> bool:
    """Whether `outer`, as it is seen from the host, is the other end of `inner`, as it is seen from the pod whose namespace
    is `inner_netns` to the host."""
    return (
        inner.kind == outer.kind == "veth"
        and (inner.peer, outer.peer) == (outer.index, inner.index)
        and outer.peer_netns == inner_netns >= 0
        and len(inner.mac) == len(outer.mac) == _MAC
    )


def host_end(netns_fd: int, addresses: Iterable[Address]) -> HostEnd:
    """Of the interface that has the pod's addresses, in this thread's network namespace. NoHostEndError; OSError as the
    kernel answers."""
    inner = _inner(netns_fd, {ip16(address) for address in addresses})
    if inner.kind != "veth" or inner.peer is None or inner.peer_netns is None:
        raise NoHostEndError(f"its interface is {inner.kind or 'no veth'}, without an end on the host")
    with netlink.Netlink() as link:
        try:
            outer = parse_interface(link.get(netlink.GET_LINK, _interface(inner.peer)))
        except OSError:
            raise NoHostEndError("the other end of its veth is not in the agent's network") from None
        wanted = struct.pack("=B3x", 0) + netlink.attributes({_NETNSA_FD: netns_fd})
        answer = netlink.parse_attributes(link.get(netlink.GET_NSID, wanted)[4:])
    (number,) = struct.unpack("=i", answer[_NETNSA_NSID])
    if not are_ends(inner, outer, number):
        raise NoHostEndError("the other end of its veth is not in the agent's network")
    return HostEnd(outer.index, outer.mac, inner.mac)


def _inner(netns_fd: int, wanted: set[bytes]) -> Interface:
    with netns.inside(netns_fd), netlink.Netlink() as link:
        everything = link.dump(netlink.GET_ADDRESS, struct.pack("=BBBBI", 0, 0, 0, 0, 0))
        found = [parse_address(body) for body in everything]
        holders = {index for address, index in found if address in wanted}
        if not wanted <= {address for address, _ in found}:
            raise NoHostEndError("it does not have its addresses")
        if len(holders) != 1:
            raise NoHostEndError("its addresses are on several interfaces")
        return parse_interface(link.get(netlink.GET_LINK, _interface(*holders)))


def _interface(index: int) -> bytes:
    return _LINK_HEADER.pack(0, 0, 0, index, 0, 0)
