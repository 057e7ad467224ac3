"""`ambientctl exec`: becomes the program, in the pod. Exit status, signals and terminal are the program's own."""

import argparse
import json
import os
import sys

from daemonset.ctl.errors import CommandFailed
from daemonset.ctl.state import container_of, find_pod, load, require_root
from daemonset.local import launch
from daemonset.local.layout import Layout


def run(options: argparse.Namespace) -> int:
    """Never returns if the program can be started."""
    require_root("exec")
    if not options.command:
        raise CommandFailed("exec: what is to be run? ambientctl exec POD -- PROGRAM [ARGUMENT...]")
    pod = find_pod(load(options.mesh), options.pod, options.namespace)
    container = container_of(pod, options.container)
    entry_file = Layout(options.mesh).pod(pod["namespace"], pod["name"]) / f"exec.{container}.json"
    try:
        entry = json.loads(entry_file.read_text())
    except FileNotFoundError:
        raise CommandFailed(
            f"container {container} of pod {pod['namespace']}/{pod['name']} has not started: {pod['status']}"
        ) from None
    program = options.command[0]
    sys.stdout.flush()
    try:
        launch.enter(entry["plan"])
    except OSError as error:
        raise CommandFailed(f"pod {pod['namespace']}/{pod['name']} is gone: {error}", status=125) from None
    terminal = {k: v for k, v in os.environ.items() if k == "TERM"}
    os.environ.clear()
    os.environ.update(terminal | entry["env"])
    try:
        os.execvp(program, options.command)  # noqa: S606
    except OSError as error:
        status = 127 if isinstance(error, FileNotFoundError) else 126
        raise CommandFailed(f"{program}: {error.strerror}", status=status) from None
