"""What both sides decide about a direct connection, by the functions that decide about relayed ones. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ebpf.pairs import DirectConnection, Endpoint
from hbone.connect import SocketAddress
from hbone.reasons import Reason
from ztunnel.decide.inbound import decide_inbound
from ztunnel.decide.model import (
    Deliver,
    Direction,
    InboundConnection,
    OutboundConnection,
    Passthrough,
    Refuse,
    Route,
    TrafficEnds,
    Verdict,
    Via,
)
from ztunnel.decide.outbound import decide_outbound, still_routed
from ztunnel.direct.local import Local
from ztunnel.state.model import HBONE_PORT
from ztunnel.state.snapshot import Snapshot

__all__ = ["Decided", "address", "allowing", "decided"]


class Decided(NamedTuple):
    """A connection as each side sees it, and the verdicts on it."""

    asking: OutboundConnection
    arriving: InboundConnection
    outbound: Verdict
    inbound: Verdict


def decided(
    connection: DirectConnection, source: Local, target: Local, network: str, snapshot: Snapshot
) -> Decided:
    """Today's verdicts. That another endpoint would be chosen today does not matter: it is as with connections that
    are relayed."""
    client, asked = address(connection.ends.client), address(connection.asked)
    backend = address(connection.ends.server)
    asking = OutboundConnection(source.workload, network, client, asked)
    routed = decide_outbound(asking, snapshot, 0.0)
    service, identity = routed.ends.service, source.workload.identity
    ends = TrafficEnds(
        source=source.workload, source_identity=identity, destination=target.workload, service=service
    )
    outbound = Verdict(
        Direction.OUTBOUND, Reason.OK, Passthrough(backend), Route.DIRECT, ends, depends=routed.depends
    )
    reason = still_routed(outbound, asking, snapshot)
    if reason is not Reason.OK:
        outbound = replace(outbound, reason=reason, action=Refuse(reason.http_status))
    arriving = InboundConnection(
        local=target.workload,
        via=Via.HBONE,
        peer=client,
        destination=SocketAddress(backend.ip, HBONE_PORT),
        identity=identity,
        authority=str(backend),
        forwarded_host=service.hostname if service is not None else None,
    )
    inbound = decide_inbound(arriving, snapshot)
    if inbound.reason is Reason.POLICY_PENDING:
        # Begun while it was allowed: the redecider gives the policy a moment to come.
        inbound = replace(inbound, reason=Reason.OK)
    # The kernel vouches for both ends, not TLS.
    inbound = replace(inbound, ends=replace(inbound.ends, mutual_tls=False))
    return Decided(asking, arriving, outbound, inbound)


def allowing(verdict: Verdict, connection: DirectConnection) -> Verdict:
    """The verdict with which the connection began."""
    if verdict.allowed:
        return verdict
    backend = address(connection.ends.server)
    action = Passthrough(backend) if verdict.direction is Direction.OUTBOUND else Deliver(backend, None)
    return replace(verdict, reason=Reason.OK, action=action, detail="")


def address(endpoint: Endpoint) -> SocketAddress:
    """As decisions have it."""
    return SocketAddress(endpoint.ip, endpoint.port)
