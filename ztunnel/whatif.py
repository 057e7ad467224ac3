"""`explain`: would a connection be allowed, which way would it go, and which policy says so.

Asks the same decision functions that decide about real connections, on the current snapshot: the route at
the source, then the authorization at the destination. Pure.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from hbone.connect import SocketAddress, canonical_ip, parse_authority
from hbone.reasons import Reason
from ztunnel.decide.explain import explain
from ztunnel.decide.inbound import decide_inbound
from ztunnel.decide.model import (
    InboundConnection,
    OutboundConnection,
    Passthrough,
    Tunnel,
    Verdict,
    Via,
)
from ztunnel.decide.outbound import decide_outbound
from ztunnel.state.model import IPAddress, Service, TunnelProtocol, Workload
from ztunnel.state.snapshot import Snapshot

__all__ = ["DIRECT", "Explanation", "QuestionError", "Way", "explain_connection", "pod_named"]


DIRECT = "path     direct: plain TCP within this node, without proxy and tunnel (SAME_NODE_ENCRYPTION=never)"


class Way(enum.Enum):
    """Where the kernel sends an enrolled pod's connection: to the proxy, straight to the other pod, or left alone because
    its port is excluded."""

    PROXY = enum.auto()
    DIRECT = enum.auto()
    SPARED = enum.auto()


class QuestionError(Exception):
    """The question names something unknown or is not well-formed; one line."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer: `lines` are for people, in the order things would happen."""

    allowed: bool
    reason: Reason
    lines: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The shape of /explain."""
        return {"allowed": self.allowed, "reason": self.reason.value, "lines": list(self.lines)}


def explain_connection(
    snapshot: Snapshot,
    *,
    source: str,
    target: str,
    network: str,
    cluster_domain: str,
    way: Callable[[str, SocketAddress], Way] = lambda _pod, _asked: Way.PROXY,
) -> Explanation:
    """`source` is NS/POD, `target` HOST:PORT, where HOST is a service, a pod (NS/POD or POD) or an address;
    `way`: what the kernel does with a connection of a pod's to an address."""
    pod = pod_named(snapshot, source)
    destination, line = _destination(snapshot, pod, target, network, cluster_domain)
    lines = [line] if line else []
    peer = SocketAddress(pod.addresses[0] if pod.addresses else destination.ip, 0)
    asked = OutboundConnection(pod, network, peer, destination)
    outbound = decide_outbound(asked, snapshot, 0.0, 0.0)
    taken = way(source, destination)
    captured = pod.tunnel_protocol is TunnelProtocol.HBONE and taken is not Way.SPARED
    if captured:
        lines += explain(outbound, asked)
        if taken is Way.DIRECT:
            lines.append(DIRECT)
    elif taken is Way.SPARED:
        lines.append(f"port {destination.port} is excluded from {source}'s capture: it goes out in the clear")
    else:
        lines.append(f"{source} is not in the mesh: its traffic is not captured and goes out in the clear")
    if captured and not outbound.allowed:
        return Explanation(False, outbound.reason, tuple(lines))
    arriving = _arriving(outbound, asked, pod, captured=captured)
    if arriving is None:
        lines.append("the destination is not a pod of the mesh: nobody authorizes there")
        return Explanation(True, Reason.OK, tuple(lines))
    inbound = decide_inbound(arriving, snapshot)
    lines += explain(inbound, arriving)
    return Explanation(inbound.allowed, inbound.reason, tuple(lines))


def _arriving(
    outbound: Verdict, asked: OutboundConnection, pod: Workload, *, captured: bool
) -> InboundConnection | None:
    """The connection as the destination's agent will see it; None when no agent will."""
    action, local = outbound.action, outbound.ends.destination
    if local is None or local.tunnel_protocol is not TunnelProtocol.HBONE:
        return None
    if isinstance(action, Tunnel) and captured:
        service = outbound.ends.service
        return InboundConnection(
            local=action.hop,
            via=Via.HBONE,
            peer=asked.peer,
            destination=action.destination,
            identity=pod.identity,
            authority=action.authority,
            forwarded_host=service.hostname if service is not None else None,
        )
    if isinstance(action, Tunnel):
        plain = _application(action)
    elif isinstance(action, Passthrough):
        plain = action.destination
    else:
        return None
    return InboundConnection(local=local, via=Via.PLAINTEXT, peer=asked.peer, destination=plain)


def _application(tunnel: Tunnel) -> SocketAddress:
    """Where a client outside the mesh would connect to instead of going through the tunnel."""
    authority = parse_authority(tunnel.authority)
    host = tunnel.destination.ip if isinstance(authority.host, str) else authority.host
    return SocketAddress(host, authority.port)


def pod_named(snapshot: Snapshot, text: str) -> Workload:
    """The pod NAMESPACE/POD; QuestionError if there is none."""
    namespace, slash, name = text.partition("/")
    if not slash or not namespace or not name:
        raise QuestionError(f"from={text!r} is not NAMESPACE/POD")
    for workload in snapshot.workloads():
        if workload.namespace == namespace and workload.name == name:
            return workload
    raise QuestionError(f"no pod {text} is known to this node")


def _destination(
    snapshot: Snapshot, client: Workload, target: str, network: str, domain: str
) -> tuple[SocketAddress, str]:
    """The address that the client would connect to, and a line about the look-up."""
    host, colon, digits = target.rpartition(":")
    if not colon or not digits.isascii() or not digits.isdigit() or not 0 < int(digits[:6]) < 65536:
        raise QuestionError(f"to={target!r} is not HOST:PORT")
    port = int(digits)
    try:
        return SocketAddress(canonical_ip(ip_address(host.strip("[]"))), port), ""
    except ValueError:
        pass
    for name in _names(host.lower().rstrip("."), client.namespace, domain):
        service = snapshot.service_named(name, client.namespace)
        if service is not None:
            return _service_address(snapshot, service, host, port, network)
    workload = _workload_named(snapshot, client, host)
    if workload is None or not workload.addresses:
        raise QuestionError(f"no service or pod {host} is known to this node")
    address = SocketAddress(workload.addresses[0], port)
    return address, f"{host} is pod {workload.namespace}/{workload.name} at {address.ip}"


def _names(host: str, namespace: str, domain: str) -> Iterator[str]:
    """The names a resolver in the client's pod would try."""
    yield host
    yield f"{host}.{namespace}.svc.{domain}"
    yield f"{host}.svc.{domain}"
    yield f"{host}.{domain}"


def _service_address(
    snapshot: Snapshot, service: Service, host: str, port: int, network: str
) -> tuple[SocketAddress, str]:
    mine = [vip for vip in service.addresses if vip.network == network and vip.is_host]
    if mine:
        # Resolvers prefer whichever family works; IPv4 first is what most pods end up with.
        ip = min((vip.ip for vip in mine), key=lambda ip: ip.version)
        return SocketAddress(ip, port), f"{host} is service {service.key} at {ip}"
    found: list[IPAddress] = [ip for pod in snapshot.endpoints(service.key) for ip in pod.addresses]
    if not found:
        raise QuestionError(f"service {service.key} has neither an address nor endpoints")
    ip = min(found, key=lambda ip: (ip.version, int(ip)))
    return SocketAddress(ip, port), f"{host} is headless service {service.key}; one endpoint is {ip}"


def _workload_named(snapshot: Snapshot, client: Workload, host: str) -> Workload | None:
    namespace, slash, name = host.partition("/")
    if not slash:
        namespace, name = client.namespace, host
    candidates = {(namespace, name), tuple(reversed(host.split(".", 1)))}
    return next((w for w in snapshot.workloads() if (w.namespace, w.name) in candidates), None)
