"""Name servers that answer well, badly or not at all, over real sockets."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.rrset
import pytest
import trio

from ztunnel.dns import wire
from ztunnel.dns.upstream import Upstream, UpstreamError

pytestmark = [pytest.mark.root, pytest.mark.trio]

Reply = Callable[[bytes], list[bytes]]


@pytest.fixture
def netns_fd() -> Iterator[int]:
    """This process's own."""
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    yield fd
    os.close(fd)


def query(**how: object) -> wire.Query:
    found = wire.parse(dns.message.make_query("web.example.com.", "A", **how).to_wire())  # type: ignore[arg-type]
    assert isinstance(found, wire.Query)
    return found


def answer(data: bytes, addresses: int = 1, *, cut: bool = False) -> bytes:
    response = dns.message.make_response(dns.message.from_wire(data))
    texts = [f"10.0.{n >> 8}.{n & 255}" for n in range(addresses)]
    if cut:
        response.flags |= dns.flags.TC
    else:
        response.answer.append(dns.rrset.from_text_list("web.example.com.", 5, "IN", "A", texts))
    return response.to_wire(max_size=65535)


async def outcome_of(work: Awaitable[bytes]) -> bytes | UpstreamError:
    """The answer, or why there is none."""
    try:
        return await work
    except UpstreamError as error:
        return error


class NameServer:
    """UDP and TCP on one port of 127.0.0.1 or ::1."""

    def __init__(self, udp: Reply, tcp: Reply | None, host: str = "127.0.0.1") -> None:
        self._udp, self._tcp = udp, tcp
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        while True:
            self.listener = socket.create_server((host, 0), family=family)
            self.datagrams = socket.socket(family, socket.SOCK_DGRAM)
            port = self.listener.getsockname()[1]
            try:
                self.datagrams.bind((host, port))
                break
            except OSError:
                self.listener.close()
                self.datagrams.close()
        self.asked = (ip_address(host), port)
        self.seen: list[bytes] = []

    async def run(self, body: Awaitable[bytes]) -> bytes | UpstreamError:
        """Serve while the body runs."""
        with self.listener, self.datagrams:
            if self._tcp is None:
                self.listener.close()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve_udp)
                if self._tcp is not None:
                    nursery.start_soon(self._serve_tcp)
                outcome = await outcome_of(body)
                nursery.cancel_scope.cancel()
        return outcome

    async def _serve_udp(self) -> None:
        made = trio.socket.from_stdlib_socket(self.datagrams)
        while True:
            data, sender = await made.recvfrom(65535)
            self.seen.append(data)
            for each in self._udp(data):
                await made.sendto(each, sender)

    async def _serve_tcp(self) -> None:
        made = trio.socket.from_stdlib_socket(self.listener)
        assert self._tcp
        while True:
            accepted, _ = await made.accept()
            stream = trio.SocketStream(accepted)
            head = await stream.receive_some(65535)
            assert head
            data = bytes(head)
            while len(data) < 2 + int.from_bytes(data[:2], "big"):
                data += bytes(await stream.receive_some(65535))
            for each in self._tcp(data[2:]):
                await stream.send_all(struct.pack("!H", len(each)) + each)
            await stream.aclose()


async def ask(
    netns_fd: int,
    udp: Reply,
    tcp_reply: Reply | None = None,
    *,
    tcp: bool = False,
    host: str = "127.0.0.1",
    timeout: float = 30,
    **how: object,
) -> tuple[bytes, Upstream, NameServer, wire.Query]:
    server, upstream, asked = NameServer(udp, tcp_reply, host), Upstream(timeout=timeout), query(**how)
    found = await server.run(upstream.ask(asked, server.asked, netns_fd, tcp=tcp))
    assert isinstance(found, bytes), found
    return found, upstream, server, asked


async def failure(
    netns_fd: int, udp: Reply, tcp_reply: Reply | None = None, *, tcp: bool = False, timeout: float = 30
) -> str:
    server, upstream = NameServer(udp, tcp_reply), Upstream(timeout=timeout)
    found = await server.run(upstream.ask(query(), server.asked, netns_fd, tcp=tcp))
    assert isinstance(found, UpstreamError), found
    return str(found)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("tcp", [False, True])
async def test_answer_comes_back_under_the_clients_id(netns_fd: int, host: str, tcp: bool) -> None:
    found, upstream, server, asked = await ask(
        netns_fd, lambda data: [answer(data)], lambda data: [answer(data)], tcp=tcp, host=host
    )
    assert found[:2] == asked.data[:2]
    assert len(dns.message.from_wire(found).answer) == 1
    assert upstream.strange == 0
    assert tcp or server.seen[0][2:] == asked.data[2:]


async def test_ids_are_not_the_clients_nor_equal(netns_fd: int) -> None:
    ids = set()
    for _ in range(20):
        _, _, server, _ = await ask(netns_fd, lambda data: [answer(data)])
        ids.add(server.seen[0][:2])
    assert len(ids) > 15


async def test_forged_answers_are_passed_over_and_counted(netns_fd: int) -> None:
    def forge(data: bytes) -> list[bytes]:
        true = answer(data)
        wrong_id = bytes([true[0] ^ 1]) + true[1:]
        other = dns.message.make_response(dns.message.make_query("evil.example.com.", "A")).to_wire()
        return [wrong_id, true[:2] + other[2:], b"", b"x" * 40, true[:2] + b"\x80", data, true]

    found, upstream, _, _ = await ask(netns_fd, forge)
    assert len(dns.message.from_wire(found).answer) == 1
    assert upstream.strange == 6


async def test_flood_of_forged_answers_ends_the_question(netns_fd: int) -> None:
    assert await failure(netns_fd, lambda data: [b"x" * 12] * 100) == "forged"


async def test_cut_answer_is_fetched_whole_over_tcp_if_it_fits(netns_fd: int) -> None:
    found, _, _, _ = await ask(
        netns_fd,
        lambda data: [answer(data, cut=True)],
        lambda data: [answer(data, 60)],
        use_edns=0,
        payload=1232,
    )
    assert not wire.is_truncated(found)
    assert len(dns.message.from_wire(found).answer[0]) == 60


async def test_cut_answer_stays_cut_if_the_whole_does_not_fit_or_cannot_be_had(netns_fd: int) -> None:
    for reply in (lambda data: [answer(data, 60)], lambda data: [], None):
        found, _, _, _ = await ask(netns_fd, lambda data: [answer(data, cut=True)], reply)
        assert wire.is_truncated(found)


async def test_name_server_that_says_nothing_is_given_up(netns_fd: int) -> None:
    assert await failure(netns_fd, lambda _: [], timeout=0.3) == "timeout"
    assert await failure(netns_fd, lambda _: [], lambda _: [], tcp=True) == "closed"


@pytest.mark.parametrize("tcp", [False, True])
async def test_name_server_that_is_not_there_is_known_at_once(netns_fd: int, tcp: bool) -> None:
    server = NameServer(lambda _: [], None)
    server.listener.close()
    server.datagrams.close()
    found = await outcome_of(Upstream().ask(query(), server.asked, netns_fd, tcp=tcp))
    assert str(found) == "unreachable"
