"""Makes and removes the mesh's networks: fabric, nodes, pods. Synchronous; called in worker threads.

fabric netns: bridge br0 (the control plane's address)
  |  one veth per node
node netns: eth0 (node address), forwarding, routes to the other nodes' pods
  |  one veth per pod, routed, no bridge (as the ptp CNI plugin)
pod netns: eth0 with a /32 and a /128, next hop 169.254.1.1 and fe80::1
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from daemonset.local.addresses import Address, Ranges
from daemonset.local.linux import inside, make_netns
from daemonset.local.names import BRIDGE, UPLINK, pod_link, port_link

IFA_F_NODAD = 2
SCOPE_LINK = 253
_SYSCTLS = {
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv6/conf/all/accept_ra": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/all/accept_dad": "0",
}
_FORWARDING = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}


@contextlib.contextmanager
def _netlink(netns: Path) -> Iterator[IPRoute]:
    """Netlink in the namespace; opened while inside it, which is much cheaper than pyroute2's NetNS.

    The kernel's refusals become OSError.
    """
    try:
        with inside(netns), IPRoute() as link:
            yield link
    except NetlinkError as error:
        raise OSError(error.code, f"{netns.name}: {os.strerror(error.code)}") from error


def _set(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        with contextlib.suppress(FileNotFoundError):  # IPv6 may be off
            Path("/proc/sys", name).write_text(value)


def _up(link: IPRoute, name: str) -> int:
    index: int = link.link_lookup(ifname=name)[0]
    link.link("set", index=index, state="up")
    return index


def _address(link: IPRoute, index: int, address: Address, length: int | None = None) -> None:
    if length is None:
        length = address.max_prefixlen
    extra = {"flags": IFA_F_NODAD} if address.version == 6 else {}
    link.addr("replace", index=index, address=str(address), prefixlen=length, **extra)


def make_fabric(netns: Path, ranges: Ranges) -> None:
    """The namespace between the nodes."""
    make_netns(netns)
    with _netlink(netns) as link:
        _set(_SYSCTLS | _FORWARDING)
        _up(link, "lo")
        link.link("add", ifname=BRIDGE, kind="bridge")
        bridge = _up(link, BRIDGE)
        _address(link, bridge, ranges.fabric[0], ranges.nodes[0].prefixlen)
        _address(link, bridge, ranges.fabric[1], ranges.nodes[1].prefixlen)


def make_node(netns: Path, fabric: Path, name: str, number: int, ranges: Ranges) -> None:
    """A node's namespace, its uplink, and the way to its pods for all that stand on the fabric."""
    make_netns(netns)
    with _netlink(netns) as link:
        _set(_SYSCTLS | _FORWARDING)
        local = _up(link, "lo")
        for address in ranges.dns:
            _address(link, local, address)
        _add_pair(link, UPLINK, port_link(name), fabric)
        uplink = _up(link, UPLINK)
        _address(link, uplink, ranges.node(number)[0], ranges.nodes[0].prefixlen)
        _address(link, uplink, ranges.node(number)[1], ranges.nodes[1].prefixlen)
        for gateway, own in zip(ranges.fabric, ranges.node(number), strict=True):
            _route(link, "default", gateway.version, gateway=str(gateway), prefsrc=str(own))
    with _netlink(fabric) as link:
        port = _up(link, port_link(name))
        link.link("set", index=port, master=link.link_lookup(ifname=BRIDGE)[0])
    set_pod_routes(fabric, [number], ranges)


def _add_pair(link: IPRoute, name: str, peer: str, peer_netns: Path) -> None:
    """A veth pair: one end here, the other born in the peer's namespace."""
    fd = os.open(peer_netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        link.link("add", ifname=name, kind="veth", peer={"ifname": peer, "net_ns_fd": fd})
    finally:
        os.close(fd)


def _route(link: IPRoute, destination: str, version: int, **how: object) -> None:
    link.route("replace", dst=destination, family={4: 2, 6: 10}[version], **how)


def set_pod_routes(netns: Path, numbers: Iterable[int], ranges: Ranges) -> None:
    """Routes from a namespace on the fabric to the pods of the nodes with these numbers."""
    with _netlink(netns) as link:
        for number in numbers:
            for network, via in zip(ranges.pods(number), ranges.node(number), strict=True):
                _route(link, str(network), via.version, gateway=str(via))


def drop_pod_routes(netns: Path, number: int, ranges: Ranges) -> None:
    """Takes back the routes to a node that is gone."""
    with _netlink(netns) as link:
        for network in ranges.pods(number):
            with _missing_is_fine():
                link.route("del", dst=str(network), family={4: 2, 6: 10}[network.version])


@contextlib.contextmanager
def _missing_is_fine() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in (errno.ENOENT, errno.ESRCH, errno.ENODEV):
            raise


def make_pod(
    netns: Path,
    node: Path,
    uid: str,
    addresses: Sequence[Address],
    node_addresses: Sequence[Address],
    ranges: Ranges,
) -> None:
    """A pod's namespace and its link to the node."""
    make_netns(netns)
    with inside(netns):
        _set(_SYSCTLS)  # before the link is there: its addresses must not wait for duplicate detection
    host = pod_link(uid)
    with _netlink(node) as link:
        _add_pair(link, host, "eth0", netns)
        index = _up(link, host)
        for gateway in ranges.gateway:
            _address(link, index, gateway, 32 if gateway.version == 4 else 64)
    with _netlink(netns) as link:
        _up(link, "lo")
        eth0 = _up(link, "eth0")
        for address in addresses:
            _address(link, eth0, address)
        _pod_routes(link, eth0, addresses, ranges)
    with _netlink(node) as link:
        for address, own in zip(addresses, node_addresses, strict=True):
            # The node's own address as source: probes must come from an address of the node.
            _route(
                link,
                f"{address}/{address.max_prefixlen}",
                address.version,
                oif=index,
                scope=SCOPE_LINK if address.version == 4 else 0,
                prefsrc=str(own),
            )


def _pod_routes(link: IPRoute, eth0: int, addresses: Sequence[Address], ranges: Ranges) -> None:
    v4, v6 = ranges.gateway
    for address in addresses:
        if isinstance(address, IPv4Address):
            _route(link, f"{v4}/32", 4, oif=eth0, scope=SCOPE_LINK)
            _route(link, "default", 4, gateway=str(v4), oif=eth0, prefsrc=str(address))
        elif isinstance(address, IPv6Address):
            _route(link, "default", 6, gateway=str(v6), oif=eth0, prefsrc=str(address))


def remove_pod_link(node: Path, uid: str) -> None:
    """Takes the pod's link away, and with it its routes, whoever still holds the pod's namespace."""
    with contextlib.suppress(FileNotFoundError), _netlink(node) as link, _missing_is_fine():
        for index in link.link_lookup(ifname=pod_link(uid)):
            link.link("del", index=index)


def remove_node_link(fabric: Path, name: str) -> None:
    """Takes the node's uplink away."""
    with contextlib.suppress(FileNotFoundError), _netlink(fabric) as link, _missing_is_fine():
        for index in link.link_lookup(ifname=port_link(name)):
            link.link("del", index=index)
