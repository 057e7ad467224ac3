"""From the engine's event to its verdict and to the log: outbound, inbound, waiting, refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ebpf.marks import ONWARD_MARK
from hbone.engine import ListenerKind, reason_code
from hbone.reasons import Reason
from tests.unit.ztunnel.agentbench import Bench
from tests.unit.ztunnel.doubles import key, service, workload
from ztunnel import carry
from ztunnel.decide.labels import baggage_of
from ztunnel.state.model import Membership, Port, TunnelProtocol
from ztunnel.state.policy import Action, Clause, Match, Policy, PolicyScope, Rule, StringMatcher
from ztunnel.state.snapshot import Update

CLIENT = workload("client", "10.0.0.1")
WEB = workload(
    "web",
    "10.0.0.2",
    node="n2",
    services=(Membership("shop/web.shop.svc.cluster.local", (Port(80, 8080),)),),
)
WEB_SERVICE = service("web", "10.1.0.1", Port(80, 8080))
HERE = workload("here", "10.0.0.3")


def policy(action: Action, **match: Any) -> Policy:
    rules = (Rule((Clause((Match(**match),)),)),) if match else (Rule(),)
    return Policy("shop", f"{action.value.lower()}-policy", PolicyScope.NAMESPACE, action, rules)


@pytest.fixture
def bench(caplog: pytest.LogCaptureFixture) -> Iterator[Bench]:
    caplog.set_level("INFO", "ztunnel.access")
    bench = Bench()
    yield bench
    bench.dispose()


@asynccontextmanager
async def tasks(bench: Bench) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.carrier.run)
        nursery.start_soon(bench.store.run)
        nursery.start_soon(bench.redecider.run)
        await wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_service_call_goes_through_a_tunnel_with_the_headers_of_istio(bench: Bench) -> None:
    await bench.know(CLIENT, WEB, services=(WEB_SERVICE,))
    pod = await bench.enrol(CLIENT)
    token = bench.connect(pod, "10.0.0.1", ("10.1.0.1", 80))
    (call,) = bench.engine.named("connect_tunnel")
    assert call == {
        "token": token,
        "destination": ("10.0.0.2", 15008),
        "netns": pod.netns,
        "identity": bench.identities.number(CLIENT.identity),
        "sans": ("spiffe://cluster.local/ns/shop/sa/web",),
        "authority": "10.0.0.2:8080",
        "headers": (
            (
                "baggage",
                "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=client,"
                "service.name=client,service.version=v1",
            ),
            ("forwarded", 'for="10.0.0.1:41200";host=web.shop.svc.cluster.local'),
            ("traceparent", f"00-{'01' * 16}-{'01' * 8}-00"),
        ),
        "mark": 0,
    }
    assert bench.engine.calls[-1] == ("flush", {})
    bench.establish(token)
    line = bench.close(token, up=84, down=175)
    assert 'src.identity="spiffe://cluster.local/ns/shop/sa/client"' in line
    assert "dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:8080" in line
    assert 'direction="outbound" bytes_sent=84 bytes_recv=175' in line
    assert "error=" not in line
    assert len(bench.flows) == 0


@pytest.mark.trio
async def test_an_unknown_destination_is_left_alone(bench: Bench) -> None:
    await bench.know(CLIENT)
    pod = await bench.enrol(CLIENT)
    token = bench.connect(pod, "10.0.0.1", ("192.0.2.7", 443))
    assert bench.engine.named("connect_plain") == [
        {
            "token": token,
            "destination": ("192.0.2.7", 443),
            "netns": pod.netns,
            "source_ip": None,
            "headers": (),
            "mark": 0,
        }
    ]


@pytest.mark.trio
async def test_a_refusal_resets_counts_and_says_why(bench: Bench) -> None:
    await bench.know(CLIENT, services=(WEB_SERVICE,))
    pod = await bench.enrol(CLIENT)
    token = bench.connect(pod, "10.0.0.1", ("10.1.0.1", 80))
    (call,) = bench.engine.named("refuse")
    assert call == {"token": token, "reason_code": reason_code(Reason.NO_HEALTHY_UPSTREAM), "status": 503}
    line = bench.close(token, "no_healthy_upstream", established=False)
    assert 'reason="no_healthy_upstream"' in line
    text = bench.metrics.render("")[0].decode()
    assert 'ambient_refusals_total{reason="no_healthy_upstream",reporter="source"} 1.0' in text
    assert "istio_tcp_connections_failed_total{" in text
    assert 'response_flags="CONNECT"' in text


@pytest.mark.trio
async def test_a_pod_that_xds_does_not_know_yet_waits_and_then_goes_on(
    bench: Bench, autojump_clock: MockClock
) -> None:
    pod = await bench.enrol(CLIENT)
    async with tasks(bench):
        bench.connect(pod, "10.0.0.1", ("192.0.2.7", 443))
        await trio.sleep(4)
        assert bench.engine.named("connect_plain") == []
        await bench.know(CLIENT)
        await wait_all_tasks_blocked()
        assert len(bench.engine.named("connect_plain")) == 1
        assert bench.engine.calls[-1] == ("flush", {})


@pytest.mark.trio
@pytest.mark.parametrize("kind", [ListenerKind.OUTBOUND, ListenerKind.INBOUND])
async def test_a_pod_that_xds_never_describes_is_refused_after_five_seconds(
    bench: Bench, autojump_clock: MockClock, kind: ListenerKind
) -> None:
    pod = await bench.enrol(CLIENT)
    async with tasks(bench):
        bench.connect(pod, "10.0.0.9", ("10.0.0.1", 80), kind)
        await trio.sleep(5.1)
        (call,) = bench.engine.named("refuse")
    assert call["reason_code"] == reason_code(Reason.WORKLOAD_PENDING)


@pytest.mark.trio
async def test_a_certificate_on_its_way_is_waited_for(bench: Bench, autojump_clock: MockClock) -> None:
    await bench.know(CLIENT, WEB)
    pod = await bench.enrol(CLIENT)
    bench.identities.missing.add("client")
    async with tasks(bench):
        bench.connect(pod, "10.0.0.1", ("10.0.0.2", 8080))
        await trio.sleep(1)
        assert bench.engine.named("connect_tunnel") == []
        bench.identities.missing.clear()
        await trio.sleep(1)
        assert len(bench.engine.named("connect_tunnel")) == 1


@pytest.mark.trio
async def test_without_a_certificate_nothing_goes_out(bench: Bench, autojump_clock: MockClock) -> None:
    await bench.know(CLIENT, WEB)
    pod = await bench.enrol(CLIENT)
    bench.identities.missing.add("client")
    async with tasks(bench):
        token = bench.connect(pod, "10.0.0.1", ("10.0.0.2", 8080))
        await trio.sleep(6)
    (call,) = bench.engine.named("refuse")
    assert call["reason_code"] == reason_code(Reason.IDENTITY_UNAVAILABLE)
    assert bench.engine.named("connect_plain") == []
    assert 'the CA is away" reason="identity_unavailable"' in bench.close(
        token, "identity_unavailable", established=False
    )


@pytest.mark.trio
async def test_too_many_waiting_connections_are_refused(
    bench: Bench, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carry, "MAX_WAITING", 3)
    pod = await bench.enrol(CLIENT)
    async with tasks(bench):
        for _ in range(5):
            bench.connect(pod, "10.0.0.1", ("192.0.2.7", 443))
        refused = [call["reason_code"] for call in bench.engine.named("refuse")]
        assert refused == [reason_code(Reason.OVERLOAD)] * 2
        assert bench.carrier.waiting == 3
        await trio.sleep(6)
        assert bench.carrier.waiting == 0


@pytest.mark.trio
async def test_on_demand_an_unknown_destination_is_asked_for_first(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    bench = Bench(XDS_ON_DEMAND="true")
    await bench.know(CLIENT)
    name = key("net1", "10.0.0.2")
    bench.answers[name] = Update(workloads=(WEB,))
    pod = await bench.enrol(CLIENT)
    async with tasks(bench):
        bench.connect(pod, "10.0.0.1", ("10.0.0.2", 8080))
        await wait_all_tasks_blocked()
        assert bench.asked == [name]
        assert len(bench.engine.named("connect_tunnel")) == 1
        bench.connect(pod, "10.0.0.1", ("192.0.2.7", 443))
        await wait_all_tasks_blocked()
        assert len(bench.engine.named("connect_plain")) == 1
    bench.dispose()


@pytest.mark.trio
async def test_on_demand_a_callers_workload_is_not_asked_for(autojump_clock: MockClock) -> None:
    bench = Bench(XDS_ON_DEMAND="true")
    await bench.know(HERE)
    pod = await bench.enrol(HERE)
    async with tasks(bench):
        token = bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        await wait_all_tasks_blocked()
        assert len(bench.engine.named("connect_plain")) == 1, "its certificate says enough"
        assert bench.asked == []
        bench.close(token, up=1, down=1)
        assert (
            'source_principal="spiffe://cluster.local/ns/shop/sa/client"'
            in bench.metrics.render("")[0].decode()
        )
    bench.dispose()


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


@pytest.mark.trio
async def test_a_tunnel_that_cannot_be_dialled_hints_at_a_network_policy(bench: Bench) -> None:
    await bench.know(CLIENT, WEB)
    pod = await bench.enrol(CLIENT)
    token = bench.connect(pod, "10.0.0.1", ("10.0.0.2", 8080))
    line = bench.close(token, "connect_timeout", established=False)
    assert 'reason="network_policy"' in line
    assert 'response_flags="NETWORK_POLICY"' in bench.metrics.render("")[0].decode()


@pytest.mark.trio
async def test_byte_counters_are_live_and_never_counted_twice(bench: Bench) -> None:
    await bench.know(CLIENT, WEB)
    pod = await bench.enrol(CLIENT)
    token = bench.connect(pod, "10.0.0.1", ("10.0.0.2", 8080))
    bench.flows.count([(token, 10, 20), (999, 1, 1)])
    bench.flows.count([(token, 15, 20)])
    bench.close(token, up=20, down=30)
    text = bench.metrics.render("")[0].decode().splitlines()
    assert [r.rpartition(" ")[2] for r in text if r.startswith("istio_tcp_received_bytes_total{")] == ["20.0"]
    assert [r.rpartition(" ")[2] for r in text if r.startswith("istio_tcp_sent_bytes_total{")] == ["30.0"]


@pytest.mark.trio
async def test_a_new_policy_cuts_the_connections_it_forbids_and_no_others(bench: Bench) -> None:
    guest = workload("guest", "10.0.0.8")
    await bench.know(CLIENT, HERE, guest)
    pod = await bench.enrol(HERE)
    async with tasks(bench):
        kept = bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        cut = bench.request(
            pod,
            "10.0.0.8",
            "10.0.0.3",
            "10.0.0.3:8080",
            peer_identity="spiffe://cluster.local/ns/shop/sa/guest",
        )
        await wait_all_tasks_blocked()
        only = StringMatcher(exact=frozenset({"cluster.local/ns/shop/sa/client"}))
        await bench.know(policies=(policy(Action.ALLOW, principals=only),))
        await wait_all_tasks_blocked()
        assert bench.engine.named("cut") == [
            {"token": cut, "reason_code": reason_code(Reason.POLICY_CHANGED)}
        ]
        assert bench.engine.calls[-1] == ("flush", {})
        line = bench.close(cut, "policy_changed")
        assert 'reason="policy_changed" policy="shop/allow-policy"' in line
        assert bench.flows.get(kept) is not None
        # Still watched: the next change is seen too.
        await bench.know(policies=(policy(Action.DENY),))
        await wait_all_tasks_blocked()
        assert [call["token"] for call in bench.engine.named("cut")] == [cut, kept]


@pytest.mark.trio
async def test_a_change_of_something_else_decides_nothing_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.know(CLIENT, HERE)
    pod = await bench.enrol(HERE)
    async with tasks(bench):
        bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        monkeypatch.setattr("ztunnel.flows.redecide.decide_inbound", lambda *_: 1 / 0)
        await bench.know(workload("stranger", "10.0.7.7", node="n9"))
        await wait_all_tasks_blocked()
        assert bench.engine.named("cut") == []


@pytest.mark.trio
async def test_a_policy_newly_listed_by_the_workload_cuts_open_connections(bench: Bench) -> None:
    """Istio's agent looks at the workload as it was when the connection began; here it counts as it is."""
    deny = Policy("shop", "mine", PolicyScope.WORKLOAD_SELECTOR, Action.DENY, (Rule(),))
    await bench.know(CLIENT, HERE, policies=(deny,))
    pod = await bench.enrol(HERE)
    async with tasks(bench):
        token = bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        await bench.know(workload("here", "10.0.0.3", authorization_policies=("shop/mine",)))
        await wait_all_tasks_blocked()
        assert [call["token"] for call in bench.engine.named("cut")] == [token]


@pytest.mark.trio
async def test_an_update_between_decision_and_notification_is_not_lost(bench: Bench) -> None:
    await bench.know(CLIENT, HERE)
    pod = await bench.enrol(HERE)
    async with tasks(bench):
        # Applied but not yet told to subscribers when the connection arrives, and the other way round.
        token = bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        await bench.store.apply(Update(policies=(policy(Action.DENY),)))
        late = bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        await wait_all_tasks_blocked()
        assert [call["token"] for call in bench.engine.named("cut")] == [token]
        assert [call["token"] for call in bench.engine.named("refuse")] == [late]


@pytest.mark.trio
async def test_ten_thousand_affected_connections_are_cut_without_stopping_the_loop(bench: Bench) -> None:
    await bench.know(CLIENT, HERE)
    pod = await bench.enrol(HERE)
    for _ in range(2000):
        bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
    async with tasks(bench):
        await bench.know(policies=(policy(Action.DENY),))
        turns = 0
        with trio.fail_after(30):
            while len(bench.engine.named("cut")) < 2000:
                turns += 1
                await trio.lowlevel.checkpoint()
        assert turns >= 5


@pytest.mark.trio
async def test_plain_workloads_get_plain_connections(bench: Bench) -> None:
    outside = workload("outside", "10.0.0.5", tunnel_protocol=TunnelProtocol.NONE)
    await bench.know(CLIENT, outside)
    pod = await bench.enrol(CLIENT)
    bench.connect(pod, "10.0.0.1", ("10.0.0.5", 80))
    (call,) = bench.engine.named("connect_plain")
    assert call["destination"] == ("10.0.0.5", 80)


@pytest.mark.trio
async def test_a_pod_that_is_balanced_to_itself_is_reached_directly(bench: Bench) -> None:
    itself = workload("web", "10.0.0.2", services=WEB.services)
    await bench.know(itself, services=(WEB_SERVICE,))
    bench.addresses = itself.addresses
    pod = await bench.enrol(itself)
    token = bench.connect(pod, "10.0.0.2", ("10.1.0.1", 80))
    (call,) = bench.engine.named("connect_plain")
    assert call["destination"] == ("10.0.0.2", 8080)
    line = bench.close(token)
    assert "identity" not in line
    assert "dst.addr=10.0.0.2:8080" in line


LISTED = Policy("shop", "mine", PolicyScope.WORKLOAD_SELECTOR, Action.ALLOW, (Rule(),))
LISTING = workload("here", "10.0.0.3", authorization_policies=("shop/mine",))


@pytest.mark.trio
async def test_a_live_connection_survives_the_moment_between_workload_and_policy(
    bench: Bench, autojump_clock: MockClock
) -> None:
    await bench.know(CLIENT, HERE)
    pod = await bench.enrol(HERE)
    async with tasks(bench):
        bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        await bench.know(LISTING)
        await trio.sleep(1)
        await bench.know(policies=(LISTED,))
        await trio.sleep(60)
        assert bench.engine.named("cut") == []
        # It is watched by the policy that came.
        await bench.know(policies=(dataclasses.replace(LISTED, action=Action.DENY),))
        await trio.sleep(0.1)
        assert len(bench.engine.named("cut")) == 1


@pytest.mark.trio
async def test_a_policy_that_stays_missing_cuts_after_a_grace(
    bench: Bench, autojump_clock: MockClock
) -> None:
    await bench.know(CLIENT, HERE)
    pod = await bench.enrol(HERE)
    async with tasks(bench):
        token = bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        await bench.know(LISTING)
        await trio.sleep(1.9)
        assert bench.engine.named("cut") == []
        await trio.sleep(0.2)
        assert [call["token"] for call in bench.engine.named("cut")] == [token]
        assert 'policy="shop/mine"' in bench.close(token, "policy_changed")


@pytest.mark.trio
@pytest.mark.parametrize("comes", [True, False])
async def test_a_new_connection_waits_for_a_policy_on_its_way(
    bench: Bench, autojump_clock: MockClock, comes: bool
) -> None:
    await bench.know(CLIENT, LISTING)
    pod = await bench.enrol(HERE)
    async with tasks(bench):
        bench.request(pod, "10.0.0.1", "10.0.0.3", "10.0.0.3:8080")
        await trio.sleep(1)
        assert bench.engine.named("refuse") == []
        if comes:
            await bench.know(policies=(LISTED,))
        await trio.sleep(1.5)
    refused = [call["reason_code"] for call in bench.engine.named("refuse")]
    assert refused == ([] if comes else [reason_code(Reason.POLICY_PENDING)])
    assert len(bench.engine.named("connect_plain")) == int(comes)
