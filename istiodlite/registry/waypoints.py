"""Which waypoint an object is attached to, and why not."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from istiodlite.api import workload_pb2
from istiodlite.objects import Gateway, Listener, Meta, ObjectKey
from istiodlite.registry import config as names
from istiodlite.registry.resource import Condition, packed
from istiodlite.registry.world import View

SERVICE = "service"
WORKLOAD = "workload"
# The protocol of the listener behind which a gateway takes the PROXY protocol from an agent.
_PROXY_LISTENER = "istio.io/PROXY"


@dataclass(frozen=True, slots=True)
class Attachment:
    """`address` None: no waypoint. `weighted` is filled when a canary takes a share.

    `reason` is empty when nothing was asked for (no label, or `none`).
    """

    address: workload_pb2.GatewayAddress | None = None
    weighted: tuple[workload_pb2.WeightedWaypoint, ...] = ()
    reason: str = ""
    message: str = ""

    def condition(self, key: ObjectKey) -> Condition | None:
        if not self.reason:
            return None
        return Condition(key, "istio.io/WaypointBound", self.address is not None, self.reason, self.message)


@dataclass(frozen=True, slots=True)
class _Wanted:
    namespace: str
    name: str
    inherited: bool


NONE = Attachment()


def attach(
    view: View, meta: Meta, labels: Mapping[str, str], traffic: str, *, hidden: bool = False
) -> Attachment:
    """The waypoint of an object with these labels, for `traffic` SERVICE or WORKLOAD; `hidden`: other namespaces
    must not see it.

    A waypoint that is asked for but not usable leaves the object without one: traffic then goes directly.
    """
    if _is_hop(view, meta.namespace, labels, traffic):
        return NONE
    wanted = _wanted(view, meta.namespace, labels, names.USE_WAYPOINT, names.USE_WAYPOINT_NAMESPACE)
    if wanted is None:
        return NONE
    primary = _resolve(view, meta.namespace, wanted, traffic)
    if primary.address is None or traffic == WORKLOAD:
        return primary
    if hidden and wanted.namespace != meta.namespace:
        where = f"{wanted.namespace}/{wanted.name}"
        text = f"waypoint {where} is in another namespace, which must not see this entry (serviceEntryVisibility)"
        return Attachment(reason="CrossNamespaceWaypointForbidden", message=text)
    canary = _canary(view, meta.namespace, labels, wanted.inherited)
    if canary is None:
        return primary
    return _with_canary(view, meta, wanted, canary, primary)


def _is_hop(view: View, namespace: str, labels: Mapping[str, str], traffic: str) -> bool:
    """A service made for a waypoint or an east-west gateway, or an instance of a gateway that is ready."""
    if traffic == SERVICE:
        return labels.get(names.GATEWAY_MANAGED) in names.MANAGED_HOPS
    return _gateway_of(view, namespace, labels) is not None


def _gateway_of(view: View, namespace: str, labels: Mapping[str, str]) -> Gateway | None:
    """The ready gateway that a workload with these labels is an instance of."""
    name = labels.get(names.GATEWAY_NAME)
    gateway = view.gateway(namespace, name) if name else None
    return gateway if gateway is not None and gateway.addresses else None


def _wanted(
    view: View, namespace: str, labels: Mapping[str, str], label: str, namespace_label: str
) -> _Wanted | None:
    """What the object itself names, even if it is empty, else its namespace; None for `none`."""
    for source, inherited in ((labels, False), (view.namespace_labels(namespace), True)):
        if label in source:
            if source[label] == "none":
                return None
            return _Wanted(source.get(namespace_label, namespace), source[label], inherited)
    return None


def _canary(view: View, namespace: str, labels: Mapping[str, str], inherited: bool) -> _Wanted | None:
    """The namespace's canary counts only where its waypoint does."""
    place = view.namespace_labels(namespace) if inherited else {}
    for source, from_namespace in ((labels, False), (place, True)):
        if names.CANARY in source:
            name = source[names.CANARY]
            if name in ("", "none"):
                return None
            return _Wanted(source.get(names.CANARY_NAMESPACE, namespace), name, from_namespace)
    return None


def _resolve(view: View, namespace: str, wanted: _Wanted, traffic: str) -> Attachment:
    where = f"{wanted.namespace}/{wanted.name}"
    gateway = view.gateway(wanted.namespace, wanted.name)
    if gateway is None or not gateway.addresses:
        return Attachment(
            reason="WaypointIsNotReady", message=f"waypoint {where} does not exist or has no address yet"
        )
    if not admits(view, gateway, namespace):
        return Attachment(
            reason="AttachmentDenied", message=f"waypoint {where} does not allow namespace {namespace}"
        )
    handled = traffic_type(view, gateway)
    if handled not in (traffic, "all"):
        if traffic == WORKLOAD and wanted.inherited:
            return NONE
        return Attachment(
            reason="UnsupportedTrafficType",
            message=f"waypoint {where} handles {handled} traffic, not {traffic}",
        )
    return Attachment(
        address=_address(view, gateway),
        reason="WaypointAccepted",
        message=f"Successfully attached to waypoint {where}",
    )


def is_waypoint(view: View, gateway: Gateway) -> bool:
    """By the controller of its class; the class of that name counts even without a GatewayClass object."""
    found = view.gateway_class(gateway.class_name)
    if found is None:
        return gateway.class_name == names.WAYPOINT_CLASS
    return found.controller == names.MESH_CONTROLLER


def traffic_type(view: View, gateway: Gateway) -> str:
    """What the waypoint handles: label of the Gateway, else of its class, else `service`."""
    found = view.gateway_class(gateway.class_name)
    for labels in (gateway.meta.labels, found.meta.labels if found is not None else {}):
        if names.WAYPOINT_FOR in labels:
            return labels[names.WAYPOINT_FOR]
    return SERVICE


def admits(view: View, gateway: Gateway, namespace: str) -> bool:
    """allowedRoutes of the bound or HBONE listener; without one, the gateway's own namespace."""
    listener = _listener(gateway, _binding(view, gateway))
    if listener is None:
        return namespace == gateway.meta.namespace
    source = listener.allowed.source
    if source == "Selector":
        # Kubernetes sets this label itself; manifests in a folder rarely carry it.
        labels = {"kubernetes.io/metadata.name": namespace, **view.namespace_labels(namespace)}
        return listener.allowed.selector.matches(labels)
    return source == "All" or (source == "Same" and namespace == gateway.meta.namespace)


def _listener(gateway: Gateway, binding: workload_pb2.ApplicationTunnel | None) -> Listener | None:
    """The one that an inbound binding names by port or protocol, else the HBONE listener."""
    if binding is not None:
        for listener in gateway.listeners:
            if listener.port == binding.port if binding.port else _takes(listener, binding):
                return listener
    for listener in gateway.listeners:
        if listener.protocol == "HBONE" and listener.port == names.HBONE_PORT:
            return listener
    return None


def _takes(listener: Listener, binding: workload_pb2.ApplicationTunnel) -> bool:
    return binding.protocol == workload_pb2.ApplicationTunnel.PROXY and listener.protocol == _PROXY_LISTENER


def _address(view: View, gateway: Gateway) -> workload_pb2.GatewayAddress:
    for address in gateway.addresses:
        if address.type == "Hostname":
            hostname = workload_pb2.NamespacedHostname(
                namespace=gateway.meta.namespace, hostname=address.value
            )
            return workload_pb2.GatewayAddress(hostname=hostname, hbone_mtls_port=names.HBONE_PORT)
    value = gateway.addresses[0].value
    ip = workload_pb2.NetworkAddress(network=view.network(), address=packed(value))
    return workload_pb2.GatewayAddress(address=ip, hbone_mtls_port=names.HBONE_PORT)


def _with_canary(view: View, meta: Meta, wanted: _Wanted, canary: _Wanted, primary: Attachment) -> Attachment:
    inherited = view.namespace_annotations(meta.namespace) if wanted.inherited else {}
    text = {**inherited, **meta.annotations}.get(names.CANARY_WEIGHT, "0")
    where = f"{canary.namespace}/{canary.name}"
    if (wanted.namespace, wanted.name) == (canary.namespace, canary.name):
        return _without_canary(primary, "CanarySameAsPrimary", f"canary waypoint {where} is the primary too")
    if not (text.isascii() and text.isdigit() and int(text) <= 100):
        return _without_canary(primary, "CanaryInvalidWeight", f'canary weight "{text}" is not 0 to 100')
    second = _resolve(view, meta.namespace, canary, SERVICE)
    if second.address is None or primary.address is None:
        return _without_canary(primary, primary.reason, f"canary not used: {second.message}")
    weight = int(text)
    return Attachment(
        address=primary.address,
        weighted=(
            workload_pb2.WeightedWaypoint(destination=primary.address, weight=100 - weight),
            workload_pb2.WeightedWaypoint(destination=second.address, weight=weight),
        ),
        reason=primary.reason,
        message=f"{primary.message}, canary {where} with weight {weight}",
    )


def _without_canary(primary: Attachment, reason: str, message: str) -> Attachment:
    return Attachment(primary.address, (), reason, f"{primary.message}; {message}")


def application_tunnel(
    view: View, namespace: str, labels: Mapping[str, str]
) -> workload_pb2.ApplicationTunnel | None:
    """How a gateway's own pods want to receive what arrives by HBONE."""
    gateway = _gateway_of(view, namespace, labels)
    return None if gateway is None else _binding(view, gateway)


def _binding(view: View, gateway: Gateway) -> workload_pb2.ApplicationTunnel | None:
    """Annotation PROTO[/port] of the Gateway, else of its class; a port that is no number is none."""
    found = view.gateway_class(gateway.class_name)
    text = gateway.meta.annotations.get(names.INBOUND_BINDING)
    if text is None and found is not None:
        text = found.meta.annotations.get(names.INBOUND_BINDING)
    if text is None:
        return None
    protocol, _, port = text.partition("/")
    if protocol not in ("NONE", "PROXY") or "/" in port:
        return None
    return workload_pb2.ApplicationTunnel(protocol=protocol, port=_number(port))


def _number(text: str) -> int:
    known = text.isascii() and text.isdigit() and len(text) <= 10
    return int(text) if known and int(text) < 2**32 else 0


def is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
