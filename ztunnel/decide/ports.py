"""Ports: those of the mesh itself, and how a service's port becomes a port of the application."""

from typing import Final

from ztunnel.state.model import HBONE_PORT, Service, Workload

__all__ = ["ILLEGAL_PORTS", "endpoint_port", "target_port"]

OUTBOUND_PORT: Final = 15001
INBOUND_PORT: Final = 15006
SOCKS_PORT: Final = 15080

ILLEGAL_PORTS: Final = frozenset({OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT, SOCKS_PORT})
"""Where this agent listens in every pod: a connection to one of them would come back to it."""


def target_port(service: Service, workload: Workload, port: int) -> int | None:
    """The application's port behind `port` of `service` at one endpoint; None: there is none.

    The endpoint's own mapping comes first (named ports are known only there), then the service's, then,
    for an endpoint that has an application tunnel of its own port, the port as it is.
    """
    return endpoint_port(service.key, service.target_port(port), workload, port)


def endpoint_port(key: str, service_target: int | None, workload: Workload, port: int) -> int | None:
    """`target_port` for many endpoints of one service: its key and its own answer are given."""
    membership = workload.membership(key)
    if membership is not None:
        for mapping in membership.ports:
            if mapping.service_port == port and mapping.target_port:
                return mapping.target_port
    if service_target:
        return service_target
    tunnel = workload.application_tunnel
    return port if tunnel is not None and tunnel.port else None
