"""`ambientctl up`: check everything, then start the mesh or hand the changed manifests to it."""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daemonset.ctl.down import stop_supervisor
from daemonset.ctl.errors import CommandFailed
from daemonset.ctl.state import require_root
from daemonset.local import cleanup, preflight
from daemonset.local.addresses import MESHES
from daemonset.local.cgroups import NoCgroup2
from daemonset.local.compile import compile_objects
from daemonset.local.control import NoSupervisor, Refused, ask
from daemonset.local.desired import BadManifests, Desired
from daemonset.local.layout import Layout
from daemonset.local.names import RUN_ROOT
from daemonset.local.programs import program_env
from istiodlite.manifests import load_folder

SIZE_LIMIT = 4 * 1024 * 1024
SHOWN_ERRORS = 20


def run(options: argparse.Namespace) -> int:
    """Status 0: all pods are ready. 1: refused, nothing changed; or not ready in time, and it says what."""
    require_root("up")
    objects = read(Path(options.path))
    desired = check(objects, options.nodes)
    say = _silent if options.quiet else _say
    for note in desired.notes:
        say(f"note: {note}")
    request = {"command": "apply", "objects": objects, "nodes": options.nodes, "wait": options.timeout}
    with cleanup.exclusive():
        try:
            fresh = _ensure_supervisor(options, say)
        except (preflight.NotPossible, NoCgroup2) as error:
            raise CommandFailed(str(error)) from None
    result = _apply(options.mesh, request, say, fresh=fresh)
    return _conclude(options, result, say)


def _say(text: str) -> None:
    print(text, flush=True)


def _silent(text: str) -> None:
    pass


def read(path: Path) -> list[Mapping[str, Any]]:
    """All objects of the file or folder; ends the command, with a line per error, if one is bad."""
    try:
        loaded, errors = load_folder(path, size_limit=SIZE_LIMIT)
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from None
    if errors:
        raise CommandFailed(*_limited([str(error) for error in errors]))
    if not loaded:
        raise CommandFailed(f"{path}: no manifests found (files called *.yaml, *.yml or *.json count)")
    return [item.body for item in loaded]


def check(objects: list[Mapping[str, Any]], nodes: int | None) -> Desired:
    """What the objects ask for; ends the command if they cannot be run."""
    if nodes is not None and not 1 <= nodes <= 100:
        raise CommandFailed("--nodes has to be from 1 to 100")
    try:
        return compile_objects(objects, nodes)
    except BadManifests as error:
        raise CommandFailed(*_limited(list(error.errors))) from None


def _limited(lines: list[str]) -> list[str]:
    more = len(lines) - SHOWN_ERRORS
    return [*lines[:SHOWN_ERRORS], f"and {more} more errors"] if more > 0 else lines


def _ensure_supervisor(options: argparse.Namespace, say: Any) -> bool:
    """Starts a supervisor unless there is one; whether it was started."""
    layout = Layout(options.mesh)
    try:
        state = ask(layout.control, {"command": "status"})
    except NoSupervisor:
        preflight.check(with_mesh=not options.no_mesh)
        if stale := cleanup.clean(options.mesh):
            say(f"removed what a killed run of mesh {options.mesh} left: {stale}")
        _start(layout, with_mesh=not options.no_mesh)
        return True
    if options.no_mesh and state["istiodlite"] is not None:
        raise CommandFailed(
            f"mesh {options.mesh} runs with agents: ambientctl down first, then up --no-mesh"
        ) from None
    if not options.no_mesh and state["istiodlite"] is None:
        say(f"note: mesh {options.mesh} was started with --no-mesh and has no agents")
    return False


def free_index() -> int:
    """The lowest mesh index that no other mesh uses."""
    used = set()
    for file in RUN_ROOT.glob("*/index"):
        text = file.read_text().strip()
        used.add(int(text) if text.isdecimal() else -1)
    index = next((i for i in range(MESHES) if i not in used), None)
    if index is None:
        raise CommandFailed(f"{MESHES} meshes run already: ambientctl down one of them first")
    return index


def _start(layout: Layout, *, with_mesh: bool) -> None:
    layout.root.mkdir(parents=True)
    layout.root.chmod(0o755)
    index = free_index()
    layout.index.write_text(f"{index}\n")
    log = layout.log("supervisor")
    log.parent.mkdir(parents=True)
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "daemonset.local.supervisor", "--mesh", layout.mesh]
    command += ["--index", str(index), "--ready-fd", str(write_end), *([] if with_mesh else ["--no-mesh"])]
    with open(log, "ab") as output, open(read_end, "rb") as ready:
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[write_end],
            start_new_session=True,
            cwd="/",
            env=os.environ | program_env(),
        )
        os.close(write_end)
        if not ready.readline():
            last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            cleanup.clean(layout.mesh)
            raise CommandFailed(f"the mesh's supervisor did not start: {last}")


def _apply(mesh: str, request: Mapping[str, Any], say: Any, *, fresh: bool) -> dict[str, Any]:
    try:
        result: dict[str, Any] = ask(Layout(mesh).control, request, say)
    except Refused as error:
        if fresh:  # nothing runs yet: leave no empty mesh behind
            with cleanup.exclusive():
                stop_supervisor(mesh)
                cleanup.clean(mesh)
        raise CommandFailed(*_limited(error.errors)) from None
    except NoSupervisor:
        raise CommandFailed(
            f"the mesh's supervisor ended unexpectedly: see {Layout(mesh).log('supervisor')}"
        ) from None
    return result


def _conclude(options: argparse.Namespace, result: Mapping[str, Any], say: Any) -> int:
    if result["problem"]:
        raise CommandFailed(result["problem"])
    if result["waiting"] and options.timeout > 0:
        raise CommandFailed(
            f"not ready after {options.timeout:g} s (ambientctl logs POD shows their output):",
            *result["waiting"],
        )
    say(f"mesh {options.mesh} is up: ambientctl status --mesh {options.mesh}")
    return 0
