"""From services and pods to endpoints: what ClusterIPs and names stand for at this moment. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from daemonset.local.servicespec import ServicePort, ServiceSpec, SliceSpec


@dataclass(frozen=True, slots=True)
class PodEndpoint:
    """A running pod as services see it."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    node: str
    addresses: tuple[str, ...]
    ready: bool
    ports: Mapping[str, int]
    hostname: str = ""
    subdomain: str = ""


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a connection can go: an address, a port, and the node it is on (empty: outside)."""

    address: str
    port: int
    node: str = ""


@dataclass(frozen=True, slots=True)
class PortBackends:
    """One port of one ClusterIP and the backends behind it (possibly none)."""

    service: tuple[str, str]
    address: str
    port: ServicePort
    backends: tuple[Backend, ...]
    node_local: bool = False


def selected(service: ServiceSpec, pods: Iterable[PodEndpoint]) -> list[PodEndpoint]:
    """Pods behind the service: of its namespace, matched by its selector, ready (or published anyway)."""
    if not service.selector:
        return []
    return sorted(
        (
            pod
            for pod in pods
            if pod.namespace == service.namespace
            and pod.addresses
            and (pod.ready or service.publish_not_ready)
            and service.selector.items() <= pod.labels.items()
        ),
        key=lambda pod: pod.name,
    )


def backends(
    services: Iterable[ServiceSpec],
    cluster_ips: Mapping[tuple[str, str], Sequence[str]],
    pods: Sequence[PodEndpoint],
    slices: Sequence[SliceSpec],
) -> tuple[PortBackends, ...]:
    """Every port of every ClusterIP with its backends, in a stable order."""
    found = []
    for service in sorted(services, key=lambda s: s.key):
        chosen = selected(service, pods)
        for address in cluster_ips.get(service.key, ()):
            version = ip_address(address).version
            for port in service.ports:
                behind = (
                    *_of_pods(chosen, port, version),
                    *_of_slices(service, slices, port, version),
                )
                found.append(PortBackends(service.key, address, port, behind, service.node_local))
    return tuple(found)


def _of_pods(pods: Iterable[PodEndpoint], port: ServicePort, version: int) -> list[Backend]:
    found = []
    for pod in pods:
        # A name that the pod does not have leaves the pod out, as on Kubernetes.
        number = port.target if isinstance(port.target, int) else pod.ports.get(port.target)
        if number is not None:
            found += [Backend(a, number, pod.node) for a in pod.addresses if ip_address(a).version == version]
    return found


def _of_slices(
    service: ServiceSpec, slices: Iterable[SliceSpec], port: ServicePort, version: int
) -> list[Backend]:
    if service.selector:
        return []
    return [
        Backend(address, number)
        for given in slices
        if given.service == service.key
        for name, number in given.ports
        if name == port.name
        for address, ready in given.endpoints
        if ready and ip_address(address).version == version
    ]
