"""Choosing one endpoint of a service. Pure: the draw, a number of at least 0 and below 1, is an argument."""

from collections.abc import Sequence
from typing import NamedTuple

from hbone.reasons import Reason
from ztunnel.decide.ports import endpoint_port
from ztunnel.decide.refusal import RefusalError
from ztunnel.state.model import (
    HealthPolicy,
    LoadBalancing,
    LoadBalancingMode,
    Scope,
    Service,
    Workload,
)
from ztunnel.state.snapshot import Snapshot

__all__ = ["Endpoint", "NotedDraw", "choose_endpoint", "nearest_first", "weighted"]


class NotedDraw(float):
    """A draw that notes the choices made with it, as (weights, index): equal choices give equal decisions."""

    choices: list[tuple[tuple[int, ...], int | None]]

    def __init__(self, _value: float) -> None:
        self.choices = []


class Endpoint(NamedTuple):
    """A workload and the port behind the service's port there."""

    workload: Workload
    port: int


def choose_endpoint(
    service: Service,
    port: int,
    client: Workload,
    network: str,
    snapshot: Snapshot,
    draw: float,
    *,
    waypoint: bool = False,
) -> Endpoint:
    """Pick an endpoint of `service` that serves `port`, for `client` on `network`; RefusalError if none.

    waypoint: the service is one, so the port need not be listed where an application tunnel is.
    Endpoints on other networks count only when there is none here, since they cannot be reached yet.
    """
    key, service_target = service.key, service.target_port(port)
    if not waypoint and service_target is None:
        raise RefusalError(Reason.UNKNOWN_PORT, f"{service.hostname} has no port {port}")
    only_healthy = service.load_balancing.health_policy is HealthPolicy.ONLY_HEALTHY
    here: list[Endpoint] = []
    elsewhere = False
    for workload in snapshot.endpoints(key):
        if only_healthy and not workload.healthy:
            continue
        target = endpoint_port(key, service_target, workload, port)
        if target is None:
            continue
        if workload.network != network:
            elsewhere = True
        elif workload.addresses or workload.hostname:
            here.append(Endpoint(workload, target))
    usable = _preferred(here, client, service.load_balancing)
    chosen = weighted([endpoint.workload.capacity for endpoint in usable], draw)
    if chosen is not None:
        return usable[chosen]
    if elsewhere and not here:
        raise RefusalError(
            Reason.NETWORK_UNREACHABLE, f"{service.hostname} has endpoints on other networks only"
        )
    raise RefusalError(Reason.NO_HEALTHY_UPSTREAM, f"{service.hostname} has no usable endpoint")


def weighted(weights: Sequence[int], draw: float) -> int | None:
    """The index that `draw` falls on, each as likely as its weight; None when all weights are 0."""
    index = _weighted(weights, draw)
    if isinstance(draw, NotedDraw):
        draw.choices.append((tuple(weights), index))
    return index


def _weighted(weights: Sequence[int], draw: float) -> int | None:
    total = sum(weights)
    if total == 0:
        return None
    rest = draw * total
    last = 0
    for index, weight in enumerate(weights):
        if weight:
            if rest < weight:
                return index
            rest -= weight
            last = index
    # Rounding can carry the sum a little too far; it then belongs to the last that has a weight.
    return last


def _preferred(endpoints: list[Endpoint], client: Workload, balancing: LoadBalancing) -> list[Endpoint]:
    scopes = balancing.routing_preference
    match balancing.mode:
        case LoadBalancingMode.STRICT:
            return [e for e in endpoints if all(_shares(scope, client, e.workload) for scope in scopes)]
        case LoadBalancingMode.FAILOVER if endpoints:
            ranks = [_rank(scopes, client, endpoint.workload) for endpoint in endpoints]
            best = max(ranks)
            return [endpoint for endpoint, rank in zip(endpoints, ranks, strict=True) if rank == best]
        case _:
            return endpoints


def nearest_first(
    workloads: Sequence[Workload], client: Workload, balancing: LoadBalancing
) -> tuple[Workload, ...]:
    """In the order of what they share with the client, where the service asks for that; else as they are."""
    if balancing.mode not in (LoadBalancingMode.FAILOVER, LoadBalancingMode.STRICT):
        return tuple(workloads)
    scopes = balancing.routing_preference
    return tuple(sorted(workloads, key=lambda workload: -_rank(scopes, client, workload)))


def _rank(scopes: tuple[Scope, ...], client: Workload, workload: Workload) -> int:
    """How many leading scopes are shared.

    A first scope of NETWORK outweighs all others together, and missing it does not end the count, so
    that endpoints of other networks are still told apart by region and zone.
    """
    rank = 0
    for index, scope in enumerate(scopes):
        network_first = index == 0 and scope is Scope.NETWORK
        if _shares(scope, client, workload):
            rank += len(scopes) if network_first else 1
        elif not network_first:
            break
    return rank


def _shares(scope: Scope, client: Workload, workload: Workload) -> bool:
    match scope:
        case Scope.REGION:
            return client.locality.region == workload.locality.region
        case Scope.ZONE:
            return client.locality.zone == workload.locality.zone
        case Scope.SUBZONE:
            return client.locality.subzone == workload.locality.subzone
        case Scope.NODE:
            return client.node == workload.node
        case Scope.CLUSTER:
            return client.cluster_id == workload.cluster_id
        case Scope.NETWORK:
            return client.network == workload.network
        case Scope.UNSPECIFIED:
            return True
