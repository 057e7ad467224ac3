"""Which services a workload is an endpoint of, and at which ports."""

from collections.abc import Iterable, Mapping

from istiodlite.api import workload_pb2
from istiodlite.objects import Container, Pod, Service, ServiceEntry, ServicePort
from istiodlite.registry.world import View

PortMap = dict[str, workload_pb2.PortList]


def service_name(view: View, service: Service) -> str:
    """Resource name of a Kubernetes Service."""
    meta = service.meta
    return f"{meta.namespace}/{view.config.service_hostname(meta.namespace, meta.name)}"


def owned_hosts(view: View, entry: ServiceEntry) -> list[str]:
    """The hosts of an entry that it defines itself.

    Within a namespace a Service beats entries, else the oldest entry wins: the loser defines nothing there.
    """
    return [host for host in dict.fromkeys(entry.hosts) if _owner(view, entry, host) is entry]


def _owner(view: View, entry: ServiceEntry, host: str) -> Service | ServiceEntry:
    rivals = [other for other in view.claimants(host) if other.meta.namespace == entry.meta.namespace]
    for other in rivals:
        if isinstance(other, Service) and other.type != "ExternalName":
            return other
    entries = [other for other in rivals if isinstance(other, ServiceEntry)]
    return min(entries, key=lambda other: other.meta.age_order)


def pod_services(view: View, pod: Pod) -> PortMap:
    """Selecting Services and entries of the pod's namespace, and Services that list it in a slice."""
    out: PortMap = {}
    namespace, labels = pod.meta.namespace, pod.meta.labels
    listed = _services_by_slice(view, pod)
    named = _named_ports(pod.containers)
    selecting = [one for one in view.selecting(Service, namespace, labels) if one.selector]
    for name in listed:
        service = view.service(namespace, name)
        if service is not None and not service.selector:
            selecting.append(service)
    for service in selecting:
        if service.type != "ExternalName":
            out[service_name(view, service)] = _target_ports(service.ports, named)
    for entry in selecting_entries(view, namespace, labels):
        ports = _entry_ports(entry, named)
        for host in owned_hosts(view, entry):
            out[f"{namespace}/{host}"] = ports
    return out


def _services_by_slice(view: View, pod: Pod) -> set[str]:
    found = set()
    for one in view.slices_of_pod(pod.meta.namespace, pod.meta.name):
        for endpoint in one.endpoints:
            target = endpoint.target
            if target is None or (target.kind, target.name) != ("Pod", pod.meta.name):
                continue
            # A uid that differs belongs to an earlier pod of the same name.
            if target.namespace == pod.meta.namespace and target.uid in ("", pod.meta.uid):
                found.add(one.service)
    return found


def _named_ports(containers: Iterable[Container]) -> dict[str, int]:
    """TCP container ports by name; of equal names the first counts."""
    out: dict[str, int] = {}
    for container in containers:
        for port in container.ports:
            if port.name and port.protocol == "TCP":
                out.setdefault(port.name, port.number)
    return out


def _target_ports(ports: Iterable[ServicePort], named: Mapping[str, int]) -> workload_pb2.PortList:
    """A named target that the workload does not have leaves the port out: no endpoint for it here."""
    out = workload_pb2.PortList()
    for port in ports:
        target = named.get(port.target, 0) if isinstance(port.target, str) else port.target or port.port
        if target:
            out.ports.add(service_port=port.port, target_port=target)
    return out


def _entry_ports(entry: ServiceEntry, named: Mapping[str, int]) -> workload_pb2.PortList:
    out = workload_pb2.PortList()
    for port in entry.ports:
        target = named.get(port.name) or port.target or port.number
        out.ports.add(service_port=port.number, target_port=target)
    return out


def selecting_entries(view: View, namespace: str, labels: Mapping[str, str]) -> list[ServiceEntry]:
    """Entries with a workloadSelector (an empty one selects all) that takes these labels."""
    found = view.selecting(ServiceEntry, namespace, labels)
    # Two entries may claim one host: the result must not depend on which came first.
    return sorted((one for one in found if one.selector is not None), key=lambda one: one.meta.name)


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
            out[service_name(view, service)] = _target_ports(service.ports, ports)
    for entry in selecting_entries(view, namespace, labels):
        out.update(entry_hosts(view, entry, owned_hosts(view, entry), ports))
    return out
