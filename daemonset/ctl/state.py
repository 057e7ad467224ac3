"""Finding a mesh and its pods, for commands that read."""

import json
import os
from pathlib import Path
from typing import Any

from daemonset.ctl.errors import CommandFailed
from daemonset.local.layout import Layout


def require_root(command: str) -> None:
    """Ends the command unless it runs as root."""
    if os.geteuid() != 0:
        raise CommandFailed(f"{command} needs root: run it with sudo")


def load(mesh: str) -> dict[str, Any]:
    """The mesh's state as of its last change. Ends the command if there is no such mesh."""
    path = Layout(mesh).state
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise CommandFailed(
            f"there is no mesh {mesh}: start it with ambientctl up --mesh {mesh} FOLDER"
        ) from None
    except PermissionError:
        raise CommandFailed(f"{path} cannot be read: run it with sudo") from None
    return found


def supervisor_lives(state: dict[str, Any]) -> bool:
    """Whether the process that keeps the state is still there."""
    try:
        words = Path(f"/proc/{state['supervisor']}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"daemonset.local.supervisor" in words and state["mesh"].encode() in words


def find_pod(state: dict[str, Any], text: str, namespace: str = "") -> dict[str, Any]:
    """A pod by NAMESPACE/NAME or NAME, or by the name of its Deployment. Ends the command if not exactly one."""
    wanted_namespace, _, name = text.rpartition("/")
    wanted_namespace = wanted_namespace or namespace
    candidates = [
        pod
        for pod in state["pods"].values()
        if (not wanted_namespace or pod["namespace"] == wanted_namespace)
        and name in (pod["name"], pod["deployment"])
    ]
    exact = [pod for pod in candidates if pod["name"] == name] or candidates
    spaces = {pod["namespace"] for pod in exact}
    if len(spaces) > 1 and "default" in spaces and not wanted_namespace:
        spaces = {"default"}
    if not exact:
        known = ", ".join(sorted(state["pods"])) or "none"
        raise CommandFailed(f"there is no pod {text}; pods: {known}")
    if len(spaces) > 1:
        choices = ", ".join(f"{space}/{name}" for space in sorted(spaces))
        raise CommandFailed(f"{text} is ambiguous: say one of {choices}")
    exact = [pod for pod in exact if pod["namespace"] in spaces]
    return min(exact, key=lambda pod: (not pod["ready"], pod["name"]))


def container_of(pod: dict[str, Any], name: str) -> str:
    """The named container, or the first one that runs. Ends the command if there is none."""
    containers = pod["containers"]
    if name:
        if name not in containers:
            raise CommandFailed(f"pod {pod['name']} has no container {name}; it has {', '.join(containers)}")
        return name
    running = [n for n, c in containers.items() if c["state"] == "running"]
    return str(running[0] if running else next(reversed(containers)))
