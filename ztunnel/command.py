"""The `ztunnel` command: serve, clean up, tell the version."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Iterator

import trio

from ebpf.capture import Capture
from ebpf.capture.agents import SEEN
from ebpf.errors import CaptureError, CaptureReason
from ebpf.fdstore import FdStore
from ztunnel import app, logs
from ztunnel.config import Config, ConfigError, describe, load
from ztunnel.enrol.source import EnrolError
from ztunnel.http1 import BindError

__all__ = ["main"]

_EXPECTED = (ConfigError, CaptureError, BindError, app.StartError, EnrolError)


def version() -> str:
    """The version of the installed distribution."""
    try:
        return importlib.metadata.version("ambientlite")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def main(argv: list[str] | None = None) -> int:
    """Run a command; exit status 0, 1 for an error (one line on stderr), 2 for wrong usage."""
    options = _parser().parse_args(argv)
    status = 0
    try:
        if options.command == "version":
            print(f"ztunnel {version()}")
        elif options.command == "cleanup":
            # Whose node it is does not matter for taking things away.
            _cleanup(load({"NODE_NAME": "-", **os.environ}))
        else:
            _serve(load(os.environ))
    except* _EXPECTED as group:
        for error in _leaves(group):
            print(f"ztunnel: {error}", file=sys.stderr)
        status = 1
    except* KeyboardInterrupt:
        status = 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ztunnel",
        description="The node agent of Ambient Lite. Without a command it serves until SIGTERM.",
        epilog=f"Settings, from the environment [default]:\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    proxy = commands.add_parser("proxy", help="serve (the arguments Istio's chart gives)")
    proxy.add_argument("kind", nargs="?", default="ztunnel", choices=["ztunnel"])
    commands.add_parser("version", help="print the version")
    commands.add_parser("cleanup", help="remove every trace of capture from this node")
    return parser


def _serve(config: Config) -> None:
    writer = logs.LineWriter(sys.stdout.fileno())
    try:
        try:
            logs.install(writer, as_json=config.log_format == "json", spec=config.log_level)
        except ValueError as error:
            raise ConfigError(f"LOG_LEVEL: {error}") from None
        trio.run(app.run, config, writer, version())
    finally:
        writer.close()


def _cleanup(config: Config) -> None:
    app.check_capabilities()
    if agents := Capture.agents_at_work(config.pin_dir):
        raise CaptureError(
            CaptureReason.AGENT_AT_WORK,
            f"an agent captures here (process {', '.join(map(str, agents))})",
            f"end it first; one that was killed counts as there for up to {SEEN} s",
        )
    # First: what it holds keeps namespaces and clients.
    kept = config.fd_store is not None and FdStore(config.fd_store).clear()
    removed = Capture.cleanup(app.cgroup_of(config), config.pin_dir)
    if kept:
        removed.append(f"listeners kept by {config.fd_store}")
    for what in removed:
        print(f"removed {what}")
    if not removed:
        print("nothing to remove")


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
