"""Starts the agent: configuration, capabilities, ports, capture (with its self-test), engine; then `agent`."""

from __future__ import annotations

import functools
import logging
import os
from datetime import UTC, datetime
from pathlib import Path

import trio

from ebpf.capture import Capture
from ebpf.errors import CaptureError, CaptureReason
from ebpf.fdstore import FdStore
from hbone.engine import Engine
from ztunnel import pages, parts
from ztunnel.agent import Agent
from ztunnel.capabilities import cgroup2_mount, missing_capabilities
from ztunnel.config import Config
from ztunnel.filelimit import FEW, raise_file_limit
from ztunnel.logs import LineWriter, fields

__all__ = ["StartError", "cgroup_of", "check_capabilities", "run"]

_log = logging.getLogger("ztunnel.app")


class StartError(Exception):
    """The agent cannot start; one line with advice."""


def cgroup_of(config: Config) -> Path | None:
    """The cgroup2 directory to attach to; None if there is none."""
    return config.cgroup or cgroup2_mount(Path("/proc/mounts").read_text())


def check_capabilities() -> None:
    """Raise StartError unless the process may capture connections."""
    missing = missing_capabilities(Path("/proc/self/status").read_text())
    if missing:
        raise StartError(
            f"capabilities missing: {', '.join(missing)}; run as root or grant them in the pod spec"
        )


def check_alone(config: Config) -> None:
    """Raise CaptureError if another agent works with the same pins, and is not to be succeeded: each would release the
    other's pods. Where PID namespaces hide which processes live, nobody can tell."""
    others = [] if config.takeover else Capture.agents_at_work(config.pin_dir, certain=True)
    if others:
        raise CaptureError(
            CaptureReason.AGENT_AT_WORK,
            f"an agent captures with {config.pin_dir} (process {', '.join(map(str, others))})",
            "give this one an AMBIENT_PIN_DIR and AMBIENT_CGROUP of its own, or AMBIENT_TAKEOVER=true to succeed that one",
        )


async def run(config: Config, writer: LineWriter, version: str) -> None:
    """Start the agent and stay until it is told to leave; raises StartError, CaptureError or BindError."""
    began = datetime.now(UTC)
    limit = raise_file_limit()
    check_capabilities()
    listeners = pages.open_ports(config)
    check_alone(config)
    opening = functools.partial(
        Capture.open,
        cgroup=cgroup_of(config),
        pin_dir=config.pin_dir,
        agent_pid=os.getpid(),
        choice=config.capture,
    )
    capture = await trio.to_thread.run_sync(opening)
    if config.fd_store is not None:
        capture.use_store(FdStore(config.fd_store))
    try:
        engine = Engine(parts.engine_config(config))
        try:
            agent = Agent(config, capture=capture, engine=engine, writer=writer, version=version)
            took = (datetime.now(UTC) - began).total_seconds()
            _log.info(
                "agent started",
                extra=fields(
                    version=version,
                    node=config.node_name,
                    capture=capture.variant,
                    records="ipsec-mb" if engine.uses_ipsec_mb else "OpenSSL",
                    took=f"{took:.2f}s",
                ),
            )
            if limit < FEW:
                _log.warning(
                    "few descriptors: raise the hard limit (ulimit -Hn, LimitNOFILE) or give CAP_SYS_RESOURCE",
                    extra=fields(limit=limit, connections=limit // 2),
                )
            await agent.run(listeners)
        finally:
            engine.stop()
    finally:
        capture.close()
