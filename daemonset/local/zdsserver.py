"""The enrolment socket of one node: the I/O around `zds.Session`."""

import array
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import trio

from daemonset.local.zds import PACKET_LIMIT, Added, Event, PodIdentity, ProtocolError, Session

log = logging.getLogger(__name__)
ANSWER_SECONDS = 15.0


class ZdsServer:
    """Listens for the node's agent. `wanted()`: pods to be enrolled, by uid; `netns(uid)`: their namespaces.

    The newest connection gets everything; older ones (an agent that is being replaced) are only told of
    pods that leave, until they are the newest again. `happened` gets the newest agent's answers, `connected` changes of the connection.
    """

    def __init__(
        self,
        path: Path,
        wanted: Callable[[], Mapping[str, PodIdentity]],
        netns: Callable[[str], Path | None],
        happened: Callable[[Event], None],
        connected: Callable[[bool], None],
    ) -> None:
        self._path = path
        self._wanted, self._netns = wanted, netns
        self._happened, self._connected = happened, connected
        self._connections: list[_Connection] = []

    def concerns(self, uid: str) -> bool:
        """Whether an agent has the pod, or is being asked to let it go."""
        return any(c.session.concerns(uid) for c in self._connections[-1:])

    def serves(self, pid: int) -> bool:
        """Whether this process is the newest agent, and knows all pods."""
        return any(c.pid == pid and c.session.live for c in self._connections[-1:])

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accepts agents until cancelled."""
        self._path.unlink(missing_ok=True)
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            await listener.bind(str(self._path))
            listener.listen(8)
            task_status.started()
            async with trio.open_nursery() as nursery:
                while True:
                    accepted, _ = await listener.accept()
                    nursery.start_soon(self._converse, accepted)

    def poke(self) -> None:
        """Something about `wanted()` changed."""
        for connection in self._connections:
            connection.changed.set()

    def repeat(self, uid: str) -> None:
        """Ask again about a pod whose Add failed."""
        for connection in self._connections[-1:]:
            connection.again.add(uid)
            connection.changed.set()

    async def _converse(self, accepted: trio.socket.SocketType) -> None:
        connection = _Connection(accepted)
        self._connections.append(connection)
        try:
            with accepted, connection.patience:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._tell_changes, connection)
                    await self._listen(connection)
                    nursery.cancel_scope.cancel()
            if connection.patience.cancelled_caught:
                log.warning("%s: no answer for %g s, connection closed", self._path, ANSWER_SECONDS)
        except* (OSError, ProtocolError) as errors:
            log.warning("%s: %s", self._path, "; ".join(str(e) for e in errors.exceptions))
        finally:
            self._connections.remove(connection)
            if not self._connections:
                self._connected(False)
            for heir in self._connections[-1:]:
                heir.changed.set()

    async def _listen(self, connection: "_Connection") -> None:
        while packet := await connection.socket.recv(PACKET_LIMIT + 1):
            connection.patience.deadline = float("inf")
            newest = connection is self._connections[-1]
            event = connection.session.receive(packet)
            if event is None:
                self._connected(True)
            elif newest:
                if isinstance(event, Added) and not event.error:
                    connection.again.discard(event.uid)
                self._happened(event)
            connection.changed.set()

    async def _tell_changes(self, connection: "_Connection") -> None:
        while True:
            await connection.changed.wait()
            connection.changed = trio.Event()
            wanted = self._wanted()
            newest = connection is self._connections[-1]
            if not newest:
                wanted = connection.session.departures(wanted)
            request = connection.session.next_request(wanted, frozenset(connection.again), complete=newest)
            if request is not None:
                connection.again.discard(request.netns_of)
                connection.patience.deadline = trio.current_time() + ANSWER_SECONDS
                await self._send(connection.socket, request.packet, request.netns_of)

    async def _send(self, sock: trio.socket.SocketType, packet: bytes, netns_of: str) -> None:
        with contextlib.ExitStack() as stack:
            ancillary = []
            if netns_of:
                path = self._netns(netns_of)
                fd = os.open(path or "/dev/null", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            await sock.sendmsg([packet], ancillary)


class _Connection:
    def __init__(self, accepted: trio.socket.SocketType) -> None:
        self.socket = accepted
        credentials = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid: int = struct.unpack("=iII", credentials)[0]
        self.session = Session()
        self.changed = trio.Event()
        self.again: set[str] = set()
        self.patience = trio.CancelScope()
