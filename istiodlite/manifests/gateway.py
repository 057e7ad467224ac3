"""Gateway API kinds: plain values to objects."""

from istiodlite.manifests.fields import Field
from istiodlite.objects import (
    Gateway,
    GatewayAddress,
    GatewayClass,
    Listener,
    Meta,
    NamespaceSelector,
    Requirement,
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
    requirements = tuple(_requirement(item) for item in selector["matchExpressions"].items())
    if source == "Selector" and not selector.present:
        selector.fail("is missing; add matchLabels or use from: Same or All")
    return NamespaceSelector(source, selector["matchLabels"].labels(), requirements)


def _requirement(item: Field) -> Requirement:
    operator = item["operator"].choice(("In", "NotIn", "Exists", "DoesNotExist"))
    values = item["values"].texts()
    if operator in ("In", "NotIn") and not values:
        item["values"].fail(f"is missing; {operator} needs at least one")
    if operator in ("Exists", "DoesNotExist") and values:
        item["values"].fail(f"belongs to In and NotIn, not {operator}; remove it")
    return Requirement(item["key"].text(), operator, values)


def parse_gateway_class(meta: Meta, body: Field) -> GatewayClass:
    return GatewayClass(meta, body["spec"]["controllerName"].text())
