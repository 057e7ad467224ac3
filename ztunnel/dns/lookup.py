"""What the mesh knows under a name, as one client sees it. Pure: `draw` (of [0, 1)) is an argument."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from ztunnel.decide.balance import nearest_first
from ztunnel.dns.names import Candidate, candidates, wildcards
from ztunnel.state.model import HealthPolicy, IPAddress, IPFamilies, Service, Workload
from ztunnel.state.snapshot import Snapshot

__all__ = ["Client", "Match", "Names", "addresses_of"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks. `workload` is None until the control plane has told of the pod."""

    namespace: str
    network: str
    workload: Workload | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """`host`: the service's host name, or the pod's under it (then `pod` is set). `alias`: the name asked for
    is another one, so that the answer begins with a CNAME."""

    host: str
    service: Service
    alias: bool = False
    wildcard: bool = False
    pod: Workload | None = None


@dataclass(frozen=True, slots=True)
class Names:
    """`domain`: the cluster's. `preferred`: of several namespaces' services of one name, this one's is taken
    before others if none is the client's own or canonical."""

    domain: str
    preferred: str = ""

    def find(self, name: str, client: Client, snapshot: Snapshot) -> Match | None:
        """None where the client's name server has to be asked: the name is not known, or it is a
        ServiceEntry's that has no address of its own."""
        for candidate in candidates(name, client.namespace, self.domain):
            service = self._named(candidate.host, client, snapshot)
            if service is not None:
                return self._match(candidate, service)
            pod = self._pod(candidate, client, snapshot)
            if pod is not None:
                return pod
            for host in wildcards(candidate.host):
                service = self._named(host, client, snapshot)
                if service is not None:
                    return Match(host, service, wildcard=True) if service.addresses else None
        return None

    def _match(self, candidate: Candidate, service: Service) -> Match | None:
        if not service.addresses and not self._in_cluster(service.hostname):
            return None
        return Match(service.hostname, service, alias=candidate.is_stripped)

    def _in_cluster(self, hostname: str) -> bool:
        return hostname.endswith(f".svc.{self.domain}")

    def _pod(self, candidate: Candidate, client: Client, snapshot: Snapshot) -> Match | None:
        """`web-0.web.shop.svc.cluster.local`: a pod behind a headless service."""
        name, _, rest = candidate.host.partition(".")
        if not self._in_cluster(rest):
            return None
        service = self._named(rest, client, snapshot)
        if service is None or service.addresses:
            return None
        for workload in _endpoints(service, client, snapshot):
            if workload.name == name:
                host = f"{name}.{service.hostname}"
                return Match(host, service, alias=candidate.is_stripped, pod=workload)
        return None

    def _named(self, host: str, client: Client, snapshot: Snapshot) -> Service | None:
        """The client's own namespace's, else a canonical one, else the preferred namespace's, else the first."""
        visible = [each for each in snapshot.services_named(host) if each.visible_to(client.namespace)]
        if not visible:
            return None
        return max(
            visible,
            key=lambda service: (
                service.namespace == client.namespace,
                service.canonical,
                bool(self.preferred) and service.namespace == self.preferred,
            ),
        )


def addresses_of(
    match: Match, version: int, client: Client, snapshot: Snapshot, draw: float
) -> tuple[IPAddress, ...]:
    """Addresses of one IP version: a service's own on the client's network; of a headless service its
    endpoints', the nearest first where it prefers those. Among equals every one comes first as often."""
    if version not in _FAMILIES.get(match.service.ip_families, _BOTH):
        return ()
    if match.pod is not None:
        return tuple(ip for ip in match.pod.addresses if ip.version == version)
    if match.service.addresses:
        vips = [vip for vip in match.service.addresses if vip.network == client.network and vip.is_host]
        return _turned([vip.ip for vip in vips if vip.ip.version == version], draw)
    pods = sorted(_endpoints(match.service, client, snapshot), key=lambda pod: pod.uid)
    usable = [pod for pod in pods if any(ip.version == version for ip in pod.addresses)]
    ordered: Sequence[Workload] = _turned(usable, draw)
    if client.workload is not None:
        ordered = nearest_first(ordered, client.workload, match.service.load_balancing)
    first = (next(ip for ip in pod.addresses if ip.version == version) for pod in ordered)
    return tuple(dict.fromkeys(first))


def _endpoints(service: Service, client: Client, snapshot: Snapshot) -> Iterable[Workload]:
    every = service.load_balancing.health_policy is HealthPolicy.ALLOW_ALL
    for workload in snapshot.endpoints(service.key):
        if workload.network == client.network and (every or workload.healthy):
            yield workload


def _turned(items: Sequence[_T], draw: float) -> tuple[_T, ...]:
    first = int(draw * len(items))
    return (*items[first:], *items[:first])


_BOTH: Final = frozenset({4, 6})
_FAMILIES: Final = {IPFamilies.IPV4_ONLY: frozenset({4}), IPFamilies.IPV6_ONLY: frozenset({6})}
