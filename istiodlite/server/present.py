"""Resources as people read them: JSON with addresses in text."""

import base64
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import json_format

from istiodlite.api import authorization_pb2, workload_pb2
from istiodlite.registry import ADDRESS_TYPE, Condition, Resource

_ADDRESS_KEYS = ("address", "addresses")


def resource_value(resource: Resource) -> dict[str, Any]:
    """One resource: name, version, aliases and the message with fields named as in the .proto files."""
    message: Any
    if resource.type_url == ADDRESS_TYPE:
        address = workload_pb2.Address.FromString(resource.body)
        message = address.workload if address.HasField("workload") else address.service
    else:
        message = authorization_pb2.Authorization.FromString(resource.body)
    shown = json_format.MessageToDict(message, preserving_proto_field_name=True)
    # What is left out on the wire because it is zero is what people look for first.
    for name in ("tunnel_protocol", "status", "scope", "action"):
        if (field := message.DESCRIPTOR.fields_by_name.get(name)) is not None and field.enum_type is not None:
            shown.setdefault(name, field.enum_type.values_by_number[0].name)
    out: dict[str, Any] = {"name": resource.name, "version": resource.version}
    if resource.aliases:
        out["aliases"] = list(resource.aliases)
    out[type(message).__name__.lower()] = _readable(shown)
    return out


def _readable(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _readable(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_readable(item, key) for item in value]
    if isinstance(value, str) and key in _ADDRESS_KEYS:
        return str(ipaddress.ip_address(base64.b64decode(value)))
    return value


def overview(resources: Mapping[tuple[str, str], Resource]) -> dict[str, list[dict[str, Any]]]:
    """All resources by sort of thing, sorted by name."""
    out: dict[str, list[dict[str, Any]]] = {"workloads": [], "services": [], "authorizations": []}
    for key in sorted(resources):
        value = resource_value(resources[key])
        kind = next(name for name in ("workload", "service", "authorization") if name in value)
        out[f"{kind}s"].append(value)
    return out


def condition_values(conditions: Iterable[Condition]) -> list[dict[str, Any]]:
    return [
        {
            "object": str(one.key),
            "type": one.type,
            "status": str(one.status),
            "reason": one.reason,
            "message": one.message,
        }
        for one in conditions
    ]
