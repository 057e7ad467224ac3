"""`ambientctl COMMAND`: reads the command line and calls the command.

Modules of commands are imported when they are needed: `exec` runs for every command in a pod, and should
not pay for what `up` needs.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

from daemonset.ctl.errors import CommandFailed
from daemonset.local.names import DEFAULT_MESH, is_mesh_name

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its status."""
    words = list(sys.argv[1:] if argv is None else argv)
    command: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]
    options = parser().parse_args(words)
    options.command = command
    try:
        if not is_mesh_name(options.mesh):
            raise CommandFailed(
                f"mesh name {options.mesh!r}: use up to 24 lower-case letters, digits and dashes"
            )
        sys.exit(_run(options))
    except CommandFailed as failure:
        for line in failure.lines:
            print(f"ambientctl: {line}", file=sys.stderr)
        sys.exit(failure.status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _run(options: argparse.Namespace) -> int:
    module, _, function = options.run.partition(":")
    run: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(module), function)
    return run(options)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="ambientctl", description="Runs and inspects a local ambient mesh.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_life(commands)
    _add_pods(commands)
    _add_inspection(commands)
    return top


def _command(commands: Subparsers, name: str, run: str, text: str) -> argparse.ArgumentParser:
    one = commands.add_parser(name, help=text, description=text)
    one.add_argument("--mesh", default=os.environ.get("AMBIENT_MESH", DEFAULT_MESH), help="name of the mesh")
    one.set_defaults(run=f"daemonset.ctl.{run}")
    return one


def _add_life(commands: Subparsers) -> None:
    up = _command(commands, "up", "up:run", "start a mesh from manifests, or apply changed ones to it")
    up.add_argument("path", metavar="FILE|DIR", help="manifests: *.yaml, *.yml, *.json")
    up.add_argument("--nodes", type=int, help="number of nodes (default: those named in manifests, else 2)")
    up.add_argument(
        "--no-mesh", action="store_true", help="cluster network only: no agents, no control plane"
    )
    up.add_argument(
        "--timeout", type=float, default=60.0, help="seconds to wait for pods to be ready (0: none)"
    )
    up.add_argument("-q", "--quiet", action="store_true", help="say nothing unless something is wrong")
    down = _command(commands, "down", "down:run", "stop a mesh and remove all traces of it")
    down.add_argument("--all", action="store_true", help="every mesh on this machine")
    upgrade = _command(
        commands, "upgrade", "upgrade:run", "replace agents by freshly started ones; connections go on"
    )
    upgrade.add_argument("nodes", metavar="NODE", nargs="*", help="nodes (default: all, one after the other)")
    status = _command(commands, "status", "status:run", "show nodes, pods and services")
    status.add_argument("--json", action="store_true", help="as JSON")


def _add_pods(commands: Subparsers) -> None:
    run = _command(
        commands, "exec", "execute:run", "run a program in a pod: exec POD [-c CONTAINER] -- PROGRAM"
    )
    run.add_argument(
        "pod", metavar="POD", help="NAMESPACE/NAME, or NAME; a Deployment's name is its first pod"
    )
    run.add_argument("-c", "--container", default="", help="container (default: the first)")
    run.add_argument("-n", "--namespace", default="", help="namespace of NAME")
    run.add_argument(
        "-i", "-t", action="store_true", help="accepted for habit's sake: the terminal is always passed on"
    )
    logs = _command(commands, "logs", "logs:run", "show a log")
    logs.add_argument("what", metavar="POD|ztunnel/NODE|istiodlite|supervisor|dns/NODE")
    logs.add_argument("-c", "--container", default="", help="container (default: the first)")
    logs.add_argument("-n", "--namespace", default="", help="namespace of POD")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as it grows")
    logs.add_argument("--tail", type=int, default=-1, help="only the last lines")


def _add_inspection(commands: Subparsers) -> None:
    explain = _command(commands, "explain", "inspect:explain", "say what becomes of a connection, and why")
    explain.add_argument("--from", dest="source", metavar="POD", required=True, help="NAMESPACE/NAME")
    explain.add_argument("--to", dest="target", metavar="HOST:PORT", required=True, help="service or address")
    explain.add_argument("-n", "--namespace", default="", help="namespace of POD")
    explain.add_argument("--json", action="store_true", help="as JSON")
    resolve = _command(commands, "resolve", "inspect:resolve", "say what a pod is told under a name")
    resolve.add_argument("--from", dest="source", metavar="POD", required=True, help="NAMESPACE/NAME")
    resolve.add_argument("name", metavar="NAME", help="host name, as the pod would look it up")
    resolve.add_argument("-n", "--namespace", default="", help="namespace of POD")
    resolve.add_argument("--json", action="store_true", help="as JSON")
    analyze = _command(
        commands, "analyze", "analyze:run", "say what is wrong with manifests before they are applied"
    )
    analyze.add_argument("path", metavar="FILE|DIR", help="manifests: *.yaml, *.yml, *.json")
    analyze.add_argument(
        "--metrics",
        action="append",
        default=[],
        metavar="FILE",
        help="metrics page of an agent (curl NODE:15020/metrics), to find callers that STRICT would refuse; repeat",
    )
    analyze.add_argument("--json", action="store_true", help="as JSON")
    reasons = _command(commands, "reasons", "reasons:run", "say what a reason in a log or metric means")
    reasons.add_argument("slug", nargs="?", default="", metavar="REASON", help="only this one")
    reasons.add_argument("--markdown", action="store_true", help="as the page docs/reasons.md")
    for name, text in (
        ("config", "everything that the agents know, as JSON"),
        ("workloads", "workloads that the agents know"),
        ("services", "services that the agents know"),
        ("policies", "policies that the agents know"),
        ("connections", "connections that are open now"),
    ):
        one = _command(commands, name, f"inspect:{name}", text)
        one.add_argument("--node", default="", help="ask this node's agent only")
        one.add_argument("--json", action="store_true", help="as JSON")


if __name__ == "__main__":
    main()
