"""From the engine's event to its verdict and to the log: inbound."""

from __future__ import annotations

import pytest

from ebpf.marks import ONWARD_MARK
from hbone.engine import ListenerKind, reason_code
from hbone.reasons import Reason
from tests.unit.ztunnel.agentbench import Bench
from tests.unit.ztunnel.pathbench import CLIENT, HERE, policy
from ztunnel.decide.labels import baggage_of
from ztunnel.state.policy import Action, StringMatcher


@pytest.mark.trio
async def test_a_connect_request_is_delivered_under_the_clients_address(bench: Bench) -> None:
    await bench.know(CLIENT, HERE)
    pod = await bench.enrol(HERE)
    token = bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
    assert bench.engine.named("connect_plain") == [
        {
            "token": token,
            "destination": ("10.0.0.3", 8080),
            "netns": pod.netns,
            "source_ip": "10.0.0.1",
            "headers": (("baggage", str(baggage_of(HERE))),),
            "mark": ONWARD_MARK,
        }
    ]
    line = bench.close(token, up=84, down=175)
    assert "dst.addr=10.0.0.3:15008 dst.hbone_addr=10.0.0.3:8080" in line
    assert 'direction="inbound" bytes_sent=175 bytes_recv=84' in line
    text = bench.metrics.render("")[0].decode()
    received = next(r for r in text.splitlines() if r.startswith("istio_tcp_received_bytes_total{"))
    assert received.endswith(" 84.0")


@pytest.mark.trio
async def test_baggage_can_be_switched_off() -> None:
    bench = Bench(ENABLE_RESPONSE_BAGGAGE="false")
    await bench.know(CLIENT, HERE)
    pod = await bench.enrol(HERE)
    bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
    (call,) = bench.engine.named("connect_plain")
    assert call["headers"] == ()
    bench.dispose()


@pytest.mark.trio
async def test_connections_that_begin_are_logged_at_level_debug(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.know(CLIENT, HERE)
    pod = await bench.enrol(HERE)
    caplog.set_level("DEBUG", "ztunnel.access")
    token = bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
    (line,) = bench.log().splitlines()
    assert "\tdebug\taccess\tconnection opened\tsrc.addr=10.0.0.1:" in line
    assert line.endswith('direction="inbound"')
    assert "connection complete" in bench.close(token)


@pytest.mark.trio
async def test_original_source_can_be_switched_off() -> None:
    bench = Bench(ENABLE_ORIG_SRC="false")
    await bench.know(CLIENT, HERE)
    pod = await bench.enrol(HERE)
    bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
    (call,) = bench.engine.named("connect_plain")
    assert (call["source_ip"], call["mark"]) == (None, 0)
    bench.dispose()


@pytest.mark.trio
@pytest.mark.parametrize(
    ("authority", "changes", "status", "reason"),
    [
        ("10.0.0.3", {}, 400, Reason.BAD_REQUEST),
        ("10.0.0.9:80", {}, 400, Reason.IP_MISMATCH),
        ("10.0.0.3:15008", {}, 503, Reason.ILLEGAL_PORT),
        ("10.0.0.3:80", {"method": "GET"}, 400, Reason.BAD_REQUEST),
        ("10.0.0.3:80", {"peer_identity": "spiffe://nonsense"}, 400, Reason.BAD_REQUEST),
    ],
)
async def test_requests_that_make_no_sense_get_their_status(
    bench: Bench, authority: str, changes: dict[str, str], status: int, reason: Reason
) -> None:
    await bench.know(CLIENT, HERE)
    pod = await bench.enrol(HERE)
    token = bench.request(pod, "10.0.0.1", "10.0.0.3", authority, **changes)
    assert bench.engine.named("refuse") == [
        {"token": token, "reason_code": reason_code(reason), "status": status}
    ]
    assert f'reason="{reason.value}"' in bench.close(token, reason.value, established=False)


@pytest.mark.trio
async def test_a_denied_peer_gets_401_and_the_log_names_the_policy(bench: Bench) -> None:
    await bench.know(
        CLIENT, HERE, policies=(policy(Action.DENY, namespaces=StringMatcher(exact=frozenset({"shop"}))),)
    )
    pod = await bench.enrol(HERE)
    token = bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
    (call,) = bench.engine.named("refuse")
    assert call["status"] == 401
    line = bench.close(token, "policy_denied", established=False)
    assert 'reason="policy_denied" policy="shop/deny-policy"' in line


@pytest.mark.trio
async def test_plaintext_has_no_identity(bench: Bench) -> None:
    allowed = StringMatcher(exact=frozenset({"cluster.local/ns/shop/sa/client"}))
    await bench.know(CLIENT, HERE, policies=(policy(Action.ALLOW, principals=allowed),))
    pod = await bench.enrol(HERE)
    token = bench.connect(pod, "10.0.0.1", ("10.0.0.3", 8080), ListenerKind.INBOUND)
    line = bench.close(token, "policy_no_match", established=False)
    assert 'reason="policy_no_match" policy="shop/allow-policy"' in line
    assert "src.identity" not in line
    bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
    assert len(bench.engine.named("connect_plain")) == 1


@pytest.mark.trio
async def test_an_event_for_a_withdrawn_pod_is_refused(bench: Bench) -> None:
    await bench.know(CLIENT)
    pod = await bench.enrol(CLIENT)
    pod.tag += 1000
    bench.connect(pod, "10.0.0.1", ("192.0.2.7", 443))
    (call,) = bench.engine.named("refuse")
    assert call["reason_code"] == reason_code(Reason.DRAINING)


@pytest.mark.trio
async def test_a_defect_refuses_the_connection_instead_of_leaving_it_open(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.know(CLIENT)
    pod = await bench.enrol(CLIENT)
    monkeypatch.setattr("ztunnel.outbound.decide_outbound", lambda *_: 1 / 0)
    bench.connect(pod, "10.0.0.1", ("192.0.2.7", 443))
    (call,) = bench.engine.named("refuse")
    assert call["reason_code"] == reason_code(Reason.INTERNAL)
