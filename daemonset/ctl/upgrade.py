"""`ambientctl upgrade`."""

import argparse

from daemonset.ctl.errors import CommandFailed
from daemonset.ctl.state import require_root
from daemonset.local.control import NoSupervisor, Refused, ask
from daemonset.local.layout import Layout


def run(options: argparse.Namespace) -> int:
    """Replaces the agents of the named nodes (or of all), one node after the other, without interruption."""
    require_root("upgrade")
    try:
        ask(Layout(options.mesh).control, {"command": "upgrade", "nodes": options.nodes}, print)
    except NoSupervisor:
        raise CommandFailed(
            f"there is no mesh {options.mesh}: start it with ambientctl up --mesh {options.mesh} FOLDER"
        ) from None
    except Refused as error:
        raise CommandFailed(*error.errors) from None
    return 0
