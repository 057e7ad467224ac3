"""What a control plane answers, as plain values that can be compared and written down."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.json_format import MessageToDict

from istiodlite.api import authorization_pb2, workload_pb2
from tests.interop.control.agent import ADDRESS, AUTHORIZATION, Agent

Plain = dict[str, Any]
STRICT = "istio_converted_static_strict"


def plain(type_url: str, value: bytes) -> Plain:
    """Field names of the messages, bytes as base64."""
    if type_url == AUTHORIZATION:
        message: Any = authorization_pb2.Authorization.FromString(value)
    else:
        message = workload_pb2.Address.FromString(value)
    return MessageToDict(message, preserving_proto_field_name=True)


def ask(agent: Agent, mark: str) -> Plain:
    """Everything a wildcard stream carries that belongs to `mark`, by resource name.

    Without aliases: istiodlite sends them always, istiod only to a client that asks by name.
    """
    out: Plain = {}
    with agent.stream() as stream:
        stream.start()
        missing = {ADDRESS, AUTHORIZATION}
        while missing:
            response = stream.take()
            missing.discard(response.type_url)
            for one in response.resources:
                if mark in one.name or STRICT in one.name:
                    out[one.name] = plain(one.resource.type_url, one.resource.value)
    return out


def renamed(answers: Plain, mark: str, wanted: str) -> Plain:
    """With `wanted` in place of `mark` wherever it occurs."""
    found: Plain = json.loads(json.dumps(answers).replace(mark, wanted))
    return found


def differences(theirs: Plain, ours: Plain) -> list[str]:
    """`resource: path: theirs != ours`, sorted; empty when they are equal."""
    return sorted(
        line for name in {*theirs, *ours} for line in _compare(name, theirs.get(name), ours.get(name))
    )


def _compare(path: str, theirs: Any, ours: Any) -> list[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [
            line
            for key in {*theirs, *ours}
            for line in _compare(f"{path}: {key}", theirs.get(key), ours.get(key))
        ]
    return [] if theirs == ours else [f"{path}: istiod {_short(theirs)}, istiodlite {_short(ours)}"]


def _short(value: Any) -> str:
    return "has none" if value is None else json.dumps(value, sort_keys=True)
