"""The agent's decision path without threads or kernel: real state, decisions, flows and metrics around a
recording engine."""

from __future__ import annotations

import os
from typing import Any

import trio

from ebpf.capture import PodNetwork
from hbone.engine import REASONS, Accepted, Closed, ConnectRequested, Engine, Established, Event, ListenerKind
from hbone.spiffe import SpiffeId
from tests.unit.ztunnel.doubles import FakeCapture, Recorder
from ztunnel.accesslog import AccessLog
from ztunnel.admit import Verdicts
from ztunnel.carry import Carrier
from ztunnel.config import load
from ztunnel.enrol.pods import Pod, Pods
from ztunnel.enrol.zds import Add
from ztunnel.flows.redecide import Redecider
from ztunnel.flows.registry import Registry
from ztunnel.identity.manager import IdentityManager, IdentityUnavailable
from ztunnel.inbound import Inbound
from ztunnel.logs import LineWriter
from ztunnel.metrics import Metrics
from ztunnel.outbound import Outbound
from ztunnel.pump import Pump
from ztunnel.state.model import Workload
from ztunnel.state.snapshot import Update
from ztunnel.store import Store

END = "(end)"


class Identities:
    """Certificates that are there or not, by service account."""

    def __init__(self) -> None:
        self.missing: set[str] = set()
        self.numbers: dict[SpiffeId, int] = {}

    def ready(self, identity: SpiffeId) -> bool:
        return identity.service_account not in self.missing

    def number(self, identity: SpiffeId) -> int:
        return self.numbers.setdefault(identity, len(self.numbers) + 1)

    async def fetch(self, identity: SpiffeId, timeout: float) -> int:
        with trio.move_on_after(timeout):
            while not self.ready(identity):
                await trio.sleep(0.01)
            return self.number(identity)
        raise IdentityUnavailable("the CA is away")


class Bench:
    """One agent on node n1, network net1."""

    def __init__(self, **environ: str) -> None:
        self.config = load({"NODE_NAME": "n1", "NETWORK": "net1", **environ})
        self.events: list[Event] = []
        self.engine = Recorder(
            Engine,
            add_netns=lambda **_: 7,
            listen=lambda **_: 1,
            take=self._take,
            counters=[],
            stats={},
            epoch=0,
        )
        engine: Any = self.engine
        self.store = Store("n1")
        self.metrics = Metrics("test")
        self.read, write = os.pipe()
        self.writer = LineWriter(write)
        self._write = write
        access_log = AccessLog(self.writer, as_json=False)
        self.flows = Registry(self.metrics.traffic, access_log)
        self.carrier = Carrier(engine, self.flows)
        self.redecider = Redecider(self.flows, engine, lambda: self.store.snapshot)
        self.store.subscribe(self.redecider.changed)
        self.verdicts = Verdicts(engine, self.flows, lambda: self.store.snapshot, self.redecider.again, 1)
        self.identities = Identities()
        self.addresses: tuple[Any, ...] = ()
        holder: Any = Recorder(IdentityManager, hold=lambda **_: 1, ready=lambda **_: True)
        capture: Any = FakeCapture()
        self.pods = Pods(
            capture=capture,
            engine=engine,
            identities=holder,
            network_of=lambda fd, _: PodNetwork(fd, self.addresses),
            trust_domain_of=lambda *_: "cluster.local",
        )
        self.asked: list[str] = []
        self.draw = 0.0
        outbound = Outbound(
            carrier=self.carrier,
            verdicts=self.verdicts,
            store=self.store,
            identities=self.identities,
            config=self.config,
            ask=self._ask if self.config.xds_on_demand else None,
            draw=lambda: self.draw,
            random_bytes=lambda count: b"\x01" * count,
        )
        inbound = Inbound(carrier=self.carrier, verdicts=self.verdicts, store=self.store, config=self.config)
        self.pump = Pump(
            engine=engine,
            pods=self.pods,
            outbound=outbound,
            inbound=inbound,
            verdicts=self.verdicts,
            flows=self.flows,
            access_log=access_log,
        )
        self.answers: dict[str, Update] = {}
        self._tokens = 0

    def _take(self, limit: int) -> list[Event]:
        events, self.events = self.events, []
        return events

    async def _ask(self, name: str, timeout: float) -> bool:
        self.asked.append(name)
        if name in self.answers:
            await self.store.apply(self.answers[name])
        return True

    async def enrol(self, workload: Workload) -> Pod:
        add = Add(
            workload.uid, workload.name, workload.namespace, workload.service_account, os.dup(self.read)
        )
        assert await self.pods.handle(add) == ""
        (pod,) = [pod for pod in self.pods if pod.uid == workload.uid]
        return pod

    async def know(self, *workloads: Workload, **update: Any) -> None:
        await self.store.apply(Update(workloads=workloads, **update))

    def token(self) -> int:
        self._tokens += 1
        return self._tokens

    def turn(self, *events: Event) -> None:
        self.events += events
        self.pump.turn()

    def connect(
        self, pod: Pod, peer: str, local: tuple[str, int], kind: ListenerKind = ListenerKind.OUTBOUND
    ) -> int:
        """The engine accepted a captured connection."""
        token = self.token()
        self.turn(Accepted(token, pod.tag, kind, (peer, 41200), local))
        return token

    def request(self, pod: Pod, peer: str, local: str, authority: str, **changes: Any) -> int:
        """The engine got a CONNECT."""
        fields: dict[str, Any] = {
            "peer_identity": "spiffe://cluster.local/ns/shop/sa/client",
            "method": "CONNECT",
            "headers": (),
        }
        token = self.token()
        self.turn(
            ConnectRequested(
                token, pod.tag, 1, (peer, 41200), (local, 15008), authority=authority, **(fields | changes)
            )
        )
        return token

    def establish(self, token: int) -> None:
        """Both legs are up."""
        self.turn(Established(token, None, None, None, ()))

    def close(
        self, token: int, reason: str = "ok", *, up: int = 0, down: int = 0, established: bool = True
    ) -> str:
        """The engine reports the end; returns the access log so far."""
        self.turn(Closed(token, REASONS.index(reason), 0, 0, up, down, established))
        return self.log()

    def log(self) -> str:
        """Everything logged since the last call."""
        self.writer.put(END)
        self.writer.flush()
        text = b""
        while not text.endswith(END.encode() + b"\n"):
            text += os.read(self.read, 1 << 16)
        return text.decode().removesuffix(END + "\n")

    def dispose(self) -> None:
        """Close what the bench opened."""
        self.writer.close()
        os.close(self._write)
        os.close(self.read)
