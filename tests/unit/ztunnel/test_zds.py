"""ZDS over a real SOCK_SEQPACKET connection, with file descriptors."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from istiodlite.api import zds_pb2
from ztunnel.enrol import zds
from ztunnel.enrol.settings import CaptureSettings


def add_packet(uid: str = "u1", *, info: bool = True) -> bytes:
    add = zds_pb2.AddWorkload(uid=uid)
    if info:
        add.workload_info.CopyFrom(
            zds_pb2.WorkloadInfo(name="web-1", namespace="shop", service_account="web")
        )
    return zds_pb2.WorkloadRequest(add=add).SerializeToString()


def delete_packet(uid: str) -> bytes:
    # Field 2 of DelWorkload within field 2 of WorkloadRequest, by hand: this is what Istio sends.
    inner = b"\x12" + bytes([len(uid)]) + uid.encode()
    return b"\x12" + bytes([len(inner)]) + inner


def test_delete_has_its_uid_in_field_two() -> None:
    assert zds.decode(delete_packet("pod-7"), []) == zds.Delete("pod-7")


def test_settings_come_with_the_pod_and_istios_agent_sends_none() -> None:
    told = zds.decode(add_packet(), [3])
    assert isinstance(told, zds.Add)
    assert told.settings is None
    message = zds_pb2.WorkloadRequest.FromString(add_packet())
    message.add.capture.CopyFrom(
        zds_pb2.PodCapture(
            exclude_inbound_ports=[80], only_included_inbound=True, dns_capture=False, accelerate=True
        )
    )
    told = zds.decode(message.SerializeToString(), [3])
    assert isinstance(told, zds.Add)
    wanted = CaptureSettings(frozenset({80}), include_inbound=frozenset(), dns_capture=False, accelerate=True)
    assert told.settings == wanted
    message.add.capture.exclude_outbound_ports.append(65536)
    with pytest.raises(zds.ProtocolError, match="port"):
        zds.decode(message.SerializeToString(), [3])


def test_hello_says_version_one() -> None:
    assert zds.hello() == b"\x08\x01"


def test_an_ack_without_error_is_what_istio_takes_for_success() -> None:
    assert zds_pb2.WorkloadResponse.FromString(zds.ack()).WhichOneof("payload") == "ack"
    assert zds.ack() == b"\x0a\x00"


def test_a_long_error_fits_the_readers_buffer() -> None:
    packet = zds.ack("é" * 5000)
    assert len(packet) <= 1024
    assert zds_pb2.WorkloadResponse.FromString(packet).ack.error.startswith("ééé")


@pytest.mark.parametrize(
    ("packet", "fds"),
    [
        (add_packet(), []),
        (add_packet(), [3, 4]),
        (add_packet(info=False), [3]),
        (delete_packet("u"), [3]),
        (zds_pb2.WorkloadRequest(keep=zds_pb2.KeepWorkload(uid="u")).SerializeToString(), [3]),
        (b"\xff\xff\xff", []),
        (b"\x0a\x00\x99", []),
        (b"", []),
    ],
)
def test_what_breaks_the_protocol_is_refused(packet: bytes, fds: list[int]) -> None:
    with pytest.raises(zds.ProtocolError):
        zds.decode(packet, fds)


@given(st.binary(max_size=200), st.lists(st.integers(min_value=3, max_value=9), max_size=2))
def test_any_packet_is_a_request_or_a_protocol_error(packet: bytes, fds: list[int]) -> None:
    try:
        request = zds.decode(packet, fds)
    except zds.ProtocolError:
        return
    assert isinstance(request, zds.Add | zds.Keep | zds.Delete | zds.Snapshot)


class Handler:
    """Writes requests down; answers with `errors` by uid."""

    def __init__(self) -> None:
        self.requests: list[zds.Request] = []
        self.sessions: list[str] = []
        self.errors: dict[str, str] = {}

    def connected(self) -> None:
        self.sessions.append("connected")

    def disconnected(self) -> None:
        self.sessions.append("disconnected")

    async def handle(self, request: zds.Request) -> str:
        self.requests.append(request)
        return self.errors.get(getattr(request, "uid", ""), "")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[Path, socket.socket]]:
    path = tmp_path / "zds.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(path))
        sock.listen()
        sock.setblocking(False)
        yield path, sock


async def accept(listener: socket.socket) -> trio.socket.SocketType:
    with trio.fail_after(60):
        while True:
            try:
                return trio.socket.from_stdlib_socket(listener.accept()[0])
            except BlockingIOError:
                await trio.lowlevel.wait_readable(listener)


@pytest.mark.trio
async def test_a_session_acks_each_request_in_order_and_owns_the_namespace_it_got(
    listener: tuple[Path, socket.socket],
) -> None:
    handler = Handler()
    handler.errors["bad"] = "no room"
    read, write = os.pipe()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(zds.ZdsClient(listener[0], handler, draw=lambda: 0.0).run)
            peer = await accept(listener[1])
            assert await peer.recv(100) == zds.hello()
            answers = []
            for uid in ("good", "bad"):
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, write.to_bytes(4, "little"))]
                await peer.sendmsg([add_packet(uid)], rights)
                answers.append(zds_pb2.WorkloadResponse.FromString(await peer.recv(1024)).ack.error)
            for packet in (
                zds_pb2.WorkloadRequest(snapshot_sent=zds_pb2.SnapshotSent()).SerializeToString(),
                delete_packet("good"),
            ):
                await peer.send(packet)
                answers.append(zds_pb2.WorkloadResponse.FromString(await peer.recv(1024)).ack.error)
            nursery.cancel_scope.cancel()
    assert answers == ["", "no room", "", ""]
    first, _, snapshot, gone = handler.requests
    assert (snapshot, gone) == (zds.Snapshot(), zds.Delete("good"))
    assert isinstance(first, zds.Add)
    assert (first.name, first.namespace, first.service_account) == ("web-1", "shop", "web")
    os.write(first.netns_fd, b"x")
    assert os.read(read, 1) == b"x"
    assert not os.get_inheritable(first.netns_fd)
    for request in handler.requests:
        if isinstance(request, zds.Add):
            os.close(request.netns_fd)
    os.close(read)
    os.close(write)


@pytest.mark.trio
async def test_a_protocol_error_ends_the_session_and_a_new_one_begins(
    listener: tuple[Path, socket.socket],
) -> None:
    handler = Handler()
    client = zds.ZdsClient(listener[0], handler, draw=lambda: 0.0)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            peer = await accept(listener[1])
            await peer.recv(100)
            await peer.send(add_packet())
            assert await peer.recv(100) == b""
            again = await accept(listener[1])
            assert await again.recv(100) == zds.hello()
            nursery.cancel_scope.cancel()
    assert client.errors == 1
    assert handler.requests == []
    assert handler.sessions[:3] == ["connected", "disconnected", "connected"]


@pytest.mark.trio
async def test_descriptors_of_a_refused_packet_are_closed(listener: tuple[Path, socket.socket]) -> None:
    read, write = os.pipe()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(zds.ZdsClient(listener[0], Handler(), draw=lambda: 0.0).run)
            peer = await accept(listener[1])
            await peer.recv(100)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, write.to_bytes(4, "little") * 2)]
            await peer.sendmsg([add_packet()], rights)
            os.close(write)
            assert await peer.recv(100) == b""
            # Every copy of the pipe's writing end is gone: reading it reports the end.
            assert await trio.to_thread.run_sync(os.read, read, 1) == b""
            nursery.cancel_scope.cancel()
    os.close(read)


@pytest.mark.trio
async def test_a_socket_that_is_not_there_yet_is_tried_until_it_is(tmp_path: Path) -> None:
    path, handler = tmp_path / "late.sock", Handler()
    with trio.fail_after(60), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as late:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(zds.ZdsClient(path, handler, draw=lambda: 0.0).run)
            await trio.testing.wait_all_tasks_blocked(0.05)
            late.bind(str(path))
            late.listen()
            late.setblocking(False)
            peer = await accept(late)
            assert await peer.recv(100) == zds.hello()
            nursery.cancel_scope.cancel()
