"""`ambientctl down`."""

import argparse
import contextlib
import os
import select

from daemonset.ctl.errors import CommandFailed
from daemonset.ctl.state import require_root
from daemonset.local import cleanup
from daemonset.local.cgroups import NoCgroup2
from daemonset.local.control import NoSupervisor, ask
from daemonset.local.layout import Layout

GOODBYE_SECONDS = 8.0


def run(options: argparse.Namespace) -> int:
    """Stops the mesh and removes all that carries its name."""
    require_root("down")
    try:
        for mesh in cleanup.meshes() if options.all else [options.mesh]:
            _down(mesh)
    except NoCgroup2 as error:
        raise CommandFailed(str(error)) from None
    return 0


def _down(mesh: str) -> None:
    with cleanup.exclusive():
        stop_supervisor(mesh)
        try:
            found = cleanup.clean(mesh)
        except OSError as error:
            raise CommandFailed(f"mesh {mesh} is not all gone: {error}") from None
    print(f"mesh {mesh}: removed {found}" if found else f"mesh {mesh}: there was nothing to remove")


def stop_supervisor(mesh: str) -> None:
    """Asks the supervisor to end and waits for it; what it does not do, cleaning does."""
    try:
        pid = ask(Layout(mesh).control, {"command": "stop"})
        fd = os.pidfd_open(int(pid))
    except (NoSupervisor, OSError):
        return
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        select.select([fd], [], [], GOODBYE_SECONDS)
