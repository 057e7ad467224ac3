"""What one pod may take of the agent that answers its questions: places at name servers, TCP connections."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

import dns.message
import dns.opcode
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ebpf.capture.pod import EnrolledPod, PodNetwork
from ebpf.dns import Address, DnsSockets, Question
from hbone.spiffe import SpiffeId
from tests.unit.state.builders import snapshot
from ztunnel.dns import wire
from ztunnel.dns.lookup import Names
from ztunnel.dns.server import CONNECTIONS_OF_A_POD, OUTSTANDING_OF_A_POD, DnsServer
from ztunnel.dns.upstream import Upstream
from ztunnel.enrol.pod import Pod
from ztunnel.enrol.settings import CaptureSettings
from ztunnel.state.snapshot import Snapshot

pytestmark = pytest.mark.trio
_IP_RECVORIGDSTADDR = 20
PATIENCE = 60.0


class Slow(Upstream):
    """A name server that takes its time: nothing is answered before `answers` is set."""

    def __init__(self) -> None:
        self.answers = trio.Event()

    async def ask(self, query: wire.Query, asked: tuple[Address, int], netns_fd: int, *, tcp: bool) -> bytes:
        await self.answers.wait()
        return dns.message.make_response(query.message).to_wire()


@dataclass
class Store:
    snapshot: Snapshot


class PodAtLoopback:
    """A pod whose questions arrive at sockets on loopback. Datagrams are not answered: that takes a raw socket."""

    def __init__(self, tag: int) -> None:
        udp, tcp = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
        udp.setsockopt(socket.SOL_IP, _IP_RECVORIGDSTADDR, 1)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for one in (udp, tcp):
            one.bind(("127.0.0.1", 0))
            one.setblocking(False)
        tcp.listen(512)
        self.udp, self.tcp = udp.getsockname(), tcp.getsockname()
        self.sockets = DnsSockets(udp, tcp, {})
        self._netns = os.open("/proc/self/ns/net", os.O_RDONLY)
        network = PodNetwork(self._netns, (ip_address("10.0.0.1"),))
        enrolled = EnrolledPod(tag, tag, tcp, tcp, tcp, network, self.sockets)
        identity = SpiffeId("cluster.local", "shop", "web")
        self.pod = Pod(
            "uid", "web", "shop", "web", (0, tag), enrolled, tag, tag, identity, 0, CaptureSettings()
        )

    def close(self) -> None:
        self.sockets.close()
        os.close(self._netns)


def question(number: int) -> bytes:
    one = dns.message.make_query(f"q{number}.example.com", "A")
    one.id = number
    return one.to_wire()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.sleep(0.01)


async def ask_tcp(stream: trio.SocketStream, number: int) -> None:
    data = question(number)
    await stream.send_all(struct.pack("!H", len(data)) + data)


async def ask_udp(pod: PodAtLoopback, count: int, taken: Callable[[], int]) -> None:
    """One after the other, so that none is lost in a full buffer."""
    before = taken()
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        for number in range(count):
            client.sendto(question(number), pod.udp)
            await until(lambda number=number: taken() > before + number)


async def test_a_pod_has_so_many_places_at_name_servers_and_others_have_theirs() -> None:
    slow = Slow()
    server = DnsServer(Store(snapshot()), Names("cluster.local"), network="", upstream=slow)
    greedy, modest = PodAtLoopback(1), PodAtLoopback(2)

    def taken() -> int:
        return server.outstanding + server.counts.dropped["too_many"]

    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        server.serve(greedy.pod)
        server.serve(modest.pod)
        await ask_udp(greedy, OUTSTANDING_OF_A_POD + 10, taken)
        assert server.outstanding == OUTSTANDING_OF_A_POD
        assert server.counts.dropped["too_many"] == 10
        assert server.counts.answers["agent", "SERVFAIL"] == 10
        await ask_udp(modest, 5, taken)
        assert server.outstanding == OUTSTANDING_OF_A_POD + 5
        assert server.counts.dropped["too_many"] == 10
        slow.answers.set()
        await until(lambda: server.outstanding == 0)
        assert server.counts.answers["upstream", "NOERROR"] == OUTSTANDING_OF_A_POD + 5
        nursery.cancel_scope.cancel()
    greedy.close()
    modest.close()


async def test_a_question_waits_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed agent had taken and not answered would be lost; the queue outlives it in the fd store."""
    server = DnsServer(Store(snapshot()), Names("cluster.local"), network="", upstream=Slow())
    pod = PodAtLoopback(1)
    copies = pod.sockets.copy()
    answered: list[tuple[bytes, bool]] = []

    def look(_: DnsSockets, question: Question, answer: bytes) -> bool:
        answered.append((answer[:2], waits(copies)))
        return True

    monkeypatch.setattr(DnsSockets, "answer", look)
    one = dns.message.make_query("web.shop", "A")
    one.id = 7
    one.set_opcode(dns.opcode.NOTIFY)  # refused, so answered without a name server
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        server.serve(pod.pod)
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.sendto(one.to_wire(), pod.udp)
            client.sendto(one.to_wire(), pod.udp)
        await until(lambda: len(answered) == 2 and not waits(copies))
        assert answered == [(b"\0\7", True)] * 2
        nursery.cancel_scope.cancel()
    copies.close()
    pod.close()


def waits(sockets: DnsSockets) -> bool:
    """Whether a question does."""
    return bool(select.select([sockets.udp], [], [], 0)[0])


async def test_a_pod_has_so_many_connections_and_one_that_ends_makes_room() -> None:
    slow = Slow()
    server = DnsServer(Store(snapshot()), Names("cluster.local"), network="", upstream=slow)
    pod, other = PodAtLoopback(1), PodAtLoopback(2)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        server.serve(pod.pod)
        server.serve(other.pod)
        held = [await trio.open_tcp_stream(*pod.tcp) for _ in range(CONNECTIONS_OF_A_POD)]
        for number, stream in enumerate(held):
            await ask_tcp(stream, number)
        await until(lambda: server.outstanding == CONNECTIONS_OF_A_POD)
        refused = await trio.open_tcp_stream(*pod.tcp)
        with trio.fail_after(PATIENCE):
            assert await refused.receive_some(1) == b"", "closed, unanswered"
        assert server.counts.dropped["connections"] == 1
        elsewhere = await trio.open_tcp_stream(*other.tcp)
        await ask_tcp(elsewhere, 1)
        await until(lambda: server.outstanding == CONNECTIONS_OF_A_POD + 1)
        slow.answers.set()
        await until(lambda: server.outstanding == 0)
        for stream in held:
            await stream.aclose()
        await wait_all_tasks_blocked()

        async def answered() -> bool:
            async with await trio.open_tcp_stream(*pod.tcp) as again:
                await ask_tcp(again, 7)
                with trio.fail_after(PATIENCE):
                    return bool(await again.receive_some(2))

        with trio.fail_after(PATIENCE):
            while not await answered():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    pod.close()
    other.close()
