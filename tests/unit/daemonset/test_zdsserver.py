"""The enrolment socket, with a real agent's end of the socket."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from daemonset.local import zdsserver
from daemonset.local.zds import Added, Event, PodIdentity, Removed
from daemonset.local.zdsserver import ZdsServer
from istiodlite.api import zds_pb2


class Lab:
    """A server whose wishes the test sets, and what it reported."""

    def __init__(self, folder: Path) -> None:
        self.wanted: dict[str, PodIdentity] = {}
        self.events: list[Event] = []
        self.connected: list[bool] = []
        self.namespace = folder / "netns"
        self.namespace.write_text("a namespace")
        self.path = folder / "zds.sock"
        self.server = ZdsServer(
            self.path,
            lambda: self.wanted,
            lambda _: self.namespace,
            self.events.append,
            self.connected.append,
        )

    def want(self, *uids: str) -> None:
        self.wanted = {uid: PodIdentity(uid, uid, "ns", "sa") for uid in uids}
        self.server.poke()


class Agent:
    """The other end: says hello, reads requests, answers."""

    def __init__(self, path: Path) -> None:
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        plain.connect(str(path))
        self.sock = trio.socket.from_stdlib_socket(plain)

    async def hello(self) -> None:
        await self.sock.send(zds_pb2.ZdsHello(version=zds_pb2.V1).SerializeToString())

    async def request(self) -> tuple[str, str, list[int]]:
        """Kind, uid and descriptors of the next request."""
        packet, ancillary, _, _ = await self.sock.recvmsg(1024, socket.CMSG_SPACE(16))
        message = zds_pb2.WorkloadRequest()
        message.ParseFromString(packet)
        kind = str(message.WhichOneof("payload"))
        fds = [
            int.from_bytes(data[i : i + 4], "little")
            for _, _, data in ancillary
            for i in range(0, len(data), 4)
        ]
        return kind, getattr(getattr(message, kind), "uid", ""), fds

    async def answer(self, error: str = "") -> None:
        await self.sock.send(zds_pb2.WorkloadResponse(ack=zds_pb2.Ack(error=error)).SerializeToString())


@asynccontextmanager
async def lab(folder: Path) -> AsyncIterator[Lab]:
    made = Lab(folder)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(made.server.serve)
            yield made
            nursery.cancel_scope.cancel()


async def until(look: object, *, what: str = "condition") -> None:
    assert callable(look), what
    while not look():
        await trio.sleep(0.002)


@pytest.mark.trio
async def test_agent_gets_the_snapshot_with_namespaces_and_then_changes(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        made.want("p")
        agent = Agent(made.path)
        await agent.hello()
        kind, uid, fds = await agent.request()
        assert (kind, uid, len(fds)) == ("add", "p", 1)
        assert os.read(fds[0], 99) == b"a namespace"
        os.close(fds[0])
        await agent.answer()
        assert await agent.request() == ("snapshot_sent", "", [])
        await agent.answer()
        made.want()
        assert await agent.request() == ("del", "p", [])
        await agent.answer()
        await until(lambda: Removed("p", "") in made.events)
        assert Added("p", "") in made.events
        agent.sock.close()
        await until(lambda: made.connected == [True, False])


@pytest.mark.trio
async def test_agent_that_comes_back_gets_everything_again(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        made.want("p", "q")
        for _ in range(2):
            agent = Agent(made.path)
            await agent.hello()
            seen = []
            for _ in range(3):
                kind, uid, fds = await agent.request()
                seen.append((kind, uid))
                for fd in fds:
                    os.close(fd)
                await agent.answer()
            assert seen == [("add", "p"), ("add", "q"), ("snapshot_sent", "")]
            agent.sock.close()


@pytest.mark.trio
async def test_only_the_newest_agent_gets_new_pods_but_both_hear_of_leavers(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        made.want("p")
        agents = []
        for _ in range(2):
            agent = Agent(made.path)
            await agent.hello()
            for _ in range(2):
                for fd in (await agent.request())[2]:
                    os.close(fd)
                await agent.answer()
            agents.append(agent)
        old, new = agents
        made.want("p", "q")
        kind, uid, fds = await new.request()
        assert (kind, uid) == ("add", "q")
        os.close(fds[0])
        await new.answer()
        made.want("q")
        assert (await new.request())[:2] == ("del", "p")
        assert (await old.request())[:2] == ("del", "p")


@pytest.mark.trio
async def test_an_agent_that_another_overtakes_is_not_told_that_it_knows_all_pods(tmp_path: Path) -> None:
    """It would release the others. When the other has gone, it is told the rest."""
    async with lab(tmp_path) as made:
        made.want("p", "q")
        first = Agent(made.path)
        await first.hello()
        for fd in (await first.request())[2]:
            os.close(fd)
        second = Agent(made.path)
        await second.hello()
        for _ in range(3):
            for fd in (await second.request())[2]:
                os.close(fd)
            await second.answer()
        await first.answer()
        await until(lambda: made.server.serves(os.getpid()))
        second.sock.close()
        kind, uid, fds = await first.request()
        assert (kind, uid) == ("add", "q")
        os.close(fds[0])
        await first.answer()
        assert await first.request() == ("snapshot_sent", "", [])


@pytest.mark.trio
async def test_silent_agent_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zdsserver, "ANSWER_SECONDS", 0.05)
    async with lab(tmp_path) as made:
        made.want("p")
        agent = Agent(made.path)
        await agent.hello()
        for fd in (await agent.request())[2]:
            os.close(fd)
        assert await agent.sock.recv(100) == b""


@pytest.mark.trio
async def test_broken_protocol_ends_the_connection_only(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        rude = Agent(made.path)
        await rude.sock.send(b"\xff\xff")
        assert await rude.sock.recv(100) == b""
        polite = Agent(made.path)
        await polite.hello()
        assert (await polite.request())[0] == "snapshot_sent"
