"""Pods, workload entries, inline endpoints and endpoint slices as workloads."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from istiodlite.api import workload_pb2
from istiodlite.objects import Endpoint, EndpointSlice, Meta, Pod, ServiceEntry, WorkloadEntry
from istiodlite.registry import config as names
from istiodlite.registry.applied import applied_policies
from istiodlite.registry.membership import (
    PortMap,
    entry_hosts,
    listing_services,
    named_ports,
    owned_hosts,
    pod_services,
    service_name,
    workload_entry_services,
)
from istiodlite.registry.names import canonical_name, canonical_revision, workload_name
from istiodlite.registry.networks import network_gateway
from istiodlite.registry.resource import (
    Resource,
    address_resource,
    packed,
    service_names,
    workload_resource,
)
from istiodlite.registry.waypoints import WORKLOAD, Attachment, application_tunnel, attach, is_ip
from istiodlite.registry.world import View

_NO_ADDRESS_RESOLUTIONS = ("DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS")


def _tunnel(
    labels: Mapping[str, str], annotations: Mapping[str, str]
) -> tuple[workload_pb2.TunnelProtocol, bool]:
    """(protocol, the workload itself speaks HBONE)."""
    native = "http" in (part.strip() for part in labels.get(names.TUNNEL, "").split(","))
    if annotations.get(names.REDIRECTION) == "enabled":
        return workload_pb2.HBONE, native
    return (workload_pb2.HBONE, True) if native else (workload_pb2.NONE, False)


def _common(view: View, meta: Meta, labels: Mapping[str, str], workload: str) -> workload_pb2.Workload:
    protocol, native = _tunnel(labels, meta.annotations)
    return workload_pb2.Workload(
        namespace=meta.namespace,
        trust_domain=view.config.wire_trust_domain,
        cluster_id=view.config.cluster_id,
        tunnel_protocol=protocol,
        native_tunnel=native,
        workload_type=workload_pb2.POD,
        workload_name=workload,
        canonical_name=canonical_name(labels, workload),
        canonical_revision=canonical_revision(labels),
        authorization_policies=applied_policies(view, meta.namespace, labels),
    )


def _set_services(workload: workload_pb2.Workload, services: PortMap) -> None:
    for name, ports in services.items():
        workload.services[name].CopyFrom(ports)


def _set_network(view: View, workload: workload_pb2.Workload, network: str) -> None:
    workload.network = network
    if network and (gateway := network_gateway(view, network)) is not None:
        workload.network_gateway.CopyFrom(gateway)


@dataclass(frozen=True, slots=True)
class _Replicas:
    """What pods made from one template have in common: `address` is encoded and lacks what they differ in."""

    address: bytes
    services: tuple[str, ...]
    attachment: Attachment


def _replicas(
    view: View,
    namespace: str,
    account: str,
    workload_name: str,
    annotations: tuple[tuple[str, str], ...],
    named_ports: tuple[tuple[str, int], ...],
    labels: tuple[tuple[str, str], ...],
) -> _Replicas:
    meta = Meta("", namespace, labels=dict(labels), annotations=dict(annotations))
    workload = _common(view, meta, meta.labels, workload_name)
    _set_network(view, workload, view.network())
    workload.service_account = account
    _set_services(workload, pod_services(view, namespace, meta.labels, dict(named_ports)))
    attachment = _set_waypoint(view, workload, meta, meta.labels)
    address = workload_pb2.Address(workload=workload).SerializeToString()
    return _Replicas(address, service_names(workload), attachment)


def _node_locality(view: View, node: str) -> bytes:
    """Of the pods on a node, encoded; empty if its labels tell none."""
    labels = view.node_labels(node)
    return workload_pb2.Locality(
        region=labels.get("topology.kubernetes.io/region", ""),
        zone=labels.get("topology.kubernetes.io/zone", ""),
        subzone=labels.get("topology.istio.io/subzone", ""),
    ).SerializeToString()


def pod_workload(view: View, pod: Pod) -> tuple[Resource | None, Attachment]:
    """None for pods that are over or have no address yet."""
    if pod.phase in ("Succeeded", "Failed") or not pod.addresses:
        return None, Attachment()
    meta, named = pod.meta, named_ports(pod.containers)
    read = meta.annotations.get(names.REDIRECTION)
    replicas = view.shared(
        _replicas,
        meta.namespace,
        pod.service_account,
        workload_name(pod),
        () if read is None else ((names.REDIRECTION, read),),
        tuple(named.items()),
        tuple(meta.labels.items()),
    )
    address = workload_pb2.Address.FromString(replicas.address)
    workload = address.workload
    workload.uid = f"{view.config.cluster_id}//Pod/{meta.namespace}/{meta.name}"
    workload.name = meta.name
    workload.addresses.extend(map(packed, pod.addresses))
    workload.node = pod.node
    if pod.host_network:
        workload.network_mode = workload_pb2.HOST_NETWORK
    if not pod.ready or meta.deleting:
        workload.status = workload_pb2.UNHEALTHY
    if locality := view.shared(_node_locality, pod.node):
        workload.locality.MergeFromString(locality)
    services, listed = replicas.services, listing_services(view, pod, named)
    if listed:
        _set_services(workload, listed)
        services = service_names(workload)
    return address_resource(address, pod.addresses, services), replicas.attachment


def _locality(text: str) -> workload_pb2.Locality | None:
    """`region/zone/subzone`; further parts are nobody's."""
    region, zone, subzone = (*text.split("/"), "", "")[:3]
    if region or zone or subzone:
        return workload_pb2.Locality(region=region, zone=zone, subzone=subzone)
    return None


def _entry_workload(
    view: View, meta: Meta, endpoint: Endpoint, name: str, labels: Mapping[str, str], uid: str
) -> workload_pb2.Workload:
    """`labels` are what policies select and names are read from."""
    workload = _common(view, meta, labels, name)
    workload.uid = uid
    workload.name = meta.name
    if is_ip(endpoint.address):
        workload.addresses.append(packed(endpoint.address))
    else:
        workload.hostname = endpoint.address
    _set_network(view, workload, endpoint.network or view.network())
    workload.service_account = endpoint.service_account
    if endpoint.weight:
        workload.capacity.value = endpoint.weight
    if (locality := _locality(endpoint.locality)) is not None:
        workload.locality.CopyFrom(locality)
    return workload


def _set_waypoint(
    view: View, workload: workload_pb2.Workload, meta: Meta, labels: Mapping[str, str]
) -> Attachment:
    """What a waypoint's own instance receives through, or the waypoint in front of any other workload."""
    tunnel = application_tunnel(view, meta.namespace, labels)
    if tunnel is not None:
        workload.application_tunnel.CopyFrom(tunnel)
    attachment = attach(view, meta, labels, WORKLOAD)
    if attachment.address is not None:
        workload.waypoint.CopyFrom(attachment.address)
    return attachment


def workload_entry_workload(view: View, entry: WorkloadEntry) -> tuple[Resource, Attachment]:
    """Healthy unless its status says that a check on the machine failed: nothing is probed from here."""
    meta, endpoint = entry.meta, entry.endpoint
    labels = {**endpoint.labels, **meta.labels}
    uid = f"{view.config.cluster_id}/networking.istio.io/WorkloadEntry/{meta.namespace}/{meta.name}"
    group = meta.annotations.get(names.REGISTRATION_GROUP)
    name = group if group is not None else labels.get(names.WORKLOAD_NAME, meta.name)
    workload = _entry_workload(view, meta, endpoint, name, labels, uid)
    workload.status = workload_pb2.HEALTHY if entry.healthy else workload_pb2.UNHEALTHY
    _set_services(workload, workload_entry_services(view, meta.namespace, labels, endpoint.ports))
    attachment = _set_waypoint(view, workload, meta, labels)
    return workload_resource(workload), attachment


def service_entry_workloads(view: View, entry: ServiceEntry) -> Iterator[Resource]:
    """One per inline endpoint; without endpoints and selector, one per host that DNS has to resolve.

    Policies and names go by the entry's own labels, the waypoint by those of the endpoint.
    """
    meta = entry.meta
    hosts = owned_hosts(view, entry)
    prefix = f"{view.config.cluster_id}/networking.istio.io/ServiceEntry/{meta.namespace}/{meta.name}"
    if not hosts:
        return
    served: list[tuple[Endpoint, list[str]]] = [(endpoint, hosts) for endpoint in entry.endpoints]
    if not served and entry.selector is None and entry.resolution in _NO_ADDRESS_RESOLUTIONS:
        # A wildcard is none that DNS could resolve, but for a waypoint: agents are told of it as istiod tells them.
        dynamic = entry.resolution == "DYNAMIC_DNS"
        served = [(Endpoint(host), [host]) for host in hosts if dynamic or not host.startswith("*")]
    for endpoint, its_hosts in served:
        uid = f"{prefix}/{endpoint.address}"
        workload = _entry_workload(view, meta, endpoint, meta.name, meta.labels, uid)
        _set_services(workload, entry_hosts(view, entry, its_hosts, endpoint.ports))
        if entry.endpoints:
            _set_waypoint(view, workload, meta, endpoint.labels)
        yield workload_resource(workload)


def slice_workloads(view: View, one: EndpointSlice) -> Iterator[Resource]:
    """Endpoints that a hand-made slice lists and that are no pods of ours."""
    namespace, name = one.meta.namespace, one.meta.name
    service = view.service(namespace, one.service) if one.service else None
    if service is None or service.type == "ExternalName" or one.address_type == "FQDN":
        return
    ports = workload_pb2.PortList()
    numbers = {port.name: port.port for port in one.ports if port.protocol == "TCP"}
    for port in service.ports:
        if port.name in numbers:
            ports.ports.add(service_port=port.port, target_port=numbers[port.name])
    seen: set[str] = set()
    for endpoint in one.endpoints:
        if endpoint.target is not None and endpoint.target.kind == "Pod":
            continue
        if not endpoint.addresses or endpoint.addresses[0] in seen:
            continue
        seen.add(endpoint.addresses[0])
        place = f"{namespace}/{name}/{endpoint.addresses[0]}"
        workload = workload_pb2.Workload(
            uid=f"{view.config.cluster_id}/discovery.k8s.io/EndpointSlice/{place}",
            name=name,
            namespace=namespace,
            addresses=[packed(address) for address in endpoint.addresses],
            network=view.network(),
            trust_domain=view.config.wire_trust_domain,
            cluster_id=view.config.cluster_id,
            status=workload_pb2.HEALTHY if endpoint.ready else workload_pb2.UNHEALTHY,
            network_mode=workload_pb2.HOST_NETWORK,
        )
        _set_services(workload, {service_name(view, service): ports})
        yield workload_resource(workload)
