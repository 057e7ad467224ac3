"""Core and discovery kinds: plain values to objects."""

from functools import lru_cache
from sys import intern

from istiodlite.manifests.fields import Field, is_dns_name, shown
from istiodlite.objects import (
    Container,
    ContainerPort,
    EndpointSlice,
    Meta,
    Namespace,
    Node,
    Pod,
    Service,
    ServiceAccount,
    ServicePort,
    SliceEndpoint,
    SlicePort,
    TargetRef,
)

_PROTOCOLS = ("TCP", "UDP", "SCTP")
_PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")


def parse_namespace_object(meta: Meta, body: Field) -> Namespace:
    return Namespace(meta)


def parse_node(meta: Meta, body: Field) -> Node:
    return Node(meta)


def parse_service_account(meta: Meta, body: Field) -> ServiceAccount:
    return ServiceAccount(meta)


def parse_pod(meta: Meta, body: Field) -> Pod:
    spec, status = body["spec"], body["status"]
    account = spec["serviceAccountName"]
    name = account.text("") or spec["serviceAccount"].text("") or "default"
    if not is_dns_name(name):
        account.fail(f"{shown(name)} is not a valid service account name")
    containers = [_container(item) for item in spec["containers"].items()]
    for item in spec["initContainers"].items():
        if item["restartPolicy"].text("") == "Always":
            containers.append(_container(item))
    return Pod(
        meta=meta,
        node=intern(spec["nodeName"].text("")),
        service_account=intern(name),
        host_network=spec["hostNetwork"].boolean(),
        phase=status["phase"].choice(_PHASES, "Pending"),
        ready=_ready(status),
        addresses=_pod_addresses(status),
        containers=_shared(tuple(containers)),
    )


@lru_cache(maxsize=4096)
def _shared(containers: tuple[Container, ...]) -> tuple[Container, ...]:
    """One for all replicas."""
    return containers


def _container(item: Field) -> Container:
    ports = []
    for port in item["ports"].items():
        ports.append(
            ContainerPort(
                number=port["containerPort"].port(),
                name=port["name"].text(""),
                protocol=port["protocol"].choice(_PROTOCOLS, "TCP"),
            )
        )
    return Container(name=item["name"].text(), ports=tuple(ports))


def _ready(status: Field) -> bool:
    return any(
        item["type"].text("") == "Ready" and item["status"].text("") == "True"
        for item in status["conditions"].items()
    )


def _pod_addresses(status: Field) -> tuple[str, ...]:
    listed = [item["ip"].ip() for item in status["podIPs"].items()]
    if not listed and status["podIP"].text(""):
        listed = [status["podIP"].ip()]
    return tuple(dict.fromkeys(listed))


def parse_service(meta: Meta, body: Field) -> Service:
    spec = body["spec"]
    ports = tuple(_service_port(item) for item in spec["ports"].items())
    _unique_ports(spec["ports"], ports)
    selector = spec["selector"].labels()
    return Service(
        meta=meta,
        type=spec["type"].choice(("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"), "ClusterIP"),
        cluster_ips=_cluster_ips(spec),
        ports=ports,
        selector=selector,
        ip_families=tuple(item.choice(("IPv4", "IPv6")) for item in spec["ipFamilies"].items()),
        publish_not_ready=spec["publishNotReadyAddresses"].boolean(),
        internal_traffic_policy=spec["internalTrafficPolicy"].choice(("Cluster", "Local"), "Cluster"),
        traffic_distribution=spec["trafficDistribution"].text(""),
    )


def _cluster_ips(spec: Field) -> tuple[str, ...]:
    items = spec["clusterIPs"].items() or ([spec["clusterIP"]] if spec["clusterIP"].text("") else [])
    if any(item.value == "None" for item in items):
        return ()
    return tuple(dict.fromkeys(item.ip() for item in items if item.value != ""))


def _service_port(item: Field) -> ServicePort:
    target = item["targetPort"]
    wanted: int | str | None = None
    if isinstance(target.value, str):
        wanted = target.text() or None
        if target.value.isdigit():
            target.fail(f"{shown(target.value)} is a number in quotes; remove the quotes or use a port name")
    elif target.present and target.value != 0:
        wanted = target.port()
    return ServicePort(
        port=item["port"].port(),
        name=item["name"].text(""),
        target=wanted,
        protocol=item["protocol"].choice(_PROTOCOLS, "TCP"),
        app_protocol=item["appProtocol"].text(""),
    )


def _unique_ports(field: Field, ports: tuple[ServicePort, ...]) -> None:
    seen: set[tuple[int, str]] = set()
    names: set[str] = set()
    for port in ports:
        if (port.port, port.protocol) in seen:
            field.fail(f"port {port.port}/{port.protocol} is listed twice; keep one")
        if port.name in names:
            field.fail(f'two ports are named "{port.name}"; give each its own name')
        seen.add((port.port, port.protocol))
        names.add(port.name)


def parse_endpoint_slice(meta: Meta, body: Field) -> EndpointSlice:
    kind = body["addressType"].choice(("IPv4", "IPv6", "FQDN"))
    endpoints = []
    for item in body["endpoints"].items():
        addresses = item["addresses"].items()
        endpoints.append(
            SliceEndpoint(
                addresses=tuple(a.text() if kind == "FQDN" else a.ip() for a in addresses),
                ready=item["conditions"]["ready"].boolean(True),
                target=_target(item["targetRef"], meta.namespace),
            )
        )
    ports = []
    for item in body["ports"].items():
        if item["port"].present:
            ports.append(
                SlicePort(
                    port=item["port"].port(),
                    name=item["name"].text(""),
                    protocol=item["protocol"].choice(_PROTOCOLS, "TCP"),
                )
            )
    return EndpointSlice(
        meta=meta,
        service=meta.labels.get("kubernetes.io/service-name", ""),
        address_type=kind,
        endpoints=tuple(endpoints),
        ports=tuple(ports),
    )


def _target(field: Field, namespace: str) -> TargetRef | None:
    if not field.present:
        return None
    return TargetRef(
        kind=field["kind"].text(""),
        namespace=field["namespace"].text("") or namespace,
        name=field["name"].text(""),
        uid=field["uid"].text(""),
    )
