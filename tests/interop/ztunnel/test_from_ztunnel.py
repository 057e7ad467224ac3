"""Istio's ztunnel as HBONE client, our engine as server."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hbone.connect import parse_headers
from hbone.engine import Closed, ConnectRequested, TunnelFailed
from tests.interop.ztunnel.lab import APP, HBONE, OUR_IP, OURS, OUTBOUND, RUST, SERVICE_IP, Lab
from tests.support import halfclose, patterns, servers
from tests.support.enginehost import Deliver, Deny, Rule
from tests.support.pki import Authority, Credential, spiffe
from tests.support.ports import address, wait_until

pytestmark = [pytest.mark.root, pytest.mark.ztunnel]

ENTRY = (SERVICE_IP, OUTBOUND)


@pytest.fixture(scope="module")
def application(lab: Lab) -> Iterator[servers.Server]:
    """An echo server beside our engine."""
    with lab.inside_ours():
        server = servers.echo()
    with server:
        yield server


@contextlib.contextmanager
def serving(lab: Lab, rule: Rule, credential: Credential | None = None) -> Iterator[int]:
    """Our HBONE listener where the ztunnel looks for it; its tag."""
    tag, identity = lab.next_tag(), 1
    if credential is not None:
        identity = 1000 + tag
        lab.host.identity(identity, credential)
    lab.host.listen("HBONE", tag, rule, identity=identity, host=OUR_IP, port=HBONE)
    try:
        yield tag
    finally:
        lab.host.engine("drain", tag)
        wait_until(lambda: not _listens(lab), "our listener is closed")


def _listens(lab: Lab) -> bool:
    with lab.inside_ours(), contextlib.suppress(OSError), socket.create_connection((OUR_IP, HBONE), 1):
        return True
    return False


def dropped(lab: Lab) -> None:
    """One connection of an application that is closed without a byte."""
    with lab.inside_rust():
        app = socket.create_connection(ENTRY, timeout=30)
    with app, contextlib.suppress(ConnectionResetError):
        assert app.recv(10) == b""


def test_octets_of_twenty_streams(lab: Lab, application: servers.Server) -> None:
    with serving(lab, Deliver(application.address)), lab.inside_rust():
        patterns.many(ENTRY, 20, 1 << 20)
    assert lab.host.stats()["handshakes_resumed"] == 0, "it has no use for the sessions that it is given"


@pytest.mark.parametrize("order", halfclose.ORDERS)
def test_half_closes_in_all_six_orders(lab: Lab, order: str) -> None:
    with contextlib.ExitStack() as closing:
        with lab.inside_ours():
            listener = closing.enter_context(halfclose.application())
        closing.enter_context(serving(lab, Deliver(address(listener))))
        with lab.inside_rust():
            client = socket.create_connection(ENTRY, timeout=30)
        ours, theirs = closing.enter_context(halfclose.meet(client, listener))
        halfclose.play(order, ours, theirs, 300_000)


def test_a_small_stream_limit_holds_once_it_is_known(tmp_path: Path) -> None:
    """Before our SETTINGS arrive it opens up to 100 streams; those over the limit are refused, and it does not
    try again. Afterwards it queues. (Our default of 200 is never exceeded.)"""
    with Lab(tmp_path, stream_limit=4) as small:
        with small.inside_ours():
            application = servers.echo()
        with application, serving(small, Deliver(application.address)) as tag:
            with small.inside_rust():
                patterns.exchange(ENTRY, 1, 100)
                patterns.many(ENTRY, 40, 10_000)
            assert set(small.host.endings(tag)) == {"ok"}
            assert small.host.stats()["streams_refused"] == 0


def test_the_request_says_what_our_parser_expects(lab: Lab, application: servers.Server) -> None:
    with serving(lab, Deliver(application.address)) as tag:
        with lab.inside_rust():
            patterns.exchange(ENTRY, 1, 100)
        asked = lab.host.wait(ConnectRequested, tag=tag)
    assert (asked.method, asked.authority, asked.peer_identity) == ("CONNECT", f"{OUR_IP}:{APP}", RUST)
    assert [name for name, _ in asked.headers] == ["baggage", "forwarded", "traceparent"]
    parsed = parse_headers(asked.headers)
    assert parsed.forwarded_host == "ours.shop.svc.cluster.local"
    assert parsed.baggage is not None
    assert str(parsed.baggage) == dict(asked.headers)["baggage"]
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0\d", dict(asked.headers)["traceparent"])


@pytest.mark.parametrize(
    ("reason", "status", "said"),
    [
        ("policy_denied", 401, "http status: 401 Unauthorized"),
        ("bad_request", 400, "http status: 400 Bad Request"),
        ("connect_refused", 503, "http status: 503 Service Unavailable"),
    ],
)
def test_our_refusals_reach_its_log(lab: Lab, reason: str, status: int, said: str) -> None:
    position = lab.log_size()
    with serving(lab, Deny(reason, status)):
        dropped(lab)
        lab.wait_log(said, position)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("another identity", "peer did not present the expected SAN"),
        ("foreign root", "UnknownIssuer"),
        ("expired", "certificate expired"),
    ],
)
def test_it_refuses_a_server_that_is_not_who_it_should_be(
    lab: Lab, application: servers.Server, case: str, said: str
) -> None:
    credential = {
        "another identity": lab.issuer.leaf(spiffe("other", "shop")),
        "foreign root": Authority.root("foreign").leaf(OURS).trusting(lab.issuer),
        "expired": lab.issuer.leaf(OURS, not_before=-7200, not_after=-3600),
    }[case]
    position = lab.log_size()
    with serving(lab, Deliver(application.address), credential) as tag:
        dropped(lab)
        lab.wait_log(said, position)
        failed = lab.host.wait(TunnelFailed, tag=tag)
    assert lab.host.slug(failed.reason_code) == "tls_handshake_failed"
    assert "alert" in failed.detail


@pytest.mark.parametrize("domains", [("elsewhere",), ("cluster.local", "elsewhere")])
def test_we_refuse_it_when_its_trust_domain_is_not_ours(
    lab: Lab, application: servers.Server, domains: tuple[str, ...]
) -> None:
    tag = lab.next_tag()
    lab.host.identity(1000 + tag, lab.issuer.leaf(OURS), domains)
    lab.host.listen("HBONE", tag, Deliver(application.address), identity=1000 + tag, host=OUR_IP, port=HBONE)
    try:
        if "cluster.local" in domains:
            with lab.inside_rust():
                patterns.exchange(ENTRY, 1, 100)
        else:
            dropped(lab)
            failed = lab.host.wait(TunnelFailed, tag=tag)
            assert lab.host.slug(failed.reason_code) == "peer_trust_domain"
    finally:
        lab.host.engine("drain", tag)
        wait_until(lambda: not _listens(lab), "our listener is closed")


def test_a_cut_flow_ends_alone(lab: Lab, application: servers.Server) -> None:
    """Two streams of one tunnel; one is reset by us."""
    position = lab.log_size()
    with serving(lab, Deliver(application.address)) as tag:
        apps = []
        for _ in range(2):
            with lab.inside_rust():
                app = socket.create_connection(ENTRY, timeout=30)
            app.sendall(b"one")
            assert app.recv(3, socket.MSG_WAITALL) == b"one"
            apps.append(app)
        kept, cut = apps
        tokens = [g.event.token for g in lab.host.events() if g.tag == tag and g.kind == "ConnectRequested"]
        tunnels = {g.event.tunnel for g in lab.host.events() if g.tag == tag and g.kind == "ConnectRequested"}
        assert len(tunnels) == 1
        lab.host.engine("cut", tokens[1], lab.host.reasons.index("policy_changed"))
        with contextlib.suppress(ConnectionResetError):
            assert cut.recv(10) == b""
        kept.sendall(b"two")
        assert kept.recv(3, socket.MSG_WAITALL) == b"two"
        closed = lab.host.wait(Closed, lambda e: e.token == tokens[1])
        assert lab.host.slug(closed.reason_code) == "policy_changed"
        cut.close()
        lab.wait_log("in response to a CONNECT request was reset or abnormally closed", position)
        kept.close()


def test_goaway_moves_new_connections_to_a_new_tunnel_and_lets_old_ones_finish(
    lab: Lab, application: servers.Server
) -> None:
    with serving(lab, Deliver(application.address)):
        with lab.inside_rust():
            old = socket.create_connection(ENTRY, timeout=30)
        old.sendall(b"one")
        assert old.recv(3, socket.MSG_WAITALL) == b"one"
    with serving(lab, Deliver(application.address)) as tag:
        with lab.inside_rust():
            patterns.exchange(ENTRY, 1, 1000)
        assert lab.host.wait(ConnectRequested, tag=tag)
        old.sendall(b"two")
        assert old.recv(3, socket.MSG_WAITALL) == b"two"
        old.close()
