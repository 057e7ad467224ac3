"""Who may have which identity. Pure.

A caller may have its own; if its token is bound to a pod, that pod must still be there (a token outlives its
pod by hours, the identity must not). A node agent may have those of the pods on its node: it must be a trusted
account, its token must be bound to a pod that exists with that UID and account, and a pod of the requested
account must run on that same node. (Istio's node authorizer; our own trust domain is demanded besides.)
"""

from dataclasses import dataclass

from hbone.spiffe import SpiffeError, SpiffeId
from istiodlite.ca.caller import Caller
from istiodlite.ca.pods import PodIndex


@dataclass(frozen=True, slots=True)
class Trust:
    """`node_accounts` are (namespace, service account) that may ask for others."""

    trust_domain: str
    node_accounts: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Allowed:
    identity: SpiffeId


@dataclass(frozen=True, slots=True)
class Denied:
    """`reason` is for the log only; callers are told nothing."""

    reason: str


def authorize(caller: Caller, requested: str | None, pods: PodIndex, trust: Trust) -> Allowed | Denied:
    """`requested` is the impersonated SPIFFE URI; None or empty: the caller's own identity."""
    own = SpiffeId(trust.trust_domain, caller.namespace, caller.service_account)
    if not requested:
        gone = _node_of(caller, pods) if caller.pod else ""
        return gone if isinstance(gone, Denied) else Allowed(own)
    try:
        wanted = SpiffeId.parse(requested)
    except SpiffeError as error:
        return Denied(f"requested identity {error}")
    if wanted.trust_domain != trust.trust_domain:
        return Denied(f"{wanted} is of another trust domain than {trust.trust_domain}")
    if (caller.namespace, caller.service_account) not in trust.node_accounts:
        return Denied(f"{caller.namespace}/{caller.service_account} is not a trusted node account")
    node = _node_of(caller, pods)
    if isinstance(node, Denied):
        return node
    if not pods.runs_on(node, wanted.namespace, wanted.service_account):
        return Denied(f"no pod of {wanted.namespace}/{wanted.service_account} runs on node {node}")
    return Allowed(wanted)


def _node_of(caller: Caller, pods: PodIndex) -> str | Denied:
    """The node of the caller's pod, taken from the pod and never from the token alone."""
    if not caller.pod or not caller.pod_uid:
        return Denied("the token is not bound to a pod")
    pod = pods.get(caller.namespace, caller.pod)
    name = f"{caller.namespace}/{caller.pod}"
    if pod is None:
        return Denied(f"the caller's pod {name} is not known")
    if pod.meta.uid != caller.pod_uid:
        return Denied(
            f"the caller's pod {name} has UID {pod.meta.uid or '(none)'}, the token {caller.pod_uid}"
        )
    if pod.service_account != caller.service_account:
        return Denied(f"the caller's pod {name} runs as {pod.service_account}")
    if caller.node and pod.node != caller.node:
        return Denied(f"the caller's pod {name} is on node {pod.node}, the token says {caller.node}")
    return pod.node or Denied(f"the caller's pod {name} is on no node yet")
