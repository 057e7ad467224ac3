"""PeerAuthentication to DENY policies that refuse peers without identity.

STRICT is one fixed policy attached to workloads. A workload's own PeerAuthentication with port
exceptions becomes a policy of its own, which then replaces the fixed one for that workload.
"""

from collections.abc import Iterable, Mapping

from istiodlite.api import authorization_pb2 as pb
from istiodlite.objects import MtlsMode, PeerAuthentication
from istiodlite.registry.resource import Resource, authorization_resource
from istiodlite.registry.world import View

STATIC_STRICT = "istio_converted_static_strict"
CONVERTED_PREFIX = "converted_peer_authentication_"

_PERMISSIVE = (MtlsMode.PERMISSIVE, MtlsMode.DISABLE)


def _oldest(found: Iterable[PeerAuthentication]) -> PeerAuthentication | None:
    return min(found, key=lambda one: one.meta.age_order, default=None)


def _inherited(view: View, namespace: str) -> MtlsMode:
    """Namespace over mesh; PERMISSIVE where neither says anything."""
    for place in (namespace, view.config.root_namespace):
        one = _oldest(one for one in view.selecting(PeerAuthentication, place, {}) if not one.selector)
        if one is not None and one.mode is not MtlsMode.UNSET:
            return one.mode
    return MtlsMode.PERMISSIVE


def _own(view: View, namespace: str, labels: Mapping[str, str]) -> PeerAuthentication | None:
    """The workload-level object; those of the root namespace do not count."""
    if namespace == view.config.root_namespace:
        return None
    return _oldest(one for one in view.selecting(PeerAuthentication, namespace, labels) if one.selector)


def _strict(view: View, namespace: str, own: PeerAuthentication | None) -> bool:
    mode = own.mode if own is not None and own.mode is not MtlsMode.UNSET else _inherited(view, namespace)
    return mode is MtlsMode.STRICT


def _exceptions(one: PeerAuthentication, strict: bool) -> list[int]:
    """Ports that differ from the effective mode; UNSET follows it."""
    wanted = _PERMISSIVE if strict else (MtlsMode.STRICT,)
    return sorted(port for port, mode in one.port_modes.items() if mode in wanted)


def applied(view: View, namespace: str, labels: Mapping[str, str]) -> list[str]:
    """Names of the converted policies that a workload has to list."""
    own = _own(view, namespace, labels)
    strict = _strict(view, namespace, own)
    if own is not None and _exceptions(own, strict):
        return [f"{namespace}/{CONVERTED_PREFIX}{own.meta.name}"]
    return [f"{view.config.root_namespace}/{STATIC_STRICT}"] if strict else []


def _no_identity(*ports: int) -> pb.Match:
    """Whoever has none, at these ports or, without any, at all."""
    match = pb.Match(destination_ports=ports)
    match.not_principals.add().presence.SetInParent()
    return match


def static_strict(view: View) -> Resource | None:
    """The fixed policy, as soon as there is any PeerAuthentication."""
    if not view.any_peer_authentication():
        return None
    policy = pb.Authorization(
        name=STATIC_STRICT,
        namespace=view.config.root_namespace,
        scope=pb.WORKLOAD_SELECTOR,
        action=pb.DENY,
        groups=[pb.Group(rules=[pb.Rules(matches=[_no_identity()])])],
    )
    return authorization_resource(policy)


def convert(view: View, one: PeerAuthentication) -> Resource | None:
    """The policy of a workload-level object with port exceptions; None where none is needed."""
    namespace = one.meta.namespace
    if not one.selector or namespace == view.config.root_namespace:
        return None
    strict = _strict(view, namespace, one)
    ports = _exceptions(one, strict)
    if not ports:
        return None
    if strict:
        rules = [pb.Rules(matches=[pb.Match(not_destination_ports=[port])]) for port in ports]
        if one.mode is MtlsMode.STRICT:
            rules.insert(0, pb.Rules(matches=[_no_identity()]))
        if _inherited(view, namespace) is MtlsMode.STRICT:
            # Said twice where both demand it, as Istio does: harmless, and equal to the octet.
            rules.append(pb.Rules(matches=[_no_identity()]))
        groups = [pb.Group(rules=rules)]
    else:
        matches = (_no_identity(port) for port in ports)
        groups = [pb.Group(rules=[pb.Rules(matches=[match])]) for match in matches]
    policy = pb.Authorization(
        name=CONVERTED_PREFIX + one.meta.name,
        namespace=namespace,
        scope=pb.WORKLOAD_SELECTOR,
        action=pb.DENY,
        groups=groups,
    )
    return authorization_resource(policy)
