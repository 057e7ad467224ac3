"""ClusterIPs as an nftables ruleset: kube-proxy's part, for traffic that no agent captures. Pure text.

One table per node, replaced as a whole by one `nft -f -` (atomic: no connection ever meets half a
ruleset). A verdict map leads from (address, protocol, port) to a chain per service port, which picks a
ready endpoint at random. What is left with a ClusterIP as destination after that is refused at once.
"""

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from daemonset.local.addresses import Network
from daemonset.local.endpoints import Backend, PortBackends
from daemonset.local.names import digest

TABLE = "ambientlite"


def ruleset(
    ports: Sequence[PortBackends],
    node: str,
    refuse: tuple[Sequence[Network], Sequence[Network]],
) -> str:
    """The node's ruleset. `refuse`: ranges of ClusterIPs (v4, v6); unserved addresses there are rejected."""
    served = [(p, local) for p in ports if (local := _usable(p, node))]
    lines = [f"add table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    for port, behind in served:
        lines += _chain(port, behind)
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        lines += _map(version, kind, [p for p, _ in served if ip_address(p.address).version == version])
        lines += _hairpin_set(version, kind, served)
        lines += _refuse_set(version, kind, refuse[0] if version == 4 else refuse[1])
    lines += _base_chains()
    lines.append("}")
    return "\n".join(lines) + "\n"


def _usable(port: PortBackends, node: str) -> tuple[Backend, ...]:
    return tuple(b for b in port.backends if not port.node_local or b.node == node)


def _chain_name(port: PortBackends) -> str:
    return f"svc-{digest(f'{port.service}{port.address}{port.port.protocol}{port.port.number}', 16)}"


def _chain(port: PortBackends, behind: Sequence[Backend]) -> list[str]:
    protocol = port.port.protocol.lower()
    family = "ip" if ip_address(port.address).version == 4 else "ip6"
    choices = ", ".join(f"{i} : {b.address} . {b.port}" for i, b in enumerate(behind))
    return [
        f"  chain {_chain_name(port)} {{",
        f"    meta l4proto {protocol} dnat {family} to numgen random mod {len(behind)} map {{ {choices} }}"
        if len(behind) > 1
        else f"    meta l4proto {protocol} dnat {family} to {_socket(behind[0])}",
        "  }",
    ]


def _socket(backend: Backend) -> str:
    return (
        f"[{backend.address}]:{backend.port}"
        if ":" in backend.address
        else f"{backend.address}:{backend.port}"
    )


def _elements(elements: Iterable[str]) -> list[str]:
    joined = ", ".join(elements)
    return [f"    elements = {{ {joined} }}"] if joined else []


def _map(version: int, kind: str, ports: Iterable[PortBackends]) -> list[str]:
    return [
        f"  map services{version} {{",
        f"    type {kind} . inet_proto . inet_service : verdict",
        *_elements(
            f"{p.address} . {p.port.protocol.lower()} . {p.port.number} : goto {_chain_name(p)}"
            for p in ports
        ),
        "  }",
    ]


def _hairpin_set(
    version: int, kind: str, served: Iterable[tuple[PortBackends, Sequence[Backend]]]
) -> list[str]:
    """A pod that reaches itself through its own service: the reply has to come back through the node."""
    addresses = sorted(
        {b.address for _, behind in served for b in behind if ip_address(b.address).version == version}
    )
    return [
        f"  set hairpin{version} {{",
        f"    type {kind} . {kind}",
        *_elements(f"{a} . {a}" for a in addresses),
        "  }",
    ]


def _refuse_set(version: int, kind: str, ranges: Iterable[Network]) -> list[str]:
    return [
        f"  set refuse{version} {{",
        f"    type {kind}",
        "    flags interval",
        "    auto-merge",
        *_elements(str(r) for r in ranges),
        "  }",
    ]


def _base_chains() -> list[str]:
    dispatch = [
        "    ip daddr . meta l4proto . th dport vmap @services4",
        "    ip6 daddr . meta l4proto . th dport vmap @services6",
    ]
    refuse = [
        f"    {family} daddr @refuse{version} {match}reject with {how}"
        for family, version in (("ip", 4), ("ip6", 6))
        for match, how in (("meta l4proto tcp ", "tcp reset"), ("", "icmpx type port-unreachable"))
    ]
    return [
        "  chain prerouting {",
        "    type nat hook prerouting priority dstnat; policy accept;",
        *dispatch,
        "  }",
        "  chain output {",
        "    type nat hook output priority -100; policy accept;",
        *dispatch,
        "  }",
        "  chain postrouting {",
        "    type nat hook postrouting priority srcnat; policy accept;",
        "    ct status dnat ip saddr . ip daddr @hairpin4 masquerade",
        "    ct status dnat ip6 saddr . ip6 daddr @hairpin6 masquerade",
        "  }",
        "  chain forward {",
        "    type filter hook forward priority filter; policy accept;",
        *refuse,
        "  }",
        "  chain refuse {",
        "    type filter hook output priority filter; policy accept;",
        '    oifname "lo" accept',
        *refuse,
        "  }",
    ]
