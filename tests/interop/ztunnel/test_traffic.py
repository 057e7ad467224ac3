"""HBONE between our agent and Istio's, both ways: octets, many streams, half-close, addresses, identities."""

from __future__ import annotations

import time

import pytest

from daemonset.demo.mesh import matching, wait_for
from tests.interop.ztunnel import app
from tests.interop.ztunnel.mesh import OURS, THEIRS, MixedMesh

pytestmark = [pytest.mark.root, pytest.mark.ztunnel]

MIB = 1 << 20
SHOP = "spiffe://cluster.local/ns/shop/sa/"


class Way:
    """From a client behind one agent to a server behind the other."""

    def __init__(self, mesh: MixedMesh, source: str, target: str) -> None:
        self.mesh = mesh
        self.client, self.server = f"{source}-client", f"{target}-server"
        self.source_node, self.target_node = (OURS if w == "our" else THEIRS for w in (source, target))
        self.host = f"{target}-web.shop"

    def run(self, command: str, *words: object, host: str = "") -> dict[str, object]:
        return self.mesh.run(f"shop/{self.client}", command, host or self.host, *map(str, words))

    def entry(self, node: str, direction: str, **wanted: str) -> dict[str, str]:
        """The newest line of an agent's access log about this pair with these fields."""
        identities = {"src.identity": SHOP + self.client, "dst.identity": SHOP + self.server}
        fields = {"direction": direction, **identities, **wanted}

        def look() -> dict[str, str] | None:
            lines = reversed(self.mesh.access_log(node))
            return next((line for line in lines if fields.items() <= line.items()), None)

        return wait_for(f"{node} logs {direction} with {fields}", look)


@pytest.fixture(params=[("our", "rust"), ("rust", "our")], ids=["ours-to-istios", "istios-to-ours"])
def way(request: pytest.FixtureRequest, mesh: MixedMesh) -> Way:
    return Way(mesh, *request.param)


def test_octets_both_ways_over_eight_streams(way: Way) -> None:
    way.run("exchange", 8, 4 * MIB)


def test_a_large_transfer(way: Way) -> None:
    way.run("exchange", 1, 128 * MIB)


@pytest.mark.parametrize("streams", [50, 250])
def test_streams_open_at_once(way: Way, streams: int) -> None:
    """250: more than one tunnel's share of 100, and than the 200 that either server admits."""
    assert way.run("hold", streams) == {"echoed": streams}


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_half_close_by_the_client(way: Way, size: int) -> None:
    way.run("half_close", size)


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_half_close_by_the_server(way: Way, size: int) -> None:
    assert way.run("early_fin", size) == {"whole": True}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["service", "pod"])
def test_the_application_sees_the_clients_address(way: Way, family: int, kind: str) -> None:
    addresses = way.mesh.pod_addresses()
    server = addresses[f"shop/{way.server}"]
    if kind == "service":
        server = way.mesh.status()["services"][way.host.replace("-web.shop", "-web").join(("shop/", ""))][
            "cluster_ips"
        ]
    host = next(a for a in server if (":" in a) == (family == 6))
    seen = way.run("who", host=host)["seen"]
    assert seen == next(a for a in addresses[f"shop/{way.client}"] if (":" in a) == (family == 6))


def test_both_access_logs_name_both_identities_and_the_same_octets(way: Way) -> None:
    size = 100_003 + int(time.monotonic() * 1000) % 50_000
    way.run("half_close", size)
    out = way.entry(way.source_node, "outbound", bytes_sent=str(size), bytes_recv="32")
    # Inbound, "sent" is what went to the client in both agents' logs.
    into = way.entry(way.target_node, "inbound", bytes_sent="32", bytes_recv=str(size))
    for line in (out, into):
        assert line["dst.service"] == f"{way.host}.svc.cluster.local"
        assert (line["src.workload"], line["dst.workload"]) == (way.client, way.server)
        assert line["dst.addr"].endswith(":15008")
        assert line["dst.hbone_addr"].endswith(f":{app.DIGEST}")


def test_both_count_the_same_connections_and_octets(way: Way) -> None:
    def counters() -> list[dict[str, float]]:
        found = []
        for node, reporter in ((way.source_node, "source"), (way.target_node, "destination")):
            samples = way.mesh.metrics(way.mesh.netns(node))
            labels = {
                "reporter": reporter,
                "source_principal": SHOP + way.client,
                "destination_principal": SHOP + way.server,
                "connection_security_policy": "mutual_tls",
                "destination_service": f"{way.host}.svc.cluster.local",
                "source_workload": way.client,
                "destination_workload": way.server,
                "source_version": "v1",
                "destination_version": "v1",
                "source_cluster": "Kubernetes",
                "response_flags": "-",
            }
            names = ("connections_opened", "connections_closed", "received_bytes", "sent_bytes")
            found.append({n: matching(samples.get(f"istio_tcp_{n}_total", {}), **labels) for n in names})
        return found

    before = counters()
    for _ in range(3):
        way.run("half_close", 70_000)
    expected = dict(
        zip(
            ("connections_opened", "connections_closed", "received_bytes", "sent_bytes"),
            (3.0, 3.0, 210_000.0, 96.0),
            strict=True,
        )
    )
    seen: list[object] = []

    def look() -> bool:
        seen[:] = [{k: a[k] - b[k] for k in a} for a, b in zip(counters(), before, strict=True)]
        return seen == [expected, expected]

    try:
        wait_for("counters", look, 60)
    except Exception:
        assert seen == [expected, expected]


def test_the_metrics_have_the_same_labels(mesh: MixedMesh) -> None:
    """Dashboards of Istio work with either agent."""
    for source, target in (("our", "rust"), ("rust", "our")):
        Way(mesh, source, target).run("half_close", 1)
    both = [mesh.metrics(mesh.netns(node)) for node in (OURS, THEIRS)]
    for name in ("connections_opened", "connections_closed", "received_bytes", "sent_bytes"):
        ours, theirs = ({k for key in m[f"istio_tcp_{name}_total"] for k, _ in key} for m in both)
        assert ours == theirs, name
