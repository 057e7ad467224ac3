"""ZDS: the socket on which a CNI agent tells which pods to enrol (protocol istio.workload.zds, version 1).

SOCK_SEQPACKET, one protobuf message a packet; the agent connects and says Hello, the other side sends
requests one by one and waits for the Ack of each. AddWorkload carries the pod's network namespace as the
only file descriptor. `decode` and `ack` are pure; `ZdsClient` is the trio shell around them.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import trio
from google.protobuf.message import DecodeError

from istiodlite.api import zds_pb2
from ztunnel.backoff import Backoff
from ztunnel.enrol.settings import CaptureSettings
from ztunnel.logs import fields

__all__ = [
    "Add",
    "Delete",
    "Handler",
    "Keep",
    "ProtocolError",
    "Request",
    "Snapshot",
    "ZdsClient",
    "ack",
    "decode",
]

_log = logging.getLogger("ztunnel.inpod")

_PACKET = 1024
_FDS = 8


class ProtocolError(Exception):
    """The other side does not speak ZDS as agreed."""


@dataclass(frozen=True, slots=True)
class Add:
    """Enrol this pod. `netns_fd` belongs to whoever gets the request. `settings`: None where the other side
    does not tell (Istio's)."""

    uid: str
    name: str
    namespace: str
    service_account: str
    netns_fd: int
    settings: CaptureSettings | None = None


@dataclass(frozen=True, slots=True)
class Keep:
    """The pod is still there; if it is enrolled it stays so."""

    uid: str


@dataclass(frozen=True, slots=True)
class Delete:
    """The pod is gone or leaves the mesh."""

    uid: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every pod has been named: what was not is gone."""


Request: TypeAlias = Add | Keep | Delete | Snapshot


def hello() -> bytes:
    """The first packet of a connection."""
    return zds_pb2.ZdsHello(version=zds_pb2.V1).SerializeToString()


def ack(error: str = "") -> bytes:
    """The answer to one request; empty: success. Cut so that it fits the reader's buffer."""
    text = error.encode()[: _PACKET - 64].decode(errors="ignore")
    return zds_pb2.WorkloadResponse(ack=zds_pb2.Ack(error=text)).SerializeToString()


def decode(packet: bytes, fds: Sequence[int]) -> Request:
    """One packet and the descriptors that came with it; raises ProtocolError. Never closes a descriptor."""
    try:
        message = zds_pb2.WorkloadRequest.FromString(packet)
    except DecodeError as error:
        raise ProtocolError(f"not a WorkloadRequest: {error}") from None
    kind = message.WhichOneof("payload")
    if kind == "add":
        return _decode_add(message.add, fds)
    if fds:
        raise ProtocolError(f"{kind} came with {len(fds)} file descriptors")
    if kind == "keep":
        return Keep(message.keep.uid)
    if kind == "snapshot_sent":
        return Snapshot()
    # The field is called `del`, which Python keeps for itself.
    if kind == "del":
        return Delete(getattr(message, "del").uid)
    raise ProtocolError("a request of unknown kind")


def _decode_add(add: zds_pb2.AddWorkload, fds: Sequence[int]) -> Add:
    if len(fds) != 1:
        raise ProtocolError(f"AddWorkload came with {len(fds)} file descriptors instead of one")
    if not add.HasField("workload_info"):
        raise ProtocolError("AddWorkload without workload_info")
    info = add.workload_info
    account = info.service_account or "default"
    return Add(add.uid, info.name, info.namespace, account, fds[0], _decode_settings(add))


def _decode_settings(add: zds_pb2.AddWorkload) -> CaptureSettings | None:
    if not add.HasField("capture"):
        return None
    told = add.capture
    lists = (told.exclude_inbound_ports, told.exclude_outbound_ports, told.include_inbound_ports)
    if not all(0 < port < 65536 for ports in lists for port in ports):
        raise ProtocolError("AddWorkload with a port that is none")
    return CaptureSettings(
        frozenset(told.exclude_inbound_ports),
        frozenset(told.exclude_outbound_ports),
        frozenset(told.include_inbound_ports) if told.only_included_inbound else None,
        told.bypass_inbound,
        told.dns_capture if told.HasField("dns_capture") else None,
        told.accelerate,
    )


class Handler(Protocol):
    """Who carries requests out."""

    def connected(self) -> None:
        """A new connection: a snapshot follows."""

    def disconnected(self) -> None:
        """The connection is gone; enrolled pods stay as they are."""

    async def handle(self, request: Request) -> str:
        """Carry out one request; the error for its Ack, empty for success. May raise ProtocolError."""


class ZdsClient:
    """Keeps a connection to the ZDS socket and hands requests to the handler, one at a time."""

    def __init__(self, path: Path, handler: Handler, *, draw: Callable[[], float] = random.random) -> None:
        self._path, self._handler, self._draw = path, handler, draw
        self.errors = 0

    async def run(self) -> None:
        """Connect, serve, connect again; until cancelled."""
        backoff = Backoff(first=0.01, cap=15.0)
        told = False
        while True:
            try:
                with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                    await sock.connect(str(self._path))
                    backoff.reset()
                    told = False
                    await self._session(sock)
            except ProtocolError as error:
                self.errors += 1
                _log.error("ZDS protocol error", extra=fields(error=str(error)))
                backoff.failures = max(backoff.failures, 5)
            except OSError as error:
                if not told:
                    _log.warning("no ZDS connection", extra=fields(socket=self._path, error=error.strerror))
                told = True
            await trio.sleep(backoff.next(self._draw()))

    async def _session(self, sock: trio.socket.SocketType) -> None:
        await sock.send(hello())
        _log.info("ZDS connected", extra=fields(socket=self._path))
        self._handler.connected()
        try:
            await self._serve(sock)
        finally:
            self._handler.disconnected()

    async def _serve(self, sock: trio.socket.SocketType) -> None:
        while True:
            packet, fds = await _receive(sock)
            if not packet and not fds:
                return
            try:
                request = decode(packet, fds)
            except ProtocolError:
                _close(fds)
                raise
            await sock.send(ack(await self._handler.handle(request)))


async def _receive(sock: trio.socket.SocketType) -> tuple[bytes, list[int]]:
    """One packet and its descriptors (close-on-exec); raises ProtocolError when something was cut off."""
    fds = array.array("i")
    space = socket.CMSG_SPACE(_FDS * fds.itemsize)
    packet, ancillary, flags, _ = await sock.recvmsg(_PACKET, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        _close(fds)
        raise ProtocolError("a packet was too large")
    return packet, list(fds)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
