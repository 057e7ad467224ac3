"""Service names: the hosts file of the cluster's name server, and what pods get in /etc. Pure text."""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address

from daemonset.local.addresses import Address
from daemonset.local.endpoints import PodEndpoint, selected
from daemonset.local.servicespec import ServiceSpec

DOMAIN = "cluster.local"
CONTROL_PLANE = "istiod.istio-system.svc"
_MARKER_DOMAIN = "generation.ambientlite.invalid"


def marker(generation: int) -> str:
    """A name that exists in the generation's hosts file only: how to see that the server has read it."""
    return f"g{generation}.{_MARKER_DOMAIN}"


def hosts_file(
    services: Iterable[ServiceSpec],
    cluster_ips: Mapping[tuple[str, str], Sequence[str]],
    pods: Sequence[PodEndpoint],
    control_plane: Sequence[Address],
    generation: int = 0,
) -> str:
    """Lines "address name": ClusterIPs, endpoints of headless services, the control plane."""
    lines = [f"127.0.0.1 {marker(generation)}"]
    lines += [f"{address} {CONTROL_PLANE}.{DOMAIN}" for address in control_plane]
    for service in sorted(services, key=lambda s: s.key):
        name = f"{service.name}.{service.namespace}.svc.{DOMAIN}"
        lines += [f"{address} {name}" for address in cluster_ips.get(service.key, ())]
        if service.headless:
            lines += _headless(service, name, pods)
    return "\n".join(lines) + "\n"


def _headless(service: ServiceSpec, name: str, pods: Sequence[PodEndpoint]) -> list[str]:
    lines = []
    for pod in selected(service, pods):
        for address in pod.addresses:
            if ip_address(address).version in service.families:
                lines.append(f"{address} {name}")
                if pod.subdomain == service.name and pod.hostname:
                    lines.append(f"{address} {pod.hostname}.{name}")
    return lines


def resolv_conf(namespace: str, nameservers: Sequence[Address]) -> str:
    """A pod's /etc/resolv.conf, as the kubelet writes it."""
    search = f"{namespace}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}"
    servers = "".join(f"nameserver {address}\n" for address in nameservers)
    return f"search {search}\n{servers}options ndots:5\n"


def etc_hosts(hostname: str, addresses: Sequence[str], aliases: Iterable[Mapping[str, object]] = ()) -> str:
    """A pod's /etc/hosts; `aliases` are the pod's hostAliases."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{address} {hostname}" for address in addresses]
    for alias in aliases:
        names = alias.get("hostnames")
        if isinstance(names, list):
            lines.append(f"{alias.get('ip')} {' '.join(map(str, names))}")
    return "\n".join(lines) + "\n"
