"""Where and with what a container's programs run; how another program joins it (`ambientctl exec`)."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from daemonset.local.containers import Container, environment
from daemonset.local.folder import write_atomically
from daemonset.local.pods import Pod
from daemonset.local.processes import Place


def environment_of(pod: Pod, container: Container) -> dict[str, str]:
    """The variables of a container's programs. PATH begins with this installation's programs."""
    here = os.path.dirname(sys.executable)
    base = {
        "PATH": f"{here}:{os.environ.get('PATH', '/usr/local/bin:/usr/bin:/bin')}",
        "HOME": os.environ.get("HOME", "/root"),
        "HOSTNAME": pod.template.name,
        "LANG": "C.UTF-8",
    }
    return base | environment(container, pod.facts(), pod.host.config_map, pod.host.secret)


def place_of(pod: Pod, container: Container) -> Place:
    """Where a container's programs run."""
    box = pod.sandbox
    binds = {f"/etc/{name}": str(box.folder / name) for name in ("resolv.conf", "hosts")}
    host_network = pod.template.host_network
    return Place(
        cgroup=box.cgroup / container.name,
        netns=box.netns,
        binds=binds,
        hostname="" if host_network else pod.template.name,
        cwd=container.working_dir,
    )


def file_of(folder: Path, container: str) -> Path:
    """Where a started container's entry is: how another program joins it (`ambientctl exec`)."""
    return folder / f"exec.{container}.json"


def write(pod: Pod, container: Container, env: Mapping[str, str]) -> None:
    """Notes how to join a container that has been started."""
    plan = {"plan": place_of(pod, container).plan(), "env": dict(env)}
    write_atomically(file_of(pod.sandbox.folder, container.name), json.dumps(plan), mode=0o600)
