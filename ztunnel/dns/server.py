"""Answers the questions of this node's pods: from the snapshot what the mesh knows, the rest from upstream.

One task reads a pod's datagrams, one accepts its TCP connections; a question that has to be passed on gets a
task of its own, a bounded number of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import trio

from ebpf.dns import Address, DnsSockets, Question, original_destination
from ztunnel.dns import wire
from ztunnel.dns.budget import Budget
from ztunnel.dns.counts import DnsCounts, Labels, labels_of
from ztunnel.dns.lookup import Client, Names, addresses_of
from ztunnel.dns.upstream import Upstream, UpstreamError, read_message
from ztunnel.enrol.pods import Pod
from ztunnel.logs import fields
from ztunnel.state.snapshot import Snapshot

__all__ = ["DnsServer"]

_log = logging.getLogger("ztunnel.dns")

_AT_ONCE = 64
_IDLE = 10.0
_LAST_WORD = 0.5
OUTSTANDING, OUTSTANDING_OF_A_POD = 2048, 256
CONNECTIONS_OF_A_POD = 64


class _Store(Protocol):
    @property
    def snapshot(self) -> Snapshot: ...


@dataclass(slots=True)
class _Served:
    """A pod that is being served. `sockets` are copies: capture may close its own at any time."""

    pod: Pod
    original: DnsSockets
    sockets: DnsSockets
    netns_fd: int
    connections: int = 0
    leaving: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question on its way."""

    served: _Served
    query: wire.Query
    resolver: tuple[Address, int]
    tcp: bool
    labels: Labels
    began: float


class DnsServer:
    """Call `run` in a nursery first; then `serve` and `leave` as pods come and go."""

    def __init__(
        self,
        store: _Store,
        names: Names,
        *,
        network: str,
        ipv6: bool = True,
        upstream: Upstream | None = None,
        draw: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = trio.current_time,
    ) -> None:
        """`ipv6`: whether AAAA has answers."""
        self._store, self._names, self._network, self._ipv6 = store, names, network, ipv6
        self._draw, self._now = draw, monotonic
        self._budget = Budget(total=OUTSTANDING, each=OUTSTANDING_OF_A_POD)
        self._served: dict[int, _Served] = {}
        self._nursery: trio.Nursery | None = None
        self.upstream = upstream or Upstream()
        self.counts = DnsCounts()

    @property
    def outstanding(self) -> int:
        """Questions that wait for name servers."""
        return self._budget.used

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def serve(self, pod: Pod) -> None:
        """Answer a pod, as it is enrolled now. Repeating it does no harm."""
        sockets, known = pod.enrolled.dns, self._served.get(pod.tag)
        if known is not None and known.original is sockets:
            return
        self.leave(pod)
        if sockets is None or self._nursery is None:
            return
        served = _Served(pod, sockets, sockets.copy(), os.dup(pod.enrolled.network.netns_fd))
        self._served[pod.tag] = served
        self._nursery.start_soon(self._serve, served)

    def leave(self, pod: Pod) -> None:
        """Answer what has been asked already, for a moment, and then no more."""
        served = self._served.pop(pod.tag, None)
        if served is not None:
            served.leaving.set()

    async def _serve(self, served: _Served) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_left, served, nursery)
                nursery.start_soon(self._connections, served, nursery)
                nursery.start_soon(self._datagrams, served, nursery)
        finally:
            served.sockets.close()
            os.close(served.netns_fd)

    async def _until_left(self, served: _Served, nursery: trio.Nursery) -> None:
        await served.leaving.wait()
        nursery.cancel_scope.deadline = trio.current_time() + _LAST_WORD

    async def _datagrams(self, served: _Served, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(served.sockets.udp)
            for _ in range(_AT_ONCE):
                try:
                    question = served.sockets.next()
                except BlockingIOError:
                    break
                except OSError:
                    self.counts.dropped["not_received"] += 1
                    await trio.sleep(0.01)
                    break
                try:
                    self._datagram(served, question, nursery)
                finally:
                    served.sockets.done()  # not before it is answered

    def _datagram(self, served: _Served, question: Question | None, nursery: trio.Nursery) -> None:
        if question is None:
            self.counts.dropped["no_destination"] += 1
            return
        asked = self._ask(served, question.data, question.asked, tcp=False)
        if isinstance(asked, bytes):
            self._send(served, question, asked)
        elif asked is not None:
            nursery.start_soon(self._pass_on, asked, question)

    async def _pass_on(self, asked: _Asked, question: Question) -> None:
        self._send(asked.served, question, await self._from_upstream(asked))

    def _send(self, served: _Served, question: Question, answer: bytes) -> None:
        if not served.sockets.answer(question, answer):
            self.counts.dropped["not_sent"] += 1

    async def _connections(self, served: _Served, nursery: trio.Nursery) -> None:
        listener = trio.socket.from_stdlib_socket(served.sockets.tcp)
        while True:
            try:
                accepted, _ = await listener.accept()
            except OSError:  # the connection is gone again, or there are too many open files
                await trio.sleep(0.01)
                continue
            if served.connections >= CONNECTIONS_OF_A_POD:
                self.counts.dropped["connections"] += 1
                accepted.close()
                continue
            served.connections += 1
            nursery.start_soon(self._connection, served, trio.SocketStream(accepted))

    async def _connection(self, served: _Served, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                with contextlib.suppress(OSError, trio.BrokenResourceError, trio.TooSlowError):
                    await self._conversation(served, stream)
        finally:
            served.connections -= 1

    async def _conversation(self, served: _Served, stream: trio.SocketStream) -> None:
        """One question after the other, until the client has none for a while."""
        resolver = original_destination(stream.socket.getsockname())
        while True:
            data = None
            with trio.move_on_after(_IDLE):
                data = await read_message(stream)
            if data is None:
                return
            asked = self._ask(served, data, resolver, tcp=True)
            answer = await self._from_upstream(asked) if isinstance(asked, _Asked) else asked
            if answer is None:
                return
            with trio.fail_after(_IDLE):
                await stream.send_all(struct.pack("!H", len(answer)) + answer)

    # Questions

    def _ask(
        self, served: _Served, data: bytes, resolver: tuple[Address, int], *, tcp: bool
    ) -> bytes | _Asked | None:
        """The answer, or who has to be asked for it (a place in the budget is taken); None: silence."""
        pod, snapshot = served.pod, self._store.snapshot
        source = snapshot.local_workload(pod.namespace, pod.service_account, pod.name)
        query = wire.parse(data)
        if isinstance(query, wire.Bad):
            self.counts.dropped[query.reason] += 1
            return query.reply
        labels = self.counts.request(labels_of(query.type, tcp=tcp, source=source))
        asked = _Asked(served, query, resolver, tcp, labels, self._now())
        known = self._known(asked, Client(pod.namespace, self._network, source), snapshot)
        if known is not None:
            return self._told(asked, known, "mesh")
        if not self._budget.take(pod.tag):
            self.counts.dropped["too_many"] += 1
            return self._told(asked, wire.failure(query), "agent")
        return asked

    def _known(self, asked: _Asked, client: Client, snapshot: Snapshot) -> bytes | None:
        query = asked.query
        if query.name is None or query.version is None:
            return None
        match = self._names.find(query.name, client, snapshot)
        if match is None:
            return None
        found = addresses_of(match, query.version, client, snapshot, self._draw())
        if query.version == 6 and not self._ipv6:
            found = ()
        return wire.reply(
            query, found, match.host if match.alias else None, None if asked.tcp else query.limit
        )

    async def _from_upstream(self, asked: _Asked) -> bytes:
        """What the name server says; SERVFAIL where it says nothing. Gives the place in the budget back."""
        self.counts.upstream_requests[asked.labels] += 1
        try:
            answer = await self.upstream.ask(
                asked.query, asked.resolver, asked.served.netns_fd, tcp=asked.tcp
            )
        except UpstreamError as error:
            self.counts.upstream_failures[asked.labels] += 1
            return self._told(asked, wire.failure(asked.query), "agent", str(error))
        finally:
            self._budget.give(asked.served.pod.tag)
        self.counts.took(asked.labels, self._now() - asked.began)
        if wire.is_name_error(answer) and self._exists(asked):
            answer = wire.without_name_error(answer)
        return self._told(asked, answer, "upstream")

    def _exists(self, asked: _Asked) -> bool:
        """Whether the mesh has addresses under a name that the name server does not know."""
        pod, name = asked.served.pod, asked.query.name
        client = Client(pod.namespace, self._network)
        return name is not None and self._names.find(name, client, self._store.snapshot) is not None

    def _told(self, asked: _Asked, answer: bytes, by: str, error: str = "") -> bytes:
        code = wire.rcode_of(answer)
        self.counts.answers[by, code] += 1
        if _log.isEnabledFor(logging.DEBUG):
            pod = asked.served.pod
            shown = fields(
                pod=f"{pod.namespace}/{pod.name}",
                name=asked.query.name or "",
                type=asked.query.type,
                protocol="tcp" if asked.tcp else "udp",
                resolver=str(asked.resolver[0]),
                answered_by=by,
                rcode=code,
                error=error,
                took=f"{(self._now() - asked.began) * 1000:.1f}ms",
            )
            _log.debug("question", extra=shown)
        return answer
