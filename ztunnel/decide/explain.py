"""A verdict in words: who, which way, every policy in order with the part that decided, and the outcome."""

from collections.abc import Iterator

from hbone.reasons import Reason
from ztunnel.decide.model import (
    Deliver,
    Direction,
    InboundConnection,
    OutboundConnection,
    Passthrough,
    Refuse,
    Route,
    Tunnel,
    Verdict,
)
from ztunnel.decide.trace import Outcome, PolicyStep
from ztunnel.state.model import Workload

__all__ = ["explain"]

_ROUTES = {
    Route.PASSTHROUGH: "left alone (plain TCP)",
    Route.PLAINTEXT: "plain TCP, the destination has no tunnel",
    Route.DIRECT: "HBONE to the destination's node agent",
    Route.SERVICE_WAYPOINT: "HBONE to the service's waypoint",
    Route.WORKLOAD_WAYPOINT: "HBONE to the workload's waypoint",
    Route.LOCAL: "to the application in this pod",
    Route.NONE: "none",
}

_OUTCOMES = {
    Outcome.MATCHED: "matched",
    Outcome.NOT_MATCHED: "did not match",
    Outcome.DRY_RUN_MATCHED: "would match (dry run, not enforced)",
    Outcome.DRY_RUN_NOT_MATCHED: "would not match (dry run, not enforced)",
    Outcome.PENDING: "not delivered yet",
    Outcome.UNUSABLE: "cannot be used",
}


def explain(verdict: Verdict, connection: OutboundConnection | InboundConnection) -> list[str]:
    """Lines for people, the verdict last. Nothing in them is computed anew: they show what decided."""
    return list(_lines(verdict, connection))


def _lines(verdict: Verdict, connection: OutboundConnection | InboundConnection) -> Iterator[str]:
    yield f"from     {connection.peer}  {_source(verdict)}"
    yield f"to       {connection.destination}  {_destination(verdict)}"
    yield f"route    {_ROUTES[verdict.route]}{_target(verdict)}"
    if verdict.detail:
        yield f"because  {verdict.detail}"
    if verdict.direction is Direction.INBOUND and verdict.authorization is not None:
        steps = verdict.trace
        if not steps:
            yield "policy   none applies"
        for step in steps:
            yield f"policy   {_step(step)}"
    yield f"verdict  {'allowed' if verdict.allowed else 'refused'}: {_conclusion(verdict)}"


def _source(verdict: Verdict) -> str:
    ends = verdict.ends
    name = _workload(ends.source) if ends.source is not None else "not a known workload"
    if verdict.direction is Direction.OUTBOUND:
        return name
    identity = f"proved {ends.source_identity}" if ends.source_identity is not None else "proved nothing"
    return f"{name}, {identity}"


def _destination(verdict: Verdict) -> str:
    ends = verdict.ends
    names = [f"service {ends.service.hostname}"] if ends.service is not None else []
    if ends.destination is not None:
        hop = verdict.route in (Route.SERVICE_WAYPOINT, Route.WORKLOAD_WAYPOINT)
        names.append(f"{'by' if hop else 'workload'} {_workload(ends.destination)}")
    return ", ".join(names) or "not in the mesh"


def _workload(workload: Workload) -> str:
    return f"{workload.namespace}/{workload.name}"


def _target(verdict: Verdict) -> str:
    match verdict.action:
        case Tunnel(destination, sans, authority):
            return f": {destination}, CONNECT {authority}, expecting {' or '.join(sans)}"
        case Passthrough(destination):
            return f": {destination}"
        case Deliver(destination, None):
            return f": {destination}, from the agent's own address"
        case Deliver(destination, source_ip):
            return f": {destination}, from {source_ip}"
        case Refuse(status):
            return f" (a CONNECT is answered {status})" if verdict.direction is Direction.INBOUND else ""


def _step(step: PolicyStep) -> str:
    action = f"{step.action} " if step.action is not None else ""
    where = f" at {step.path}" if step.path else ""
    why = f" ({step.why})" if step.why else ""
    return f"{action}{step.policy} {_OUTCOMES[step.outcome]}{where}{why}"


def _conclusion(verdict: Verdict) -> str:
    if verdict.reason is not Reason.OK:
        return f"{verdict.reason.text} [{verdict.reason}]"
    authorization = verdict.authorization
    if authorization is None:
        return "nothing at this end stands against it"
    if authorization.policy:
        return f"ALLOW policy {authorization.policy} matched"
    return "no ALLOW policy applies, and no DENY matched"
