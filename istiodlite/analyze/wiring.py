"""Labels, waypoints, services and service entries: names that lead nowhere."""

from collections.abc import Iterator

from istiodlite.analyze.findings import Finding, Severity
from istiodlite.analyze.mesh import Mesh, WaypointUse
from istiodlite.objects import Gateway, Namespace, Service, ServiceEntry
from istiodlite.registry.config import DATAPLANE_MODE, GATEWAY_MANAGED, HBONE_PORT, MANAGED_HOPS, USE_WAYPOINT
from istiodlite.registry.waypoints import admits, is_waypoint, traffic_type
from istiodlite.registry.world import key_of

_E, _W = Severity.ERROR, Severity.WARNING
_TRAFFIC = {"Pod": "workload", "WorkloadEntry": "workload", "Service": "service", "ServiceEntry": "service"}


def check_waypoints(mesh: Mesh) -> Iterator[Finding]:
    """Who uses which waypoint, and whether it can be used."""
    for use in mesh.waypoint_uses():
        yield from _use(mesh, use)
    for gateway in mesh.all(Gateway, "Gateway"):
        listeners = [(one.protocol, one.port) for one in gateway.listeners]
        if is_waypoint(mesh.view, gateway) and listeners != [("HBONE", HBONE_PORT)]:
            text = f"a waypoint has one listener, protocol HBONE on port {HBONE_PORT}; write that one only"
            yield Finding(_W, "waypoint-listeners", key_of(gateway), "spec.listeners", text)


def _use(mesh: Mesh, use: WaypointUse) -> Iterator[Finding]:
    field, where = f"metadata.labels[{USE_WAYPOINT}]", f"{use.namespace}/{use.name}"
    gateway = mesh.view.gateway(use.namespace, use.name)
    if gateway is None or not is_waypoint(mesh.view, gateway):
        what = "there is no Gateway" if gateway is None else "this Gateway is of no waypoint class:"
        text = f"{what} {where}, so traffic goes directly and no HTTP policy is enforced; create it or correct the name"
        yield Finding(_E, "waypoint-not-found", use.key, field, text)
        return
    namespace = use.key.name if use.key.kind == "Namespace" else use.key.namespace
    if not admits(mesh.view, gateway, namespace):
        text = (
            f"waypoint {where} does not admit namespace {namespace}; allow it in the listener's allowedRoutes"
        )
        yield Finding(_E, "waypoint-denied", use.key, field, text)
    handled, wanted = traffic_type(mesh.view, gateway), _TRAFFIC.get(use.key.kind)
    if wanted is not None and handled not in (wanted, "all"):
        text = f"waypoint {where} handles {handled} traffic, not {wanted}; set istio.io/waypoint-for on it"
        yield Finding(_E, "waypoint-traffic-type", use.key, field, text)


def check_labels(mesh: Mesh) -> Iterator[Finding]:
    """Labels that have no effect where they are."""
    for key in sorted(mesh.objects):
        obj = mesh.objects[key]
        labels, mode = obj.meta.labels, obj.meta.labels.get(DATAPLANE_MODE)
        field = f"metadata.labels[{DATAPLANE_MODE}]"
        if mode is not None and mode not in ("ambient", "none"):
            yield Finding(_E, "dataplane-mode", key, field, f'"{mode}" means nothing; write ambient or none')
        elif mode is not None and key.kind not in ("Namespace", "Pod"):
            text = f"has no effect on a {key.kind}; put it on the namespace or the pod template"
            yield Finding(_W, "label-without-effect", key, field, text)
        if USE_WAYPOINT in labels and key.kind in ("Deployment", "StatefulSet", "DaemonSet", "Gateway"):
            text = f"has no effect on a {key.kind}; put it on the namespace, the Service or the pod template"
            yield Finding(_W, "label-without-effect", key, f"metadata.labels[{USE_WAYPOINT}]", text)
        if isinstance(obj, Namespace) and mode == "ambient" and labels.get("istio-injection") == "enabled":
            text = "asks for sidecars and for ambient: pods with a sidecar are not enrolled; keep one of the labels"
            yield Finding(_E, "sidecar-and-ambient", key, "metadata.labels", text)


def check_services(mesh: Mesh) -> Iterator[Finding]:
    """Selectors, target ports, hosts and addresses."""
    if mesh.workloads:
        for service in mesh.services():
            if service.selector and service.meta.labels.get(GATEWAY_MANAGED) not in MANAGED_HOPS:
                yield from _service(mesh, service)
    entries = mesh.all(ServiceEntry, "ServiceEntry")
    for entry in entries:
        yield from _entry(mesh, entry, entries)


def _service(mesh: Mesh, service: Service) -> Iterator[Finding]:
    key, namespace = key_of(service), service.meta.namespace
    hit = [one for one in mesh.selected(namespace, service.selector) if one.namespace == namespace]
    if not hit:
        text = f"no workload of namespace {namespace} has these labels, so it has no endpoints; correct them"
        yield Finding(_W, "selector-hits-nothing", key, "spec.selector", text)
        return
    for index, port in enumerate(service.ports):
        if isinstance(port.target, str) and not any(port.target in workload.ports for workload in hit):
            text = f'no container of {hit[0]} has a port named "{port.target}"; name it or write the number'
            yield Finding(_E, "target-port-missing", key, f"spec.ports[{index}].targetPort", text)


def _entry(mesh: Mesh, entry: ServiceEntry, entries: list[ServiceEntry]) -> Iterator[Finding]:
    key, namespace = key_of(entry), entry.meta.namespace
    if entry.selector is not None and mesh.workloads:
        pods = mesh.selected(namespace, entry.selector)
        machines = [k for k in mesh.objects if k.kind == "WorkloadEntry" and k.namespace == namespace]
        if not pods and not machines:
            text = f"no workload of namespace {namespace} has these labels; correct them"
            yield Finding(_W, "selector-hits-nothing", key, "spec.workloadSelector", text)
    raw = any(port.protocol in ("TCP", "TLS", "HTTPS", "MONGO", "MYSQL", "REDIS") for port in entry.ports)
    if entry.resolution == "NONE" and not entry.addresses and raw:
        text = "without addresses and resolution nothing but its own DNS leads here; add addresses or resolution DNS"
        yield Finding(_W, "entry-without-address", key, "spec.addresses", text)
    for host in entry.hosts:
        rivals = [e for e in entries if host in e.hosts and e.meta.namespace == namespace]
        oldest = min(rivals, key=lambda e: e.meta.age_order)
        if oldest is not entry:
            text = (
                f"host {host} is defined by {key_of(oldest)} too, which is older and wins; keep one of them"
            )
            yield Finding(_W, "shadowed", key, "spec.hosts", text)
