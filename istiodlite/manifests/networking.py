"""ServiceEntry and WorkloadEntry: plain values to objects, with the checks of Istio's validation."""

import ipaddress

from istiodlite.manifests.fields import Field, is_dns_name, shown
from istiodlite.objects import Endpoint, EntryPort, Meta, ServiceEntry, WorkloadEntry

_PROTOCOLS = (
    "HTTP",
    "HTTPS",
    "GRPC",
    "GRPC-WEB",
    "HTTP2",
    "MONGO",
    "MYSQL",
    "REDIS",
    "TCP",
    "TLS",
    "UDP",
    "HTTP_PROXY",
)
_RESOLUTIONS = ("NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS")
_HEALTH_CHECKED = "proxy.istio.io/health-checks-enabled"
_DNS_RESOLUTIONS = ("DNS", "DNS_ROUND_ROBIN")


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def parse_endpoint(field: Field) -> Endpoint:
    """One WorkloadEntry spec (also inline in a ServiceEntry)."""
    endpoint = endpoint_of(field)
    if not endpoint.address and not endpoint.network:
        field["address"].fail("is missing; add an IP address or a host name")
    return endpoint


def endpoint_of(field: Field) -> Endpoint:
    """The same where the address may still be missing: the template of a WorkloadGroup."""
    field.only("address", "ports", "labels", "network", "locality", "weight", "serviceAccount")
    address = field["address"].text("")
    if address.startswith("unix://"):
        field["address"].fail("unix sockets are not reachable through the mesh; use an IP or a host name")
    if address and _is_ip(address):
        address = str(ipaddress.ip_address(address))
    elif address and not is_dns_name(address.lower()):
        field["address"].fail(f"{shown(address)} is neither an IP address nor a host name")
    return Endpoint(
        address=address,
        ports={name: number.port() for name, number in field["ports"].entries()},
        labels=field["labels"].labels(),
        network=field["network"].text(""),
        locality=field["locality"].text(""),
        weight=field["weight"].integer(0, 2**32 - 1, 0),
        service_account=field["serviceAccount"].text(""),
    )


def parse_workload_entry(meta: Meta, body: Field) -> WorkloadEntry:
    if not body["spec"].present:
        body["spec"].fail("is missing; add the address")
    return WorkloadEntry(meta, parse_endpoint(body["spec"]), _healthy(meta, body["status"]["conditions"]))


def _healthy(meta: Meta, conditions: Field) -> bool:
    """Condition Healthy; where it is missing, a check that is demanded has not succeeded yet."""
    for condition in conditions.items():
        if condition["type"].text("") == "Healthy":
            return condition["status"].text("") == "True"
    return meta.annotations.get(_HEALTH_CHECKED) != "true"


def parse_service_entry(meta: Meta, body: Field) -> ServiceEntry:
    spec = body["spec"].only(
        "hosts",
        "addresses",
        "ports",
        "location",
        "resolution",
        "endpoints",
        "workloadSelector",
        "exportTo",
        "subjectAltNames",
    )
    selector = spec["workloadSelector"]
    entry = ServiceEntry(
        meta=meta,
        hosts=_hosts(spec["hosts"]),
        addresses=tuple(item.ip_or_cidr() for item in spec["addresses"].items()),
        ports=_ports(spec["ports"]),
        location=spec["location"].choice(("MESH_EXTERNAL", "MESH_INTERNAL"), "MESH_EXTERNAL"),
        resolution=spec["resolution"].choice(_RESOLUTIONS, "NONE"),
        endpoints=tuple(parse_endpoint(item) for item in spec["endpoints"].items()),
        selector=selector["labels"].labels() if selector.present else None,
        sans=spec["subjectAltNames"].texts(),
        allocated=tuple(
            (item["value"].ip(), item["host"].text("")) for item in body["status"]["addresses"].items()
        ),
    )
    _check_resolution(spec, entry)
    _check_endpoint_ports(spec, entry)
    return entry


def _hosts(field: Field) -> tuple[str, ...]:
    hosts = field.texts()
    if not hosts:
        field.fail("is missing; name at least one host")
    for host, item in zip(hosts, field.items(), strict=True):
        if host == "*":
            item.fail('"*" alone is too wide; use "*.example.com"')
        if not is_dns_name(host.removeprefix("*.")):
            item.fail(f"{shown(host)} is not a host name")
    return hosts


def _ports(field: Field) -> tuple[EntryPort, ...]:
    ports = []
    for item in field.items():
        item.only("number", "name", "protocol", "targetPort")
        protocol = item["protocol"].text("TCP").upper()
        if protocol not in _PROTOCOLS:
            item["protocol"].fail(f"must be one of {', '.join(_PROTOCOLS)}, not {shown(protocol)}")
        target = 0 if item["targetPort"].value in (None, 0) else item["targetPort"].port()
        ports.append(EntryPort(item["number"].port(), item["name"].text(), protocol, target))
    numbers, names = [port.number for port in ports], [port.name for port in ports]
    if len(set(numbers)) != len(numbers):
        field.fail("a port number is listed twice; keep one")
    if len(set(names)) != len(names):
        field.fail("two ports have the same name; give each its own name")
    return tuple(ports)


def _check_resolution(spec: Field, entry: ServiceEntry) -> None:
    if entry.selector is not None and entry.endpoints:
        spec["endpoints"].fail("cannot be given together with workloadSelector; keep one of the two")
    if entry.resolution not in ("NONE", "STATIC"):
        for item in spec["addresses"].items():
            if "/" in item.text():
                item.fail(f"a CIDR needs resolution NONE or STATIC, not {entry.resolution}")
    if entry.resolution == "NONE" and entry.endpoints:
        spec["endpoints"].fail("resolution NONE takes no endpoints; use STATIC or DNS")
    if entry.resolution == "STATIC":
        for endpoint, item in zip(entry.endpoints, spec["endpoints"].items(), strict=True):
            if endpoint.address and not _is_ip(endpoint.address):
                item["address"].fail("resolution STATIC needs an IP address; use DNS for host names")
    if entry.resolution in _DNS_RESOLUTIONS and not entry.endpoints and entry.selector is None:
        for host, item in zip(entry.hosts, spec["hosts"].items(), strict=True):
            if host.startswith("*"):
                item.fail(f"a wildcard host with resolution {entry.resolution} needs endpoints")
    if entry.resolution == "DNS_ROUND_ROBIN" and (len(entry.endpoints) > 1 or len(entry.hosts) > 1):
        spec["endpoints"].fail("DNS_ROUND_ROBIN takes one host and at most one endpoint")
    if entry.resolution == "DYNAMIC_DNS":
        _check_dynamic(spec, entry)


def _check_dynamic(spec: Field, entry: ServiceEntry) -> None:
    if not all(host.startswith("*.") for host in entry.hosts):
        spec["hosts"].fail("resolution DYNAMIC_DNS takes wildcard hosts only")
    if entry.addresses or entry.endpoints:
        spec.fail("resolution DYNAMIC_DNS takes neither addresses nor endpoints")
    for port, item in zip(entry.ports, spec["ports"].items(), strict=True):
        if port.protocol not in ("HTTP", "TLS", "GRPC", "HTTP2"):
            item["protocol"].fail("resolution DYNAMIC_DNS takes HTTP, HTTP2, GRPC or TLS only")


def _check_endpoint_ports(spec: Field, entry: ServiceEntry) -> None:
    names = {port.name for port in entry.ports}
    for endpoint, item in zip(entry.endpoints, spec["endpoints"].items(), strict=True):
        for name in endpoint.ports:
            if name not in names:
                item["ports"][name].fail("is not the name of one of spec.ports")
