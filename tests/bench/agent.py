"""The measured half of variant `ours`: `python -m tests.bench.agent outbound|inbound`, one process each.

Everything between the engine's events and its verdicts is the product's, connected as the node agent connects it:
look-up, decision over a snapshot (`mesh_state`), CONNECT headers, flow registry, metrics, access log. What is missing
is what brings pods and state: capture (the service's address is put on the loopback interface instead, so that the
listening socket's own address is the destination), xDS and the CA. `--decide static` answers every event with
constants, to see what deciding costs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import trio

from ebpf.capture import PodNetwork
from hbone.engine import Accepted, Address, ConnectRequested, Engine, EngineConfig, ListenerKind
from hbone.spiffe import SpiffeId
from tests.bench.certificates import CLIENT_ID, SERVER_ID, TRUST_DOMAIN
from tests.bench.mesh_state import NODE, build
from tests.bench.namespace import CLIENT, SERVER
from tests.bench.testbed import HBONE_PORT, SERVER_ADDRESS, SERVER_PORT
from ztunnel.accesslog import AccessLog
from ztunnel.admit import Verdicts
from ztunnel.carry import Carrier
from ztunnel.config import Config, load
from ztunnel.enrol.pods import Pod, Pods
from ztunnel.enrol.settings import CaptureSettings
from ztunnel.flows.redecide import Redecider
from ztunnel.flows.registry import Registry
from ztunnel.inbound import Inbound
from ztunnel.logs import LineWriter, install
from ztunnel.metrics import Metrics
from ztunnel.outbound import Outbound
from ztunnel.pump import Pump
from ztunnel.store import Store

IDENTITY, TAG = 1, 7
COUNT_S = 1.0
COLD_POOL_IDLE_S = 0.2
EVENT_HOLD = 0.005


class ColdEngine(Engine):
    """Never finds a pooled tunnel: another acceptable name each time makes another key of the pool."""

    _numbers = itertools.count()

    def connect_tunnel(self, token: int, destination: Address, *, sans: Sequence[str], **more: Any) -> None:
        super().connect_tunnel(token, destination, sans=(*sans, f"{SERVER_ID}-{next(self._numbers)}"), **more)


class OnePod:
    """In the place of `Pods`: the pod that this side serves."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod

    def by_tag(self, tag: int) -> Pod | None:
        return self._pod if tag == TAG else None


class OneIdentity:
    """In the place of the certificate manager: the certificate is there."""

    def ready(self, identity: SpiffeId) -> bool:
        return True

    def number(self, identity: SpiffeId) -> int:
        return IDENTITY

    async def fetch(self, identity: SpiffeId, timeout: float) -> int:
        return IDENTITY


def make_engine(options: argparse.Namespace) -> tuple[Engine, int]:
    """(engine with the side's certificate, handle of this network namespace)"""
    settings: dict[str, Any] = {
        "workers": options.workers or min(2, len(os.sched_getaffinity(0))),
        "event_hold": EVENT_HOLD,
        "ipsec_mb": not options.no_ipsec_mb,
        "max_sessions": options.sessions,
    }
    engine = (
        # Kept verdicts would not pass by `connect_tunnel`, and what counts here is the tunnel.
        ColdEngine(EngineConfig(pool_idle_timeout=COLD_POOL_IDLE_S, max_verdicts=0, **settings))
        if options.cold
        else Engine(EngineConfig(**settings))
    )
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY)
    netns = engine.add_netns(descriptor)
    os.close(descriptor)
    chain, key, roots = (Path(path).read_bytes() for path in (options.chain, options.key, options.roots))
    engine.set_identity(IDENTITY, chain, key, roots, [TRUST_DOMAIN])
    return engine, netns


def listen(engine: Engine, where: str, kind: ListenerKind, netns: int) -> None:
    """Opens the listening socket; last of all, as whoever waits for it finds everything ready then."""
    host, _, port = where.rpartition(":")
    with socket.create_server((host, int(port)), backlog=4096) as listener:
        listener.setblocking(False)
        engine.listen(listener.fileno(), kind, netns, TAG, IDENTITY)


def make_pod(side: str, netns: int) -> Pod:
    """The client on the outbound side, the server on the inbound side."""
    client = side == "outbound"
    name, identity, address = ("client", CLIENT_ID, CLIENT) if client else ("server", SERVER_ID, SERVER)
    network = PodNetwork(
        netns_fd=-1,
        addresses=(ip_address(address),),
        node_addresses=(),
        exempt_inbound_ports=frozenset(),
        exempt_outbound_ports=frozenset(),
    )
    return Pod(
        uid=name,
        name=name,
        namespace="bench",
        service_account=name,
        netns_key=(0, 0),
        settings=CaptureSettings(),
        enrolled=cast(Any, SimpleNamespace(network=network)),  # of what capture makes, this path sees no more
        tag=TAG,
        netns=netns,
        identity=SpiffeId.parse(identity),
        identity_number=IDENTITY,
    )


class Agent:
    """The product's parts around one engine."""

    def __init__(self, side: str, engine: Engine, netns: int, config: Config, log: int) -> None:
        install(LineWriter(2), as_json=False, spec="info")
        access_log = AccessLog(LineWriter(log), as_json=False)
        self.engine = engine
        self.flows = Registry(Metrics("bench").traffic, access_log)
        self.carrier = Carrier(engine, self.flows)
        self.store = Store(NODE, before_change=engine.forget)
        self.redecider = Redecider(self.flows, engine, lambda: self.store.snapshot)
        self.store.subscribe(self.redecider.changed)
        verdicts = Verdicts(
            engine, self.flows, lambda: self.store.snapshot, self.redecider.again, engine.config.workers
        )
        self.pump = Pump(
            engine=engine,
            pods=cast(Pods, OnePod(make_pod(side, netns))),
            outbound=Outbound(
                carrier=self.carrier,
                verdicts=verdicts,
                store=self.store,
                identities=OneIdentity(),
                config=config,
            ),
            inbound=Inbound(carrier=self.carrier, verdicts=verdicts, store=self.store, config=config),
            verdicts=verdicts,
            flows=self.flows,
            access_log=access_log,
        )

    async def run(self, ready: trio.Event) -> None:
        """State first, then for ever."""
        await self.store.apply(build())
        async with trio.open_nursery() as nursery:
            for part in (self.store.run, self.carrier.run, self.redecider.run, self.pump.run, self._count):
                nursery.start_soon(part)
            ready.set()

    async def _count(self) -> None:
        while True:
            await trio.sleep(COUNT_S)
            self.flows.count(self.engine.counters())


class Constant:
    """Every connection goes to the one place it can go to: the engine without the agent."""

    def __init__(self, engine: Engine, netns: int) -> None:
        self.engine, self.netns = engine, netns
        self.server: Address = (SERVER, SERVER_PORT)
        self.tunnel: Address = (SERVER, HBONE_PORT)

    async def run(self, ready: trio.Event) -> None:
        """For ever."""
        ready.set()
        while True:
            await trio.lowlevel.wait_readable(self.engine.event_fd)
            for event in self.engine.take():
                if isinstance(event, Accepted):
                    self._outbound(event.token)
                elif isinstance(event, ConnectRequested):
                    self.engine.connect_plain(event.token, self.server, netns=self.netns)
            self.engine.flush()

    def _outbound(self, token: int) -> None:
        self.engine.connect_tunnel(
            token,
            self.tunnel,
            netns=self.netns,
            identity=IDENTITY,
            sans=(SERVER_ID,),
            authority=SERVER_ADDRESS,
            headers=(),
        )


async def serve(options: argparse.Namespace) -> None:
    """Runs one side until it is killed."""
    engine, netns = make_engine(options)
    outbound = options.side == "outbound"
    side: Agent | Constant
    if options.decide == "static":
        side = Constant(engine, netns)
    else:
        # Without capture there is no way back for packets that carry the client's address.
        config = load({"NODE_NAME": NODE, "ENABLE_ORIG_SRC": "false"})
        log = os.open(options.access_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        side = Agent(options.side, engine, netns, config, log)
    ready = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(side.run, ready)
        await ready.wait()
        listen(engine, options.listen, ListenerKind.OUTBOUND if outbound else ListenerKind.HBONE, netns)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.agent", description=__doc__)
    parser.add_argument("side", choices=("outbound", "inbound"))
    parser.add_argument("--listen", required=True, help="ADDR:PORT")
    for name in ("--chain", "--key", "--roots"):
        parser.add_argument(name, required=True, help="PEM file")
    parser.add_argument("--decide", choices=("ztunnel", "static"), default="ztunnel")
    parser.add_argument("--access-log", default="/dev/null", help="where the access log goes (/dev/null)")
    parser.add_argument("--workers", type=int, help="engine threads; default: as the node agent")
    parser.add_argument("--no-ipsec-mb", action="store_true", help="OpenSSL protects the records")
    parser.add_argument("--cold", action="store_true", help="a tunnel for each connection")
    usual = load({"NODE_NAME": NODE}).tls_sessions
    parser.add_argument(
        "--sessions", type=int, default=usual, help="TLS sessions kept; default: as the node agent"
    )
    trio.run(serve, parser.parse_args())


if __name__ == "__main__":
    main()
