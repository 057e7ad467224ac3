"""Gateway API kinds: plain values to objects."""

from istiodlite.manifests.fields import Field
from istiodlite.manifests.selector import parse_label_selector
from istiodlite.objects import (
    Gateway,
    GatewayAddress,
    GatewayClass,
    Listener,
    Meta,
    NamespaceSelector,
)


def parse_gateway(meta: Meta, body: Field) -> Gateway:
    spec = body["spec"]
    listeners = tuple(
        Listener(
            name=item["name"].text(),
            port=item["port"].port(),
            protocol=item["protocol"].text(),
            allowed=_allowed(item["allowedRoutes"]["namespaces"]),
        )
        for item in spec["listeners"].items()
    )
    names = [listener.name for listener in listeners]
    for name in names:
        if names.count(name) > 1:
            spec["listeners"].fail(f'two listeners are named "{name}"; give each its own name')
    addresses = tuple(_address(item) for item in body["status"]["addresses"].items())
    return Gateway(meta, spec["gatewayClassName"].text(), listeners, addresses)


def _address(item: Field) -> GatewayAddress:
    kind = item["type"].choice(("IPAddress", "Hostname"), "IPAddress")
    value = item["value"]
    return GatewayAddress(kind, value.text() if kind == "Hostname" else value.ip())


def _allowed(field: Field) -> NamespaceSelector:
    source = field["from"].choice(("Same", "All", "Selector", "None"), "Same")
    selector = field["selector"]
    if source == "Selector" and not selector.present:
        selector.fail("is missing; add matchLabels or use from: Same or All")
    return NamespaceSelector(source, parse_label_selector(selector))


def parse_gateway_class(meta: Meta, body: Field) -> GatewayClass:
    return GatewayClass(meta, body["spec"]["controllerName"].text())
