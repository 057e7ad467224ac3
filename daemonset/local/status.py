"""What `ambientctl status` shows, as plain values."""

import os
from typing import Any

from daemonset.local.endpoints import backends
from daemonset.local.mesh import Mesh
from daemonset.local.names import UPLINK
from daemonset.local.node import Node
from daemonset.local.pods import Pod
from daemonset.local.processes import Service
from ztunnel.enrol.steps import Step


def mesh_status(mesh: Mesh) -> dict[str, Any]:
    """Nodes, pods, services and programs of the mesh."""
    return {
        "mesh": mesh.layout.mesh,
        "supervisor": os.getpid(),
        "settled": mesh.settled(),
        "problem": mesh.problem,
        "run_dir": str(mesh.layout.root),
        "istiodlite": _program(mesh.control_plane),
        "nodes": {name: _node(node, with_mesh=mesh.with_mesh) for name, node in sorted(mesh.nodes.items())},
        "pods": {"/".join(key): _pod(pod) for key, pod in sorted(mesh.pods.items())},
        "services": _services(mesh),
    }


def _program(service: Service | None) -> dict[str, Any] | None:
    if service is None:
        return None
    return {
        "pid": service.pid,
        "running": bool(service.pid),
        "restarts": service.restarts,
        "last_exit": service.last_exit,
        "log": str(service.log_file),
    }


def _node(node: Node, *, with_mesh: bool) -> dict[str, Any]:
    agent = _program(node.agent)
    if agent is not None:
        agent["connected"] = node.agent_connected
        agent["draining"] = [former.pid for former in node.former if former.pid]
    return {
        "addresses": [str(a) for a in node.addresses],
        "pod_ranges": [str(n) for n in node.ranges.pods(node.number)],
        "netns": node.netns.name,
        "uplink": UPLINK,
        "cgroup": str(node.cgroup),
        "agent": agent if with_mesh else None,
        "dns": _program(node.names),
    }


def _pod(pod: Pod) -> dict[str, Any]:
    return {
        "namespace": pod.template.namespace,
        "name": pod.template.name,
        "uid": pod.uid,
        "node": pod.sandbox.node,
        "addresses": list(pod.sandbox.addresses),
        "netns": pod.sandbox.netns.name,
        "cgroup": str(pod.sandbox.cgroup),
        "deployment": pod.template.deployment,
        "service_account": pod.template.service_account,
        "phase": pod.phase,
        "status": pod.status_text,
        "ready": pod.ready,
        "restarts": pod.restarts,
        "enrolled": pod.enrolment.step is Step.IN,
        "enrolment": pod.enrolment.step.value,
        "enrolment_error": pod.enrolment.error,
        "containers": {
            s.name: {
                "state": s.state.value,
                "reason": s.reason,
                "pid": s.pid,
                "exit_code": s.exit_code,
                "restarts": s.restarts,
                "ready": s.ready,
            }
            for s in pod.statuses.values()
        },
    }


def _services(mesh: Mesh) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, spec in sorted(mesh.desired.services.items()):
        found["/".join(key)] = {
            "cluster_ips": list(mesh.addresses.get(key, ())),
            "ports": [f"{p.number}/{p.protocol}" for p in spec.ports],
            "headless": spec.headless,
            "endpoints": [],
        }
    ports = backends(mesh.desired.services.values(), mesh.addresses, mesh.endpoints(), mesh.desired.slices)
    for port in ports:
        entry = found["/".join(port.service)]
        for backend in port.backends:
            text = f"[{backend.address}]" if ":" in backend.address else backend.address
            if f"{text}:{backend.port}" not in entry["endpoints"]:
                entry["endpoints"].append(f"{text}:{backend.port}")
    return found
