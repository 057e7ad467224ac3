"""Services and service entries as services."""

import ipaddress
from collections.abc import Iterator

from istiodlite.api import workload_pb2
from istiodlite.objects import EntryPort, Meta, Service, ServiceEntry, ServicePort
from istiodlite.registry import config as names
from istiodlite.registry.membership import owned_hosts
from istiodlite.registry.resource import Resource, packed, service_resource
from istiodlite.registry.visibility import Visibility
from istiodlite.registry.waypoints import SERVICE, Attachment, attach
from istiodlite.registry.world import View

_LB = workload_pb2.LoadBalancing
_CLOSE = (_LB.NETWORK, _LB.REGION, _LB.ZONE)
_SPEC_DISTRIBUTIONS = ("PreferClose", "PreferSameZone", "PreferSameNode")
_DISTRIBUTIONS = {
    "preferclose": _CLOSE,
    "prefersamezone": _CLOSE,
    "prefersamenode": (*_CLOSE, _LB.SUBZONE, _LB.NODE),
}
_PROTOCOLS = {
    "http": workload_pb2.HTTP11,
    "http2": workload_pb2.HTTP2,
    "grpc": workload_pb2.GRPC,
    "https": workload_pb2.TLS,
    "tls": workload_pb2.TLS,
    "tcp": workload_pb2.TCP,
}
# Values of appProtocol that Kubernetes defines itself.
_KUBERNETES_PROTOCOLS = {
    "kubernetes.io/h2c": workload_pb2.HTTP2,
    "kubernetes.io/ws": workload_pb2.HTTP11,
    "kubernetes.io/wss": workload_pb2.TLS,
}
# Known to Istio, but not to agents.
_OTHER_PROTOCOLS = ("udp", "grpc-web", "http_proxy", "mongo", "redis", "mysql")
# SMTP, DNS, MySQL, MongoDB: where nothing names a protocol, the client of these waits for the server to speak.
_SERVER_FIRST = (25, 53, 3306, 27017)
_FAMILIES = {
    (): workload_pb2.AUTOMATIC,
    ("IPv4",): workload_pb2.IPV4_ONLY,
    ("IPv6",): workload_pb2.IPV6_ONLY,
    ("IPv4", "IPv6"): workload_pb2.DUAL,
}


# What Go's strconv.ParseBool takes for true.
_TRUE = ("1", "t", "T", "true", "TRUE", "True")


def service(view: View, one: Service) -> tuple[Resource | None, Attachment]:
    """None for ExternalName: its clients resolve the CNAME themselves."""
    if one.type == "ExternalName":
        return None, Attachment()
    meta = one.meta
    network = view.network()
    out = workload_pb2.Service(
        name=meta.name,
        namespace=meta.namespace,
        hostname=view.config.service_hostname(meta.namespace, meta.name),
        addresses=[
            workload_pb2.NetworkAddress(network=network, address=packed(ip)) for ip in one.cluster_ips
        ],
        ports=[_port(port) for port in one.ports],
        ip_families=_FAMILIES[tuple(sorted(set(one.ip_families)))],
        canonical=True,
    )
    balancing = _load_balancing(view, one)
    if balancing is not None:
        out.load_balancing.CopyFrom(balancing)
    attachment = _attach(view, meta, out)
    return service_resource(out), attachment


def _attach(view: View, meta: Meta, out: workload_pb2.Service, *, hidden: bool = False) -> Attachment:
    attachment = attach(view, meta, meta.labels, SERVICE, hidden=hidden)
    if attachment.address is not None:
        out.waypoint.CopyFrom(attachment.address)
        out.ingress_use_waypoint = _ingress_use_waypoint(view, meta)
    out.weighted_waypoints.extend(attachment.weighted)
    return attachment


def _ingress_use_waypoint(view: View, meta: Meta) -> bool:
    label = meta.labels.get(names.INGRESS_USE_WAYPOINT)
    if label is None:
        label = view.namespace_labels(meta.namespace).get(names.INGRESS_USE_WAYPOINT)
    return label in _TRUE


def _port(port: ServicePort) -> workload_pb2.Port:
    """target_port 0: a named port, which differs per endpoint."""
    target = port.port if port.target is None else port.target
    return workload_pb2.Port(
        service_port=port.port,
        target_port=0 if isinstance(target, str) else target,
        app_protocol=_app_protocol(port),
    )


def _app_protocol(port: ServicePort) -> workload_pb2.AppProtocol:
    """appProtocol or, without it, the port's name up to the first "-"; gRPC-Web is none that agents know."""
    if port.protocol == "UDP":
        return workload_pb2.UNKNOWN
    if port.app_protocol in _KUBERNETES_PROTOCOLS:
        return _KUBERNETES_PROTOCOLS[port.app_protocol]
    text = (port.app_protocol or port.name).lower()
    word = "grpc-web" if text.startswith("grpc-web") else text.partition("-")[0]
    if word in _PROTOCOLS or word in _OTHER_PROTOCOLS:
        return _PROTOCOLS.get(word, workload_pb2.UNKNOWN)
    return workload_pb2.TCP if port.port in _SERVER_FIRST else workload_pb2.UNKNOWN


def _load_balancing(view: View, one: Service) -> workload_pb2.LoadBalancing | None:
    # Every service gets messages of its own: a shared preset must not carry one service's health policy.
    if one.internal_traffic_policy == "Local":
        out: workload_pb2.LoadBalancing | None = _LB(routing_preference=[_LB.NODE], mode=_LB.STRICT)
    else:
        out = _distribution(view, one.meta, one.traffic_distribution)
    if one.publish_not_ready:
        out = _LB() if out is None else out
        out.health_policy = _LB.ALLOW_ALL
    return out


def _distribution(view: View, meta: Meta, spec: str) -> workload_pb2.LoadBalancing | None:
    """First of a known spec, the object's annotation, the namespace's annotation; those in any case."""
    wanted = (
        (spec.lower() if spec in _SPEC_DISTRIBUTIONS else "")
        or meta.annotations.get(names.TRAFFIC_DISTRIBUTION, "").lower()
        or view.namespace_annotations(meta.namespace).get(names.TRAFFIC_DISTRIBUTION, "").lower()
    )
    scopes = _DISTRIBUTIONS.get(wanted)
    return None if scopes is None else _LB(routing_preference=scopes, mode=_LB.FAILOVER)


def entry_services(view: View, entry: ServiceEntry) -> Iterator[tuple[Resource, Attachment]]:
    """One service for each host that this entry defines."""
    for host in owned_hosts(view, entry):
        yield _entry_service(view, entry, host)


def _entry_service(view: View, entry: ServiceEntry, host: str) -> tuple[Resource, Attachment]:
    meta = entry.meta
    out = workload_pb2.Service(
        name=meta.name,
        namespace=meta.namespace,
        hostname=host,
        addresses=_entry_addresses(view, entry, host),
        ports=[_entry_port(port) for port in entry.ports],
        subject_alt_names=entry.sans,
        canonical=_is_canonical(view, entry, host),
    )
    if entry.resolution == "NONE":
        # The client's own destination is kept, so there is no endpoint whose health could count.
        balancing: workload_pb2.LoadBalancing | None = _LB(mode=_LB.PASSTHROUGH, health_policy=_LB.ALLOW_ALL)
    else:
        balancing = _distribution(view, meta, "")
    if balancing is not None:
        out.load_balancing.CopyFrom(balancing)
    hidden = view.entry_visibility(meta.namespace) is Visibility.NAMESPACE
    if hidden:
        out.visibility = workload_pb2.NAMESPACE
    attachment = _attach(view, meta, out, hidden=hidden)
    return service_resource(out), attachment


def _is_canonical(view: View, entry: ServiceEntry, host: str) -> bool:
    """The entry speaks for the host mesh-wide: no Service has it and no older entry that the mesh sees."""
    claimants = view.claimants(host)
    if any(isinstance(one, Service) and one.type != "ExternalName" for one in claimants):
        return False
    entries = [
        one
        for one in claimants
        if isinstance(one, ServiceEntry) and view.entry_visibility(one.meta.namespace) is Visibility.PUBLIC
    ]
    return entry in entries and min(entries, key=lambda one: one.meta.age_order) is entry


def _entry_addresses(view: View, entry: ServiceEntry, host: str) -> list[workload_pb2.NetworkAddress]:
    network = view.network()
    texts = entry.addresses or view.allocated(entry, host)
    out = []
    for text in texts:
        block = ipaddress.ip_network(text, strict=False)
        address = workload_pb2.NetworkAddress(network=network, address=block.network_address.packed)
        if block.prefixlen != block.max_prefixlen:
            address.length = block.prefixlen
        out.append(address)
    return out


def _entry_port(port: EntryPort) -> workload_pb2.Port:
    return workload_pb2.Port(
        service_port=port.number,
        target_port=port.target or port.number,
        app_protocol=_PROTOCOLS.get(port.protocol.lower(), workload_pb2.UNKNOWN),
    )
