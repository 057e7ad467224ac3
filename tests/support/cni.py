"""Istio's CNI agent as far as a ztunnel sees it: the listening side of ZDS, with that agent's habits.

It sends an Add or Keep for each pod it knows when a ztunnel connects, then SnapshotSent; afterwards Adds go to
the newest connection only and Dels to all. One request is outstanding at a time, answered within five seconds;
between requests it reads for a moment to see whether the other end is still there.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path

from istiodlite.api import zds_pb2

ACCEPT = 60.0
ANSWER = 30.0
"""Istio's is 5 s; a loaded test machine gets more."""
ALIVE = 0.01


@dataclass(frozen=True)
class CniPod:
    """`netns` None: the agent restarted and does not know the namespace, so it asks to keep the pod."""

    uid: str
    name: str
    namespace: str
    service_account: str
    netns: Path | None

    def request(self) -> zds_pb2.WorkloadRequest:
        if self.netns is None:
            return zds_pb2.WorkloadRequest(keep=zds_pb2.KeepWorkload(uid=self.uid))
        info = zds_pb2.WorkloadInfo(
            name=self.name, namespace=self.namespace, service_account=self.service_account
        )
        return zds_pb2.WorkloadRequest(add=zds_pb2.AddWorkload(uid=self.uid, workload_info=info))


@dataclass
class Connection:
    """One ztunnel."""

    sock: socket.socket

    def ask(self, request: zds_pb2.WorkloadRequest, netns: Path | None = None) -> str | None:
        """The error of the Ack, empty for success; None when the other end hung up instead of answering."""
        if netns is None:
            self.sock.send(request.SerializeToString())
        else:
            with netns.open("rb") as file:
                socket.send_fds(self.sock, [request.SerializeToString()], [file.fileno()])
        packet = self.sock.recv(1024)
        if not packet:
            return None
        response = zds_pb2.WorkloadResponse.FromString(packet)
        assert response.WhichOneof("payload") == "ack", response
        return response.ack.error

    def alive(self) -> bool:
        """As the agent's liveness probe: a short read that has to find nothing."""
        self.sock.settimeout(ALIVE)
        try:
            assert self.sock.recv(1024) == b"", "an answer without a question"
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(ANSWER)
        return False


@dataclass
class CniAgent:
    """Listens at `path`; `pods` by uid is what the next snapshot names."""

    path: Path
    pods: dict[str, CniPod] = field(default_factory=dict)
    connections: list[Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self.path))
        self._listener.listen(5)
        self._listener.settimeout(ACCEPT)

    def greet(self) -> Connection:
        """The next ztunnel, before it is told anything."""
        sock, _ = self._listener.accept()
        sock.settimeout(ANSWER)
        assert zds_pb2.ZdsHello.FromString(sock.recv(1024)).version == zds_pb2.V1
        return Connection(sock)

    def accept(self) -> list[str | None]:
        """The next ztunnel gets the snapshot; its answers, the last for SnapshotSent."""
        connection = self.greet()
        self.connections.append(connection)
        answers = [connection.ask(pod.request(), pod.netns) for pod in self.pods.values()]
        sent = zds_pb2.WorkloadRequest(snapshot_sent=zds_pb2.SnapshotSent())
        return [*answers, connection.ask(sent)]

    def add(self, pod: CniPod) -> str | None:
        self.pods[pod.uid] = pod
        return self.connections[-1].ask(pod.request(), pod.netns)

    def delete(self, uid: str) -> list[str | None]:
        del self.pods[uid]
        request = zds_pb2.WorkloadRequest()
        getattr(request, "del").uid = uid  # a keyword of Python
        return [connection.ask(request) for connection in self.connections]

    def close(self) -> None:
        """As the process ends: ztunnels see the end of the stream."""
        for connection in self.connections:
            connection.sock.close()
        self.connections.clear()
        self._listener.close()
        self.path.unlink(missing_ok=True)
