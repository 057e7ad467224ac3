"""`resolve`: what a pod is told under a name, and whether by the mesh. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ztunnel.dns.lookup import Client, Match, Names, addresses_of
from ztunnel.state.snapshot import Snapshot
from ztunnel.whatif import QuestionError, pod_named

__all__ = ["explain_name"]


def explain_name(snapshot: Snapshot, names: Names, *, source: str, name: str, network: str) -> dict[str, Any]:
    """`source` is NS/POD. `known`: whether the mesh answers; `addresses`, IPv4 first; `lines` for people.
    QuestionError if there is no such pod, or no name."""
    host = name.lower().rstrip(".")
    if not host:
        raise QuestionError(f"name={name!r} is no name")
    pod = pod_named(snapshot, source)
    client = Client(pod.namespace, network, pod)
    match = names.find(host, client, snapshot)
    if match is None:
        line = f"{host} is not the mesh's: {source}'s own name server is asked"
        return {"known": False, "addresses": [], "lines": [line]}
    found = [ip for version in (4, 6) for ip in addresses_of(match, version, client, snapshot, 0.0)]
    lines = list(_lines(host, match, [str(ip) for ip in found]))
    return {"known": True, "addresses": [str(ip) for ip in found], "lines": lines}


def _lines(host: str, match: Match, addresses: list[str]) -> Iterator[str]:
    kind = "by its wildcard " + match.host if match.wildcard else f"as {match.host}"
    what = f"service {match.service.key}"
    if match.pod is not None:
        what = f"pod {match.pod.namespace}/{match.pod.name} behind {what}"
    yield f"{host} is {what}, {kind}" + (", told as an alias" if match.alias else "")
    yield f"addresses: {', '.join(addresses)}" if addresses else "it has no address that this pod can use"
