"""Which services a workload is an endpoint of, and at which ports."""

from collections.abc import Iterable, Mapping, Sequence

from istiodlite.api import workload_pb2
from istiodlite.objects import Container, Pod, Service, ServiceEntry, ServicePort
from istiodlite.registry.visibility import Visibility
from istiodlite.registry.world import View

PortMap = dict[str, workload_pb2.PortList]


def service_name(view: View, service: Service) -> str:
    """Resource name of a Kubernetes Service."""
    meta = service.meta
    return f"{meta.namespace}/{view.config.service_hostname(meta.namespace, meta.name)}"


def owned_hosts(view: View, entry: ServiceEntry) -> list[str]:
    """The hosts of an entry that it defines itself.

    Within a namespace a Service beats entries, else the oldest entry wins: the loser defines nothing there. Nor does
    one that the mesh's settings hide from everybody.
    """
    if view.entry_visibility(entry.meta.namespace) is Visibility.NONE:
        return []
    return [host for host in dict.fromkeys(entry.hosts) if _owner(view, entry, host) is entry]


def _owner(view: View, entry: ServiceEntry, host: str) -> Service | ServiceEntry:
    rivals = [other for other in view.claimants(host) if other.meta.namespace == entry.meta.namespace]
    for other in rivals:
        if isinstance(other, Service) and other.type != "ExternalName":
            return other
    entries = [other for other in rivals if isinstance(other, ServiceEntry)]
    return min(entries, key=lambda other: other.meta.age_order)


def pod_services(view: View, namespace: str, labels: Mapping[str, str], named: Mapping[str, int]) -> PortMap:
    """Services and entries that select pods of these labels in their namespace; `named` are the pods' ports."""
    out: PortMap = {}
    for service in view.selecting(Service, namespace, labels):
        if service.type != "ExternalName" and service.selector:
            out[service_name(view, service)] = _pod_ports(service.ports, named)
    for entry in selecting_entries(view, namespace, labels):
        ports = _entry_ports(entry, named)
        for host in owned_hosts(view, entry):
            out[f"{namespace}/{host}"] = ports
    return out


def listing_services(view: View, pod: Pod, named: Mapping[str, int]) -> PortMap:
    """Services that list the pod in a slice."""
    out: PortMap = {}
    for name in _services_by_slice(view, pod):
        service = view.service(pod.meta.namespace, name)
        if service is not None and service.type != "ExternalName":
            out[service_name(view, service)] = _pod_ports(service.ports, named)
    return out


def _services_by_slice(view: View, pod: Pod) -> set[str]:
    found = set()
    for one in view.own_slices(pod.meta.namespace, pod.meta.name):
        for endpoint in one.endpoints:
            target = endpoint.target
            if target is None or (target.kind, target.name) != ("Pod", pod.meta.name):
                continue
            # A uid that differs belongs to an earlier pod of the same name.
            if target.namespace == pod.meta.namespace and target.uid in ("", pod.meta.uid):
                found.add(one.service)
    return found


def named_ports(containers: Iterable[Container]) -> dict[str, int]:
    """TCP container ports by name; of equal names the first counts."""
    out: dict[str, int] = {}
    for container in containers:
        for port in container.ports:
            if port.name and port.protocol == "TCP":
                out.setdefault(port.name, port.number)
    return out


def _by_number(ports: Iterable[ServicePort]) -> dict[int, ServicePort]:
    """What names a port: of two with one number (DNS over UDP and TCP) the last, as Istio has it."""
    return {port.port: port for port in ports}


def _pod_ports(ports: Sequence[ServicePort], named: Mapping[str, int]) -> workload_pb2.PortList:
    """A named target that the pod does not have leaves the port out: no endpoint for it here."""
    out = workload_pb2.PortList()
    naming = _by_number(ports)
    for port in ports:
        target: int | str = naming[port.port].target or 0
        number = named.get(target, 0) if isinstance(target, str) else _number(port)
        if number:
            out.ports.add(service_port=port.port, target_port=number)
    return out


def _machine_ports(ports: Sequence[ServicePort], numbers: Mapping[str, int]) -> workload_pb2.PortList:
    """Ports of a WorkloadEntry, which overrides a numeric target by the name of the service's port."""
    out = workload_pb2.PortList()
    naming = _by_number(ports)
    for port in ports:
        by = naming[port.port]
        target = numbers.get(by.target, 0) if isinstance(by.target, str) else numbers.get(by.name)
        if target is None:
            target = _number(port)
        if target:
            out.ports.add(service_port=port.port, target_port=target)
    return out


def _number(port: ServicePort) -> int:
    return port.target if isinstance(port.target, int) else port.port


def _entry_ports(entry: ServiceEntry, named: Mapping[str, int]) -> workload_pb2.PortList:
    out = workload_pb2.PortList()
    for port in entry.ports:
        target = named.get(port.name) or port.target or port.number
        out.ports.add(service_port=port.number, target_port=target)
    return out


def selecting_entries(view: View, namespace: str, labels: Mapping[str, str]) -> list[ServiceEntry]:
    """Entries with a workloadSelector that takes these labels; one without labels selects nothing."""
    found = view.selecting(ServiceEntry, namespace, labels)
    # Two entries may claim one host: the result must not depend on which came first.
    return sorted((one for one in found if one.selector), key=lambda one: one.meta.name)


def entry_hosts(view: View, entry: ServiceEntry, hosts: Iterable[str], ports: Mapping[str, int]) -> PortMap:
    """Membership of an entry's own endpoint, whose `ports` override by the entry's port names."""
    numbers = _entry_ports(entry, ports)
    return {f"{entry.meta.namespace}/{host}": numbers for host in hosts}


def workload_entry_services(
    view: View, namespace: str, labels: Mapping[str, str], ports: Mapping[str, int]
) -> PortMap:
    """Services and entries that select a WorkloadEntry by its labels."""
    out: PortMap = {}
    for service in view.selecting(Service, namespace, labels):
        if service.type != "ExternalName" and service.selector:
            out[service_name(view, service)] = _machine_ports(service.ports, ports)
    for entry in selecting_entries(view, namespace, labels):
        out.update(entry_hosts(view, entry, owned_hosts(view, entry), ports))
    return out
