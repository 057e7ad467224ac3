"""`ambientctl logs`."""

import argparse
import sys
import time
from pathlib import Path

from daemonset.ctl.errors import CommandFailed
from daemonset.ctl.state import container_of, find_pod, load
from daemonset.local.layout import Layout

_LOOK_AGAIN = 0.2


def run(options: argparse.Namespace) -> int:
    """Prints the log, and with -f what is added to it."""
    path = log_path(options)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise CommandFailed(f"{options.what} has written nothing yet ({path})") from None
    except PermissionError:
        raise CommandFailed("logs needs root: run it with sudo") from None
    with file:
        text = file.read()
        if options.tail >= 0:
            text = b"".join(text.splitlines(keepends=True)[-options.tail :] if options.tail else [])
        _write(text)
        while options.follow:
            text = file.read()
            if not text:
                if path.exists() and path.stat().st_size < file.tell():
                    file.seek(0)  # it was cut
                time.sleep(_LOOK_AGAIN)
            _write(text)
    return 0


def _write(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


def log_path(options: argparse.Namespace) -> Path:
    """The file of what the user names. Ends the command if there is no such thing."""
    layout, state = Layout(options.mesh), load(options.mesh)
    kind, _, name = options.what.partition("/")
    if options.what in ("istiodlite", "supervisor"):
        return layout.log(options.what)
    if kind in ("ztunnel", "dns") and (name in state["nodes"] or options.what not in state["pods"]):
        if name not in state["nodes"]:
            raise CommandFailed(f"there is no node {name!r}; nodes: {', '.join(state['nodes'])}")
        return layout.log(f"{kind}-{name}")
    pod = find_pod(state, options.what, options.namespace)
    container = container_of(pod, options.container)
    return layout.pod_logs(pod["namespace"], pod["name"]) / f"{container}.log"
