"""The small mesh that variant `ours` decides over: client and server pod, a service, a policy that lets it through."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hbone.spiffe import SpiffeId
from tests.bench.certificates import CLIENT_ID, SERVER_ID
from tests.bench.namespace import CLIENT, SERVER, VIRTUAL_IP
from tests.bench.testbed import SERVER_PORT
from ztunnel.state.model import (
    Membership,
    Port,
    Service,
    TunnelProtocol,
    VirtualAddress,
    Workload,
)
from ztunnel.state.policy import Action, Clause, Match, Policy, PolicyScope, Rule, StringMatcher
from ztunnel.state.snapshot import Update

SERVICE_PORT = 80
NODE = "node"
_SERVICE = "bench/server.bench.svc.cluster.local"
_BYSTANDERS = 200  # other pods that the look-ups pass by


def _workload(name: str, address: str, identity: str) -> Workload:
    return Workload(
        uid=f"Kubernetes//Pod/bench/{name}",
        name=name,
        namespace="bench",
        identity=SpiffeId.parse(identity),
        addresses=(ip_address(address),),
        tunnel_protocol=TunnelProtocol.HBONE,
        node=NODE,
        canonical_name=name,
        canonical_revision="v1",
        workload_name=name,
    )


def _policy() -> Policy:
    caller = Clause(
        (Match(principals=StringMatcher(exact=frozenset({CLIENT_ID.removeprefix("spiffe://")}))),)
    )
    port = Clause((Match(destination_ports=frozenset({80, SERVER_PORT})),))
    return Policy("bench", "callers", PolicyScope.WORKLOAD_SELECTOR, Action.ALLOW, (Rule((caller, port)),))


def build() -> Update:
    """What xDS would say. The client reaches the server by its service's virtual address."""
    ports = (Port(SERVICE_PORT, SERVER_PORT),)
    client = _workload("client", CLIENT, CLIENT_ID)
    server = replace(
        _workload("server", SERVER, SERVER_ID),
        services=(Membership(_SERVICE, ports),),
        authorization_policies=("bench/callers",),
    )
    others = tuple(
        _workload(f"other-{n}", f"10.78.{n // 250}.{n % 250 + 1}", CLIENT_ID) for n in range(_BYSTANDERS)
    )
    service = Service(
        name="server",
        namespace="bench",
        hostname=_SERVICE.partition("/")[2],
        addresses=(VirtualAddress("", ip_network(f"{VIRTUAL_IP}/32")),),
        ports=ports,
    )
    return Update(workloads=(client, server, *others), services=(service,), policies=(_policy(),))
