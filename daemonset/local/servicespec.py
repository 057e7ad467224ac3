"""Services and EndpointSlices as manifests give them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from daemonset.local.names import is_dns_label

Json = Mapping[str, Any]
PROTOCOLS = ("TCP", "UDP")


class BadService(ValueError):
    """The object cannot be served; the text says what to change."""


@dataclass(frozen=True, slots=True)
class ServicePort:
    """`target`: a number, or the name of a container's port."""

    number: int
    target: int | str
    name: str = ""
    protocol: str = "TCP"


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A Service. `requested`: addresses the manifest asks for; `families`: 4 and/or 6, in order."""

    namespace: str
    name: str
    ports: tuple[ServicePort, ...]
    selector: Mapping[str, str]
    families: tuple[int, ...] = (4,)
    requested: tuple[str, ...] = ()
    headless: bool = False
    external_name: str = ""
    publish_not_ready: bool = False
    node_local: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name)."""
        return self.namespace, self.name

    @property
    def wants_address(self) -> bool:
        """Whether the service has ClusterIPs at all."""
        return not self.headless and not self.external_name


@dataclass(frozen=True, slots=True)
class SliceSpec:
    """Endpoints given by hand: (addresses, ready) and (port name, number)."""

    service: tuple[str, str]
    endpoints: tuple[tuple[str, bool], ...]
    ports: tuple[tuple[str, int], ...]


def parse_service(namespace: str, name: str, spec: Json) -> ServiceSpec:
    """The service; BadService says what is wrong."""
    if not is_dns_label(name):
        raise BadService("a service's name has to be a DNS label")
    if not isinstance(spec, Mapping):
        raise BadService("spec has to be a mapping")
    selector = spec.get("selector") or {}
    if not isinstance(selector, Mapping) or not all(isinstance(v, str) for v in selector.values()):
        raise BadService("spec.selector has to map labels to strings (quote numbers)")
    requested = tuple(str(a) for a in spec.get("clusterIPs") or [spec.get("clusterIP")] if a)
    headless = requested == ("None",)
    external = str(spec.get("externalName") or "") if spec.get("type") == "ExternalName" else ""
    ports = tuple(_port(p) for p in spec.get("ports") or ())
    if not ports and not headless and not external:
        raise BadService("spec.ports is missing")
    if len({(p.number, p.protocol) for p in ports}) < len(ports):
        raise BadService("two ports have the same number")
    requested = () if headless else tuple(_address(a) for a in requested)
    return ServiceSpec(
        namespace,
        name,
        ports,
        dict(selector),
        _families(spec, requested),
        requested,
        headless,
        external,
        bool(spec.get("publishNotReadyAddresses")),
        spec.get("internalTrafficPolicy") == "Local",
    )


def _port(raw: Any) -> ServicePort:
    number = raw.get("port") if isinstance(raw, Mapping) else None
    if not isinstance(number, int) or not 0 < number < 65536:
        raise BadService("every port needs a number from 1 to 65535 in `port`")
    target = raw.get("targetPort")
    target = number if target is None else target
    if isinstance(target, str) and target.isdecimal():
        target = int(target)
    if not isinstance(target, int | str) or (isinstance(target, int) and not 0 < target < 65536):
        raise BadService(f"targetPort {target!r} is neither a port's number nor its name")
    protocol = str(raw.get("protocol") or "TCP")
    if protocol not in PROTOCOLS:
        raise BadService(f"protocol {protocol!r} has to be TCP or UDP")
    return ServicePort(number, target, str(raw.get("name") or ""), protocol)


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise BadService(f"{text!r} is not an IP address") from None


def _families(spec: Json, requested: tuple[str, ...]) -> tuple[int, ...]:
    names = {"IPv4": 4, "IPv6": 6}
    wanted = [names.get(str(f), 0) for f in spec.get("ipFamilies") or ()]
    if 0 in wanted:
        raise BadService("ipFamilies can hold IPv4 and IPv6")
    if not wanted:
        wanted = [ip_address(a).version for a in requested] or [4]
    if spec.get("ipFamilyPolicy") in ("PreferDualStack", "RequireDualStack") and len(wanted) == 1:
        wanted.append(10 - wanted[0])
    for place, address in enumerate(requested):
        if place >= len(wanted) or ip_address(address).version != wanted[place]:
            raise BadService(f"clusterIP {address} does not fit ipFamilies")
    return tuple(dict.fromkeys(wanted))


def parse_slice(namespace: str, obj: Json) -> SliceSpec | None:
    """Endpoints of the service named by the slice's label; None if it names none or holds host names."""
    service = (obj["metadata"].get("labels") or {}).get("kubernetes.io/service-name")
    if not service or obj.get("addressType") == "FQDN":
        return None
    endpoints = []
    for endpoint in obj.get("endpoints") or ():
        ready = (endpoint.get("conditions") or {}).get("ready")
        for address in endpoint.get("addresses") or ():
            endpoints.append((_address(str(address)), ready is not False))
    ports = tuple((str(p.get("name") or ""), int(p["port"])) for p in obj.get("ports") or ())
    return SliceSpec((namespace, str(service)), tuple(endpoints), ports)
