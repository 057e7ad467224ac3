"""Short ways to write down workloads, services and policies in tests, as protobuf and as own values."""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from hbone.spiffe import SpiffeId
from istiodlite.api import authorization_pb2, workload_pb2
from ztunnel.state import convert
from ztunnel.state.model import (
    GatewayAddress,
    LoadBalancing,
    Membership,
    NamespacedHostname,
    NetworkAddress,
    Port,
    Service,
    TunnelProtocol,
    VirtualAddress,
    Workload,
)
from ztunnel.state.policy import Policy
from ztunnel.state.snapshot import Snapshot, Update

NODE = "node-1"


def pod_uid(namespace: str, name: str) -> str:
    return f"Kubernetes//Pod/{namespace}/{name}"


def workload(
    name: str,
    *ips: str,
    namespace: str = "ns",
    account: str = "default",
    services: Mapping[str, Mapping[int, int]] | None = None,
    hbone: bool = True,
    **fields: Any,
) -> Workload:
    """A pod. `services`: "ns/host" to its own port mapping."""
    return Workload(
        uid=fields.pop("uid", pod_uid(namespace, name)),
        name=name,
        namespace=namespace,
        identity=SpiffeId("cluster.local", namespace, account),
        addresses=tuple(ip_address(ip) for ip in ips),
        workload_name=fields.pop("workload_name", name),
        tunnel_protocol=TunnelProtocol.HBONE if hbone else TunnelProtocol.NONE,
        services=tuple(
            Membership(key, tuple(Port(*pair) for pair in ports.items()))
            for key, ports in sorted((services or {}).items())
        ),
        **fields,
    )


def service(
    name: str,
    *vips: str,
    namespace: str = "ns",
    ports: Mapping[int, int] | None = None,
    network: str = "",
    **fields: Any,
) -> Service:
    """A service `name.namespace.svc`; vips are addresses or CIDR blocks."""
    return Service(
        name=name,
        namespace=namespace,
        hostname=fields.pop("hostname", f"{name}.{namespace}.svc"),
        addresses=tuple(VirtualAddress(network, ip_network(vip)) for vip in vips),
        ports=tuple(Port(*pair) for pair in (ports if ports is not None else {80: 8080}).items()),
        load_balancing=fields.pop("load_balancing", LoadBalancing()),
        **fields,
    )


def by_address(ip: str, network: str = "", port: int = 15008) -> GatewayAddress:
    return GatewayAddress(NetworkAddress(network, ip_address(ip)), port)


def by_name(hostname: str, namespace: str = "ns", port: int = 15008) -> GatewayAddress:
    return GatewayAddress(NamespacedHostname(namespace, hostname), port)


def strings(*texts: str) -> list[authorization_pb2.StringMatch]:
    """As istiod writes them: "*" is presence, a leading or trailing * a suffix or prefix."""
    return [_string(text) for text in texts]


def _string(text: str) -> authorization_pb2.StringMatch:
    message = authorization_pb2.StringMatch()
    if text == "*":
        message.presence.SetInParent()
    elif text.startswith("*"):
        message.suffix = text[1:]
    elif text.endswith("*"):
        message.prefix = text[:-1]
    else:
        message.exact = text
    return message


def cidrs(*texts: str) -> list[authorization_pb2.Address]:
    networks = [ip_network(text, strict=False) for text in texts]
    return [
        authorization_pb2.Address(address=network.network_address.packed, length=network.prefixlen)
        for network in networks
    ]


def match(**fields: Any) -> authorization_pb2.Match:
    """Fields by their proto names; strings and CIDRs as text."""
    message = authorization_pb2.Match()
    for name, values in fields.items():
        getattr(message, name).extend(_wire_values(name, values))
    return message


def _wire_values(field: str, values: Iterable[Any]) -> Iterable[Any]:
    if field.endswith(("namespaces", "principals")):
        return strings(*values)
    if field.endswith("_ips"):
        return cidrs(*values)
    if field.endswith("service_accounts"):
        return [
            authorization_pb2.ServiceAccountMatch(namespace=namespace, serviceAccount=account)
            for namespace, account in values
        ]
    return values


Rules = Sequence[Sequence[Iterable[authorization_pb2.Match]]]


def authorization(
    name: str,
    rules: Rules = (),
    *,
    namespace: str = "ns",
    scope: str = "NAMESPACE",
    action: str = "ALLOW",
    dry_run: bool = False,
) -> authorization_pb2.Authorization:
    """`rules`: rule > clause > match, as in Istio's groups > rules > matches."""
    return authorization_pb2.Authorization(
        name=name,
        namespace=namespace,
        scope=authorization_pb2.Scope.Value(scope),
        action=authorization_pb2.Action.Value(action),
        dry_run=dry_run,
        groups=[
            authorization_pb2.Group(rules=[authorization_pb2.Rules(matches=clause) for clause in rule])
            for rule in rules
        ],
    )


def policy(name: str, rules: Rules = (), **fields: Any) -> Policy:
    return convert.policy(authorization(name, rules, **fields))


def snapshot(*resources: Workload | Service | Policy, node: str = NODE) -> Snapshot:
    return Snapshot.empty(node).apply(update(*resources))[0]


def update(*resources: Workload | Service | Policy) -> Update:
    return Update(
        workloads=tuple(r for r in resources if isinstance(r, Workload)),
        services=tuple(r for r in resources if isinstance(r, Service)),
        policies=tuple(r for r in resources if isinstance(r, Policy)),
    )


def wire_workload(**fields: Any) -> workload_pb2.Workload:
    return workload_pb2.Workload(**{"uid": "c//Pod/ns/a", "name": "a", "namespace": "ns", **fields})


def wire_service(**fields: Any) -> workload_pb2.Service:
    return workload_pb2.Service(**{"name": "s", "namespace": "ns", "hostname": "s.ns.svc", **fields})
