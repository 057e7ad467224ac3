"""The enrolment protocol's server side (ZDS, package istio.workload.zds). Pure.

One `Session` per connected agent. The agent says Hello; the server sends an Add for every pod that is to
be enrolled, then SnapshotSent, then Add and Del as things change. One request is outstanding at a time;
each is answered by one Ack. The network namespace travels beside an Add as a file descriptor: `Request`
says whose.
"""

import enum
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import DecodeError

from istiodlite.api import zds_pb2
from ztunnel.enrol.settings import CaptureSettings

PACKET_LIMIT = 1024


class ProtocolError(Exception):
    """The agent broke the protocol; the connection ends."""


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """What the agent is told about a pod. `capture`: what its annotations ask for."""

    uid: str
    name: str
    namespace: str
    service_account: str
    capture: CaptureSettings = field(default_factory=CaptureSettings)


@dataclass(frozen=True, slots=True)
class Request:
    """A message to send. `netns_of`: uid of the pod whose namespace goes with it, or empty."""

    packet: bytes
    netns_of: str = ""


@dataclass(frozen=True, slots=True)
class Added:
    """The agent answered an Add; `error` is empty when the pod is captured."""

    uid: str
    error: str


@dataclass(frozen=True, slots=True)
class Removed:
    """The agent answered a Del."""

    uid: str
    error: str


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """The agent knows all pods."""

    error: str


Event = Added | Removed | SnapshotTaken


class _Step(enum.Enum):
    HELLO = "hello"
    SNAPSHOT = "snapshot"
    LIVE = "live"


class Session:
    """What one agent has been told. `receive` takes its packets, `next_request` gives the next to send."""

    def __init__(self) -> None:
        self._step = _Step.HELLO
        self._outstanding: Event | None = None
        self._told: dict[str, PodIdentity] = {}

    @property
    def known(self) -> Set[str]:
        """Uids of the pods that the agent has been told to enrol."""
        return self._told.keys()

    def departures(self, wanted: Mapping[str, PodIdentity]) -> dict[str, PodIdentity]:
        """What to ask of an agent that is being replaced: to let go what is not wanted any more, nothing else."""
        return {uid: told for uid, told in self._told.items() if uid in wanted}

    @property
    def live(self) -> bool:
        """Whether the agent has acknowledged the snapshot."""
        return self._step is _Step.LIVE

    @property
    def waiting(self) -> bool:
        """Whether an answer is outstanding."""
        return self._outstanding is not None or self._step is _Step.HELLO

    def concerns(self, uid: str) -> bool:
        """Whether the agent has the pod, or is being asked to let it go."""
        asked = self._outstanding
        return uid in self.known or (isinstance(asked, Removed) and asked.uid == uid)

    def receive(self, packet: bytes) -> Event | None:
        """What a packet of the agent means; None for its Hello. Raises ProtocolError."""
        if self._step is _Step.HELLO:
            if _decode(zds_pb2.ZdsHello(), packet).version != zds_pb2.V1:
                raise ProtocolError("the agent speaks another version of the protocol")
            self._step = _Step.SNAPSHOT
            return None
        if self._outstanding is None:
            raise ProtocolError("an answer came without a question")
        response = _decode(zds_pb2.WorkloadResponse(), packet)
        if response.WhichOneof("payload") != "ack":
            raise ProtocolError("the answer is not an Ack")
        return self._answered(response.ack.error)

    def _answered(self, error: str) -> Event:
        asked, self._outstanding = self._outstanding, None
        if isinstance(asked, SnapshotTaken):
            self._step = _Step.LIVE
            return SnapshotTaken(error)
        if isinstance(asked, Removed):
            return Removed(asked.uid, error)
        assert isinstance(asked, Added)
        return Added(asked.uid, error)

    def next_request(
        self, wanted: Mapping[str, PodIdentity], again: frozenset[str] = frozenset(), *, complete: bool = True
    ) -> Request | None:
        """The next message that brings the agent closer to `wanted` (by uid); None: nothing to say now.

        A pod that is to be captured otherwise is added again. `again`: pods whose Add failed and is to be repeated.
        `complete`: `wanted` has all pods of the node, so that the agent may let go of all others at the end.
        """
        if self.waiting:
            return None
        if gone := sorted(self.known - wanted.keys()):
            return self._del(gone[0])
        for uid, identity in wanted.items():
            if self._told.get(uid) != identity or uid in again:
                return self._add(identity)
        if self._step is _Step.SNAPSHOT and complete:
            self._outstanding = SnapshotTaken("")
            return Request(zds_pb2.WorkloadRequest(snapshot_sent=zds_pb2.SnapshotSent()).SerializeToString())
        return None

    def _add(self, identity: PodIdentity) -> Request:
        self._told[identity.uid] = identity
        self._outstanding = Added(identity.uid, "")
        info = zds_pb2.WorkloadInfo(
            name=identity.name, namespace=identity.namespace, service_account=identity.service_account
        )
        add = zds_pb2.AddWorkload(uid=identity.uid, workload_info=info, capture=_capture(identity.capture))
        return Request(zds_pb2.WorkloadRequest(add=add).SerializeToString(), identity.uid)

    def _del(self, uid: str) -> Request:
        self._told.pop(uid, None)
        self._outstanding = Removed(uid, "")
        request = zds_pb2.WorkloadRequest()
        getattr(request, "del").uid = uid  # a keyword of Python
        return Request(request.SerializeToString())


def _capture(settings: CaptureSettings) -> zds_pb2.PodCapture:
    capture = zds_pb2.PodCapture(
        exclude_inbound_ports=sorted(settings.exclude_inbound),
        exclude_outbound_ports=sorted(settings.exclude_outbound),
        only_included_inbound=settings.include_inbound is not None,
        include_inbound_ports=sorted(settings.include_inbound or ()),
        bypass_inbound=settings.bypass_inbound,
        accelerate=settings.accelerate,
    )
    if settings.dns_capture is not None:
        capture.dns_capture = settings.dns_capture
    return capture


_Message = TypeVar("_Message", zds_pb2.ZdsHello, zds_pb2.WorkloadResponse)


def _decode(message: _Message, packet: bytes) -> _Message:
    if len(packet) > PACKET_LIMIT:
        raise ProtocolError("a packet is too long")
    try:
        message.ParseFromString(packet)
    except DecodeError:
        raise ProtocolError("a packet cannot be read") from None
    return message
