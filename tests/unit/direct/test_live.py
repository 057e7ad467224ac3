"""Direct connections as flows: what ends before anybody looks is told as what was seen alive."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ebpf import maps, pairs
from ebpf.pairs import Endpoint, Tuple4, What
from ebpf.sockets import State
from tests.unit.state.builders import NODE, policy, service, snapshot, update, workload
from ztunnel.accesslog import AccessLog
from ztunnel.direct.live import LiveConnections
from ztunnel.direct.local import Local
from ztunnel.flows.registry import Registry
from ztunnel.logs import LineWriter, install, reset_levels
from ztunnel.metrics import Traffic
from ztunnel.state.snapshot import Snapshot

CLIENT, SERVER = 1, 2
WEB = "ns/web.ns.svc"
VIP = ip_address("10.96.0.1")
SERVICE = Endpoint(VIP, 80)
NOW = 100.0


@dataclass
class Told:
    """All that telemetry has of some connections."""

    metrics: str
    lines: list[str]


class World:
    """Two pods, and what becomes of their connections."""

    def __init__(self) -> None:
        client = workload("client", "10.0.0.1", account="client", node=NODE)
        server = workload("server", "10.0.0.2", account="server", node=NODE, services={WEB: {80: 8080}})
        self.known: Snapshot = snapshot(client, server, service("web", str(VIP)))
        self._lines = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed when it is told
        self.writer = LineWriter(self._lines.fileno())
        install(self.writer, as_json=False, spec="info")
        self.traffic = Traffic()
        self.traffic.shows_path = True
        log = AccessLog(self.writer, as_json=False, wall_clock=lambda: 0.0)
        self.flows = Registry(self.traffic, log)
        self.pods = {
            CLIENT: Local("ns/client", CLIENT, -1, client),
            SERVER: Local("ns/server", SERVER, -1, server),
        }
        self.live = LiveConnections(
            self.flows, network="", current=lambda: self.known, local=self.pods.get, monotonic=lambda: NOW
        )

    def told(self) -> Told:
        self.writer.close()
        with self._lines:
            lines = Path(f"/proc/self/fd/{self._lines.fileno()}").read_text().splitlines()
        registry = CollectorRegistry()
        registry.register(self.traffic)
        reset_levels("info")
        return Told(generate_latest(registry).decode(), lines)


def record(
    cookie: int,
    *,
    state: State = State.FIN_WAIT2,
    what: What = What.ENDED,
    established: bool = True,
    served: bool = True,
    to: int = SERVER,
    asked: Endpoint = SERVICE,
) -> bytes:
    """As the kernel tells it: 5 bytes up, 7 down, 20.5 ms."""
    ends = Tuple4(Endpoint(ip_address("10.0.0.1"), 40000 + cookie), Endpoint(ip_address("10.0.0.2"), 8080))
    began = int(NOW * 1e9) - 20_500_000
    down = 7 if served else 0
    conn = pairs.CONN.pack(
        cookie, cookie + 1000, began, int(NOW * 1e9), 5, 7, down, CLIENT, to, maps.ip16(asked.ip), asked.port,
        0, what, established, state, 1, served, 1 + served,
    )  # fmt: skip
    return pairs.as_record(ends.encode(), conn)


def decoded(raw: bytes) -> pairs.DirectConnection:
    (fields,) = pairs.RECORD.iter_unpack(raw)
    return pairs.decode_event(fields).connection


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("state", list(State))
def test_seen_alive_or_not_telemetry_is_the_same(state: State, served: bool) -> None:
    seen, unseen = World(), World()
    raw = record(1, state=state, served=served)
    seen.live.begun(decoded(raw))
    assert seen.live.flows == 2
    told = []
    for world in (seen, unseen):
        assert world.live.handle(raw) == 1
        assert (len(world.flows), world.live.flows) == (0, 0)
        told.append(world.told())
    assert told[0] == told[1]
    assert len(told[0].lines) == 2
    assert 'connection_path="direct"' in told[0].metrics
    assert 'connection_path="direct"' in told[0].lines[0]


def test_bytes_and_time_of_many_are_exact() -> None:
    world = World()
    assert world.live.handle(b"".join(record(number) for number in range(1, 301))) == 300
    told = world.told()
    assert len(told.lines) == 600
    assert all('duration="20ms"' in line for line in told.lines)
    outbound = [line for line in told.lines if 'direction="outbound"' in line]
    assert len({line.partition("src.addr=")[2].partition(" ")[0] for line in outbound}) == 300
    assert all("bytes_sent=5 bytes_recv=7" in line for line in outbound)
    totals = [
        row.rpartition(" ")[2] for row in told.metrics.splitlines() if "connections_opened_total{" in row
    ]
    assert totals == ["300.0", "300.0"]


def test_pod_that_is_not_known_is_not_told_of() -> None:
    world = World()
    assert world.live.handle(record(1, to=9)) == 1
    assert world.told().lines == []


def test_connection_that_fell_back_before_anybody_looked_is_nobodys() -> None:
    world = World()
    world.live.handle(record(1, what=What.FELL_BACK))
    assert world.told().lines == []


class Ended(Local):
    """A pod that notes which connections of it were ended."""

    def __init__(self, local: Local) -> None:
        super().__init__(local.name, local.slot, local.netns_fd, local.workload)
        self.ended: list[int] = []

    def end(self, connection: pairs.DirectConnection) -> None:
        self.ended.append(connection.cookie)


@pytest.mark.parametrize("denied", [True, False])
@pytest.mark.parametrize("asked", [VIP, ip_address("10.0.0.2")])
def test_what_falls_back_does_not_get_around_a_refusal_of_the_service(
    asked: IPv4Address, denied: bool
) -> None:
    """Its address is already that of an endpoint; the proxy would not see that a service was asked for."""
    world = World()
    source = world.pods[CLIENT] = Ended(world.pods[CLIENT])
    if denied:
        world.known, _ = world.known.apply(update(policy("deny", [[]], action="DENY")))
    raw = record(1, what=What.FELL_BACK, asked=Endpoint(asked, 80 if asked == VIP else 8080))
    world.live.begun(decoded(raw))
    world.live.handle(raw)
    assert source.ended == ([1] if denied and asked == VIP else [])
    assert (len(world.flows), world.live.flows) == (0, 0)
    world.told()


def test_labels_follow_the_mesh() -> None:
    world = World()
    world.live.handle(record(1))
    server = world.pods[SERVER]
    server.workload = replace(server.workload, canonical_name="renamed")
    world.known, _ = world.known.apply(update(server.workload))
    world.live.handle(record(2))
    metrics = world.told().metrics
    assert 'destination_canonical_service="renamed"' in metrics
    assert (
        'destination_canonical_service=""' in metrics or 'destination_canonical_service="unknown"' in metrics
    )


def test_what_is_forbidden_meanwhile_ends_only_if_it_lives() -> None:
    world = World()
    world.known, _ = world.known.apply(update(policy("deny", [[]], action="DENY")))
    world.live.begun(replace(decoded(record(1)), began=int(NOW * 1e9)))
    world.live.handle(record(1))
    world.live.handle(record(2))
    world.live.end_denied()
    assert world.live.cuts == 0
    assert len(world.told().lines) == 4
