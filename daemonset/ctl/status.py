"""`ambientctl status`."""

import argparse
import contextlib
import json
import os
from typing import Any

from daemonset.ctl.errors import CommandFailed
from daemonset.ctl.inspect import fetch
from daemonset.ctl.state import load, supervisor_lives
from daemonset.ctl.table import table
from daemonset.local.control import NoSupervisor, ask
from daemonset.local.layout import Layout


def run(options: argparse.Namespace) -> int:
    """Prints the state; fails if nobody keeps the mesh any more."""
    state = load(options.mesh)
    try:
        state = ask(Layout(options.mesh).control, {"command": "status"})
        state["alive"] = True
    except PermissionError:
        state["alive"] = supervisor_lives(state)
    except NoSupervisor:
        state["alive"] = False
    _ask_agents(state)
    print(json.dumps(state, indent=1) if options.json else _text(state))
    if not state["alive"]:
        raise CommandFailed(
            f"nobody keeps mesh {options.mesh} any more (its supervisor was killed): ambientctl down, then up"
        )
    return 0


def _ask_agents(state: dict[str, Any]) -> None:
    """How each node's agent captures; only root can ask, and only an agent that runs answers."""
    for name, node in state["nodes"].items():
        node["capture"] = None
        if state["alive"] and os.geteuid() == 0 and node["agent"] and node["agent"].get("connected"):
            with contextlib.suppress(CommandFailed):
                node["capture"] = fetch(state, name, "/capture")


def _text(state: dict[str, Any]) -> str:
    parts = [_head(state), _nodes(state), _pods(state)]
    if state["services"]:
        parts.append(_services(state))
    if state["problem"]:
        parts.append(f"problem: {state['problem']}")
    parts += [
        f"{name} captures by variant {node['capture']['variant']}: {node['capture']['reason']}"
        for name, node in state["nodes"].items()
        if node["capture"] and node["capture"]["why"] != "preferred"
    ]
    parts += refused_short_cuts(state["nodes"])
    return "\n\n".join(parts)


def refused_short_cuts(nodes: dict[str, Any]) -> list[str]:
    """A line for each node whose agent was asked for the short cut past the host and cannot give it; an agent of
    another version may not tell."""
    told = {name: (node["capture"] or {}).get("redirect_peer", {}) for name, node in nodes.items()}
    return [
        f"{name} gives direct connections no short cut: {each['problem']}"
        for name, each in told.items()
        if each.get("problem")
    ]


def _program(program: dict[str, Any] | None) -> str:
    if program is None:
        return "off"
    text = "running" if program["running"] else "down"
    if program.get("connected") is False and program["running"]:
        text = "not connected"
    notes = [f"{program['restarts']} restarts"] if program["restarts"] else []
    if program.get("draining"):
        notes.append(f"{len(program['draining'])} draining")
    return f"{text} ({', '.join(notes)})" if notes else text


def _head(state: dict[str, Any]) -> str:
    return f"mesh {state['mesh']}   istiodlite: {_program(state['istiodlite'])}   {state['run_dir']}"


def _nodes(state: dict[str, Any]) -> str:
    count = {n: sum(p["node"] == n for p in state["pods"].values()) for n in state["nodes"]}
    rows = [
        (
            name,
            n["addresses"][0],
            n["pod_ranges"][0],
            count[name],
            _program(n["agent"]),
            n["capture"]["variant"] if n["capture"] else "-",
            n["netns"],
        )
        for name, n in state["nodes"].items()
    ]
    return table(("NODE", "ADDRESS", "PODS IN", "PODS", "ZTUNNEL", "CAPTURE", "NETNS"), rows)


def _pods(state: dict[str, Any]) -> str:
    rows = [
        (
            p["namespace"],
            p["name"],
            f"{sum(c['ready'] for c in p['containers'].values())}/{len(p['containers'])}",
            p["status"],
            p["restarts"],
            p["addresses"][0],
            p["node"],
            _mesh_column(p),
        )
        for p in state["pods"].values()
    ]
    return table(("NAMESPACE", "POD", "READY", "STATUS", "RESTARTS", "IP", "NODE", "MESH"), rows)


def _mesh_column(pod: dict[str, Any]) -> str:
    return str({"in": "enrolled", "out": "-"}.get(pod["enrolment"], pod["enrolment"]))


def _services(state: dict[str, Any]) -> str:
    rows = [
        (
            *name.split("/"),
            "None" if s["headless"] else ",".join(s["cluster_ips"]),
            ",".join(s["ports"]),
            ",".join(s["endpoints"][:4]) + (",..." if len(s["endpoints"]) > 4 else ""),
        )
        for name, s in state["services"].items()
    ]
    return table(("NAMESPACE", "SERVICE", "CLUSTER-IP", "PORTS", "ENDPOINTS"), rows)
