"""Our engine as HBONE client, Istio's ztunnel as server."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from hbone.connect import parse_baggage
from hbone.engine import Closed, Established
from tests.interop.ztunnel.lab import HBONE, OURS, RUST, RUST_IP, Lab
from tests.support import halfclose, patterns, servers
from tests.support.arena import assert_reset
from tests.support.enginehost import Address, TunnelTo
from tests.support.pki import Authority, Credential, spiffe
from tests.support.ports import closed_address, wait_until

pytestmark = [pytest.mark.root, pytest.mark.ztunnel]


@pytest.fixture(scope="module")
def application(lab: Lab) -> Iterator[servers.Server]:
    """An echo server beside the ztunnel."""
    with lab.inside_rust():
        server = servers.echo(host=RUST_IP)
    with server:
        yield server


class Client:
    """A captured-outbound listener in front of the ztunnel; `connect` as the application."""

    def __init__(
        self,
        lab: Lab,
        authority: str,
        *,
        sans: tuple[str, ...] = (RUST,),
        credential: Credential | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.lab, self.tag, identity = lab, lab.next_tag(), 1
        if credential is not None:
            identity = 1000 + self.tag
            lab.host.identity(identity, credential)
        rule = TunnelTo((RUST_IP, HBONE), sans, identity, authority, headers)
        self.address: Address = lab.host.listen("OUTBOUND", self.tag, rule)
        self.position = lab.log_size()

    def connect(self) -> socket.socket:
        with self.lab.inside_ours():
            return socket.create_connection(self.address, timeout=30)

    def ends(self) -> tuple[str, int]:
        """Reason and status of one connection that gets nowhere."""
        with contextlib.suppress(ConnectionResetError), self.connect() as app:
            assert_reset(app)
        closed = self.lab.host.wait(Closed, tag=self.tag)
        assert not closed.established
        return self.lab.host.slug(closed.reason_code), closed.status

    def said(self, text: str) -> str:
        """The ztunnel's line with this text since this client was made."""
        return self.lab.wait_log(text, self.position)


def test_octets_of_thirty_streams_over_one_tunnel(lab: Lab, application: servers.Server) -> None:
    client = Client(lab, application.authority)
    before = lab.host.stats()["tunnels_live"]
    with lab.inside_ours():
        patterns.many(client.address, 30, 1 << 20)
    assert lab.host.stats()["tunnels_live"] <= before + 1, "the streams did not share a tunnel"
    assert f'src.identity="{OURS}"' in client.said('direction="inbound"')


def test_half_close_both_ways(lab: Lab) -> None:
    with lab.inside_rust():
        digest = patterns.digest_server(host=RUST_IP)
    with digest:
        client = Client(lab, digest.authority)
        for size in (0, 1, 3_000_000):
            with lab.inside_ours():
                patterns.half_close(client.address, size)


@pytest.mark.parametrize("order", halfclose.ORDERS)
def test_half_closes_in_all_six_orders(lab: Lab, order: str) -> None:
    with contextlib.ExitStack() as closing:
        with lab.inside_rust():
            listener = closing.enter_context(halfclose.application(RUST_IP))
        client = Client(lab, halfclose.authority(listener)).connect()
        ours, theirs = closing.enter_context(halfclose.meet(client, listener))
        halfclose.play(order, ours, theirs, 300_000)


def test_the_answer_describes_its_workload(lab: Lab, application: servers.Server) -> None:
    client = Client(lab, application.authority, headers=(("baggage", "service.name=ours"),))
    client.connect().close()
    established = lab.host.wait(Established, lambda e: e.peer_identity == RUST, tag=client.tag)
    found = parse_baggage([v for k, v in established.response_headers if k == "baggage"])
    assert (found.namespace, found.workload_type, found.workload_name) == ("shop", "pod", "rust")
    assert (found.service_name, found.revision, found.cluster_id) == ("rust", "v1", "Kubernetes")


def test_a_server_with_another_identity_than_expected_is_refused_by_us(
    lab: Lab, application: servers.Server
) -> None:
    client = Client(lab, application.authority, sans=(spiffe("somebody", "shop"),))
    assert client.ends() == ("peer_san_mismatch", 0)
    assert "tls handshake error" in client.said("connection failed")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("foreign root", "InvalidCertificate(UnknownIssuer)"),
        ("foreign trust domain", "SanTrustDomainError"),
        ("expired", "InvalidCertificate(Expired"),
    ],
)
def test_certificates_that_it_refuses(lab: Lab, application: servers.Server, case: str, said: str) -> None:
    """The refusal comes after our side of the TLS 1.3 handshake: the connection must fail, not hang."""
    credential = {
        "foreign root": Authority.root("foreign").leaf(OURS).trusting(lab.issuer),
        "foreign trust domain": lab.issuer.leaf(spiffe("ours", "shop", "other.domain")),
        "expired": lab.issuer.leaf(OURS, not_before=-7200, not_after=-3600),
    }[case]
    client = Client(lab, application.authority, credential=credential)
    assert client.ends() == ("tls_handshake_failed", 0)
    client.said(said)


@pytest.mark.parametrize(
    ("case", "status", "said"),
    [
        ("another address", 400, "ip mismatch"),
        ("no port", 400, "no valid authority"),
        ("its own port", 503, "recursive call"),
        ("unknown name", 503, "no service or workload for hostname"),
        ("nobody listens", 503, "Connection refused"),
        ("name of a service", 503, "dst.hbone_addr=rust.shop.svc.cluster.local:80"),
    ],
)
def test_requests_that_it_refuses(lab: Lab, case: str, status: int, said: str) -> None:
    with lab.inside_rust():
        nobody = closed_address(RUST_IP)[1]
    authority = {
        "another address": "10.9.9.9:80",
        "no port": RUST_IP,
        "its own port": f"{RUST_IP}:{HBONE}",
        "unknown name": "nobody.shop.svc.cluster.local:80",
        "nobody listens": f"{RUST_IP}:{nobody}",
        "name of a service": "rust.shop.svc.cluster.local:80",  # resolved; port 18001 is closed
    }[case]
    client = Client(lab, authority)
    assert client.ends() == ("peer_refused", status)
    client.said(said)


def test_a_policy_is_answered_with_401(lab: Lab, application: servers.Server) -> None:
    policy = {
        "name": "nobody",
        "namespace": "shop",
        "scope": "Namespace",
        "action": "Allow",
        "rules": [[[{"destinationPorts": [1]}]]],
        "dryRun": False,
    }
    lab.start_rust(policy)
    try:
        client = Client(lab, application.authority)
        assert client.ends() == ("peer_refused", 401)
        client.said("allow policies exist, but none allowed")
    finally:
        lab.start_rust()
    with lab.inside_ours():
        patterns.exchange(Client(lab, application.authority).address, 1, 1000)


def test_keys_and_chains_that_it_takes(lab: Lab, application: servers.Server) -> None:
    for credential in (
        lab.issuer.leaf(OURS, key="rsa-2048"),
        lab.issuer.leaf(OURS, key="ec-p384"),
        lab.issuer.intermediate().leaf(OURS),
        lab.issuer.intermediate().intermediate("second").leaf(OURS),
    ):
        with lab.inside_ours():
            patterns.exchange(Client(lab, application.authority, credential=credential).address, 1, 1000)


def test_an_application_that_resets_ends_the_other_ends_connection(lab: Lab) -> None:
    with lab.inside_rust():
        sink = servers.sink(host=RUST_IP)
    with sink:
        client = Client(lab, sink.authority)
        app = client.connect()
        app.sendall(b"x" * 1000)
        wait_until(lambda: sink.bytes == 1000, "the octets arrive")
        app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        app.close()
        closed = lab.host.wait(Closed, tag=client.tag)
        assert lab.host.slug(closed.reason_code) == "reset_by_app"
        client.said("connection complete")
