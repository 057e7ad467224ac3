"""What the agent holds, as the JSON that Istio's `istioctl ztunnel-config` reads. Private keys are never in it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import fields as dataclass_fields
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ztunnel.config import Config
from ztunnel.decide.model import Direction, InboundConnection
from ztunnel.enrol.pods import Pods
from ztunnel.flows.registry import Flow, Registry
from ztunnel.identity.manager import Held, IdentityManager
from ztunnel.state.model import (
    GatewayAddress,
    IPFamilies,
    LoadBalancing,
    LoadBalancingMode,
    Locality,
    Port,
    Service,
    TunnelProtocol,
    Workload,
)
from ztunnel.state.policy import Match, Policy, StringMatcher
from ztunnel.state.snapshot import Snapshot

__all__ = ["config_dump", "connections"]

# Where Istio's words are not ours in capitals.
_FAMILIES = {IPFamilies.IPV4_ONLY: "IPv4", IPFamilies.IPV6_ONLY: "IPv6", IPFamilies.DUAL: "Dual"}
_MODES = {LoadBalancingMode.UNSPECIFIED: "Standard"}


def config_dump(
    *,
    config: Config,
    snapshot: Snapshot,
    identities: IdentityManager,
    pods: Pods,
    flows: Registry,
    version: str,
) -> dict[str, Any]:
    """Everything, with addresses as `network/ip` and names as `namespace/host`."""
    return {
        "workloads": [_workload(w) for w in sorted(snapshot.workloads(), key=lambda w: w.uid)],
        "services": [_service(s, snapshot) for s in sorted(snapshot.services(), key=lambda s: s.key)],
        "policies": [_policy(p) for p in sorted(snapshot.policies(), key=lambda p: p.key)],
        "stagedServices": {},
        "staticConfig": {"workloads": [], "services": [], "policies": []},
        "version": {"version": version, "snapshot": snapshot.version},
        "config": config.shown(),
        "certificates": [_certificate(held) for held in identities.held()],
        "workloadState": dict(_states(pods, flows)),
    }


def _workload(workload: Workload) -> dict[str, Any]:
    shown = {
        "uid": workload.uid,
        "workloadIps": [str(ip) for ip in workload.addresses],
        "hostname": workload.hostname,
        "waypoint": _gateway(workload.waypoint),
        "networkGateway": _gateway(workload.network_gateway),
        "protocol": "HBONE" if workload.tunnel_protocol is TunnelProtocol.HBONE else "TCP",
        "name": workload.name,
        "namespace": workload.namespace,
        "trustDomain": workload.trust_domain,
        "serviceAccount": workload.service_account,
        "network": workload.network,
        "workloadName": workload.workload_name,
        "workloadType": workload.workload_type.value,
        "canonicalName": workload.canonical_name,
        "canonicalRevision": workload.canonical_revision,
        "clusterId": workload.cluster_id,
        "node": workload.node,
        "nativeTunnel": workload.native_tunnel or None,
        "applicationTunnel": _application_tunnel(workload),
        "authorizationPolicies": list(workload.authorization_policies) or None,
        "status": "Healthy" if workload.healthy else "Unhealthy",
        "networkMode": _title(workload.network_mode),
        "capacity": workload.capacity,
        "services": [membership.service for membership in workload.services] or None,
        "locality": _locality(workload.locality),
    }
    return {name: value for name, value in shown.items() if value not in (None, "")}


def _title(word: str) -> str:
    """`HOST_NETWORK` as `HostNetwork`."""
    return word.title().replace("_", "")


def _locality(locality: Locality) -> dict[str, str] | None:
    if locality == Locality():
        return None
    return {"region": locality.region, "zone": locality.zone, "subzone": locality.subzone}


def _application_tunnel(workload: Workload) -> dict[str, Any] | None:
    tunnel = workload.application_tunnel
    return {"protocol": tunnel.protocol.value, "port": tunnel.port or None} if tunnel is not None else None


def _gateway(gateway: GatewayAddress | None) -> dict[str, Any] | None:
    if gateway is None:
        return None
    return {"destination": str(gateway.destination), "hboneMtlsPort": gateway.hbone_mtls_port}


def _ports(ports: Iterable[Port]) -> dict[str, int]:
    return {str(port.service_port): port.target_port for port in ports}


def _service(service: Service, snapshot: Snapshot) -> dict[str, Any]:
    endpoints = {
        workload.uid: {
            "workloadUid": workload.uid,
            "port": _ports(membership.ports),
            "status": "Healthy" if workload.healthy else "Unhealthy",
        }
        for workload in snapshot.endpoints(service.key)
        if (membership := workload.membership(service.key)) is not None
    }
    shown = {
        "name": service.name,
        "namespace": service.namespace,
        "hostname": service.hostname,
        "vips": [f"{vip.network}/{vip.ip}" for vip in service.addresses if vip.is_host],
        "cidrVips": [
            {"network": vip.network, "cidr": str(vip.block)} for vip in service.addresses if not vip.is_host
        ]
        or None,
        "ports": _ports(service.ports),
        "endpoints": endpoints,
        "subjectAltNames": [str(name) for name in service.subject_alt_names],
        "waypoint": _gateway(service.waypoint),
        "weightedWaypoints": [
            {"destination": _gateway(one.destination), "weight": one.weight}
            for one in service.weighted_waypoints
        ]
        or None,
        "loadBalancer": _load_balancer(service.load_balancing),
        "ipFamilies": _FAMILIES.get(service.ip_families),
        "canonical": service.canonical,
        "visibility": _title(service.visibility),
    }
    return {name: value for name, value in shown.items() if value is not None}


def _load_balancer(balancing: LoadBalancing) -> dict[str, Any] | None:
    if balancing == LoadBalancing():
        return None
    return {
        "routingPreferences": [_title(scope) for scope in balancing.routing_preference],
        "mode": _MODES.get(balancing.mode, _title(balancing.mode)),
        "healthPolicy": _title(balancing.health_policy),
    }


def _policy(policy: Policy) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": policy.name,
        "namespace": policy.namespace,
        "scope": policy.scope.value.title().replace("_", ""),
        "action": policy.action.value.title(),
        "rules": [
            [[_match(match) for match in clause.matches] for clause in rule.clauses] for rule in policy.rules
        ],
        "dryRun": policy.dry_run,
    }
    if policy.unusable:
        shown["unusable"] = policy.unusable
    return shown


def _match(match: Match) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for field in dataclass_fields(match):
        value = getattr(match, field.name)
        if not value or not field.init:
            continue
        head, *rest = field.name.split("_")
        shown[head + "".join(word.title() for word in rest)] = (
            _strings(value)
            if isinstance(value, StringMatcher)
            else [_value(item) for item in sorted(value, key=_order)]
        )
    return shown


def _order(item: Any) -> tuple[int, str]:
    return (item, "") if isinstance(item, int) else (0, str(item))


def _value(item: Any) -> Any:
    if isinstance(item, tuple):
        return {"namespace": item[0], "serviceAccount": item[1]}
    return item if isinstance(item, int) else str(item)


def _strings(matcher: StringMatcher) -> list[Any]:
    shown: list[Any] = [{"Exact": text} for text in sorted(matcher.exact)]
    shown += [{"Prefix": text} for text in matcher.prefixes]
    shown += [{"Suffix": text} for text in matcher.suffixes]
    return [*shown, {"Presence": []}] if matcher.presence else shown


def _certificate(held: Held) -> dict[str, Any]:
    svid = held.svid
    return {
        "identity": str(held.identity),
        "state": held.state,
        "certChain": _certificates(svid.chain_pem) if svid is not None else [],
        "rootCerts": _certificates(svid.roots_pem) if svid is not None else [],
    }


def _certificates(pem: bytes) -> list[dict[str, Any]]:
    return [
        {
            "pem": base64.b64encode(cert.public_bytes(serialization.Encoding.PEM)).decode(),
            "serialNumber": str(cert.serial_number),
            "validFrom": _time(cert.not_valid_before_utc),
            "expirationTime": _time(cert.not_valid_after_utc),
        }
        for cert in x509.load_pem_x509_certificates(pem)
    ]


def _time(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _states(pods: Pods, flows: Registry) -> Iterator[tuple[str, dict[str, Any]]]:
    by_pod: dict[str, list[Flow]] = {}
    for flow in flows:
        by_pod.setdefault(flow.pod, []).append(flow)
    for pod in pods:
        live = by_pod.get(f"{pod.namespace}/{pod.name}", [])
        yield pod.uid, {"state": "Up", "connections": _connections(live), "info": _info(pod)}
    for add in pods.pending:
        yield add.uid, {"state": "Pending", "info": _info(add)}


def _info(pod: Any) -> dict[str, str]:
    return {"name": pod.name, "namespace": pod.namespace, "serviceAccount": pod.service_account}


def _connections(live: Iterable[Flow]) -> dict[str, list[dict[str, str]]]:
    shown: dict[str, list[dict[str, str]]] = {"inbound": [], "outbound": []}
    for flow in live:
        shown[flow.direction.value].append(_connection(flow))
    return shown


def _connection(flow: Flow) -> dict[str, str]:
    action = flow.verdict.action
    actual = getattr(action, "destination", flow.destination)
    return {
        "src": str(flow.peer),
        "originalDst": str(flow.destination),
        "actualDst": str(actual),
        "protocol": "HBONE" if flow.verdict.ends.mutual_tls else "TCP",
    }


def connections(flows: Registry, now: float) -> list[dict[str, Any]]:
    """Live connections, one object each, for /connections."""
    return [_live(flow, now) for flow in flows]


def _live(flow: Flow, now: float) -> dict[str, Any]:
    ends = flow.verdict.ends
    connection = flow.connection
    authority = (
        connection.authority
        if isinstance(connection, InboundConnection)
        else getattr(flow.verdict.action, "authority", None)
    )
    return {
        "pod": flow.pod,
        "direction": flow.direction.value,
        **_connection(flow),
        "authority": authority,
        "source": _end(ends.source),
        "destination": _end(ends.destination),
        "service": ends.service.hostname if ends.service else None,
        "sourceIdentity": str(ends.source_identity) if ends.source_identity else None,
        "route": flow.verdict.route.value,
        "established": flow.established,
        "bytesSent": flow.from_client if flow.direction is Direction.OUTBOUND else flow.to_client,
        "bytesReceived": flow.to_client if flow.direction is Direction.OUTBOUND else flow.from_client,
        "seconds": round(now - flow.started, 3),
    }


def _end(workload: Workload | None) -> str | None:
    return f"{workload.namespace}/{workload.name}" if workload is not None else None
