"""Commands that ask the agents: `explain`, `resolve`, `config`, `workloads`, `services`, `policies`, `connections`.

An agent's admin interface listens on the loopback address of its node's network namespace.
"""

import argparse
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from daemonset.ctl.errors import CommandFailed
from daemonset.ctl.state import find_pod, load, require_root
from daemonset.ctl.table import table
from daemonset.local.linux import inside
from daemonset.local.names import NETNS_DIR

ADMIN = ("127.0.0.1", 15000)
PATIENCE = 10.0


def fetch(state: Mapping[str, Any], node: str, path: str) -> Any:
    """What the node's agent answers, decoded. Ends the command if it does not answer."""
    try:
        with inside(NETNS_DIR / state["nodes"][node]["netns"]):
            connection = socket.create_connection(ADMIN, timeout=PATIENCE)
    except OSError as error:
        raise CommandFailed(
            f"the agent on {node} does not answer ({error.strerror or error}): ambientctl logs ztunnel/{node}"
        ) from None
    client = http.client.HTTPConnection(*ADMIN)
    client.sock = connection
    with connection:
        try:
            client.request("GET", path)
            answer = client.getresponse()
            body = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise CommandFailed(f"the agent on {node} broke off: {error}") from None
    if answer.status != 200:
        raise CommandFailed(f"the agent on {node} refused: {_error_text(body) or answer.reason}")
    try:
        return json.loads(body)
    except ValueError:
        raise CommandFailed(f"the agent on {node} did not answer with JSON") from None


def _error_text(body: str) -> str:
    try:
        decoded = json.loads(body)
    except ValueError:
        return body.strip()
    return str(decoded.get("error") or body) if isinstance(decoded, dict) else body


def _each_node(options: argparse.Namespace, path: str) -> Iterator[tuple[str, Any]]:
    require_root("this")
    state = load(options.mesh)
    if options.node and options.node not in state["nodes"]:
        raise CommandFailed(f"there is no node {options.node}; nodes: {', '.join(state['nodes'])}")
    if state["istiodlite"] is None:
        raise CommandFailed(f"mesh {options.mesh} runs without agents (up --no-mesh)")
    for node in [options.node] if options.node else state["nodes"]:
        yield node, fetch(state, node, path)


def explain(options: argparse.Namespace) -> int:
    """Status 0: the connection would be let through; 1: it would not."""
    require_root("explain")
    state = load(options.mesh)
    if state["istiodlite"] is None:
        raise CommandFailed(f"mesh {options.mesh} runs without agents (up --no-mesh): nothing to explain")
    pod = find_pod(state, options.source, options.namespace)
    query = urlencode({"from": f"{pod['namespace']}/{pod['name']}", "to": options.target}, safe="/:")
    answer = fetch(state, pod["node"], f"/explain?{query}")
    if options.json:
        print(json.dumps(answer, indent=1))
    else:
        print("\n".join(answer["lines"]))
    return 0 if answer["allowed"] else 1


def resolve(options: argparse.Namespace) -> int:
    """Status 0: the mesh answers; 1: the pod's own name server is asked."""
    require_root("resolve")
    state = load(options.mesh)
    if state["istiodlite"] is None:
        raise CommandFailed(f"mesh {options.mesh} runs without agents (up --no-mesh): nobody answers")
    pod = find_pod(state, options.source, options.namespace)
    query = urlencode({"from": f"{pod['namespace']}/{pod['name']}", "name": options.name}, safe="/:")
    answer = fetch(state, pod["node"], f"/resolve?{query}")
    print(json.dumps(answer, indent=1) if options.json else "\n".join(answer["lines"]))
    return 0 if answer["known"] else 1


def config(options: argparse.Namespace) -> int:
    """All of every agent's configuration."""
    print(json.dumps(dict(_each_node(options, "/config_dump")), indent=1))
    return 0


def workloads(options: argparse.Namespace) -> int:
    """A table of workloads."""
    return _show(options, "/config_dump", "workloads")


def services(options: argparse.Namespace) -> int:
    """A table of services."""
    return _show(options, "/config_dump", "services")


def policies(options: argparse.Namespace) -> int:
    """A table of policies."""
    return _show(options, "/config_dump", "policies")


def connections(options: argparse.Namespace) -> int:
    """A table of open connections."""
    return _show(options, "/connections", "connections")


# Heads and the fields under them, as the agents' dump names the fields.
COLUMNS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "workloads": (
        ("NAMESPACE", "namespace"),
        ("WORKLOAD", "name"),
        ("ADDRESS", "workloadIps"),
        ("ON NODE", "node"),
        ("PROTOCOL", "protocol"),
        ("ACCOUNT", "serviceAccount"),
        ("STATUS", "status"),
        ("WAYPOINT", "waypoint"),
        ("POLICIES", "authorizationPolicies"),
    ),
    "services": (
        ("NAMESPACE", "namespace"),
        ("SERVICE", "name"),
        ("VIP", "vips"),
        ("PORTS", "ports"),
        ("WAYPOINT", "waypoint"),
        ("ENDPOINTS", "endpoints"),
    ),
    "policies": (
        ("NAMESPACE", "namespace"),
        ("POLICY", "name"),
        ("ACTION", "action"),
        ("SCOPE", "scope"),
        ("RULES", "rules"),
        ("DRY RUN", "dryRun"),
        ("UNUSABLE", "unusable"),
    ),
    "connections": (
        ("POD", "pod"),
        ("DIRECTION", "direction"),
        ("FROM", "src"),
        ("TO", "originalDst"),
        ("VIA", "actualDst"),
        ("PROTOCOL", "protocol"),
        ("IDENTITY", "sourceIdentity"),
        ("SENT", "bytesSent"),
        ("RECEIVED", "bytesReceived"),
        ("SECONDS", "seconds"),
    ),
}
_COUNTED = ("endpoints", "rules")


def _show(options: argparse.Namespace, path: str, part: str) -> int:
    found = {node: _part(answer, part) for node, answer in _each_node(options, path)}
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print(listing(part, found))
    return 0


def listing(part: str, found: Mapping[str, list[dict[str, Any]]]) -> str:
    """A table of what each node's agent holds. Where the agents agree, they are shown once, as node "all"."""
    if (
        len(found) > 1
        and part != "connections"
        and len({json.dumps(f, sort_keys=True) for f in found.values()}) == 1
    ):
        found = {"all": next(iter(found.values()))}
    rows = [
        (node, *(_field(item, name) for _, name in COLUMNS[part]))
        for node, items in found.items()
        for item in items
    ]
    return table(("AGENT", *(head for head, _ in COLUMNS[part])), rows)


def _part(answer: Any, part: str) -> list[dict[str, Any]]:
    items = answer.get(part, []) if isinstance(answer, dict) else answer
    return [item for item in items if isinstance(item, dict)]


def _field(item: Mapping[str, Any], name: str) -> str:
    value = item.get(name)
    if name in _COUNTED and isinstance(value, list | dict):
        return str(len(value))
    return _cell(value)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_cell(v) for v in value)
    if isinstance(value, dict):
        return (
            str(value["destination"])
            if "destination" in value
            else ",".join(f"{k}:{v}" for k, v in value.items())
        )
    return "" if value in (None, False) else str(value)
