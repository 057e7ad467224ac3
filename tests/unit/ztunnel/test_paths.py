"""From the engine's event to its verdict and to the log: outbound, waiting, refusals."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hbone.engine import ListenerKind, reason_code
from hbone.reasons import Reason
from tests.unit.ztunnel.agentbench import Bench
from tests.unit.ztunnel.doubles import key, workload
from tests.unit.ztunnel.pathbench import CLIENT, HERE, WEB, WEB_SERVICE, tasks
from ztunnel import carry
from ztunnel.state.model import TunnelProtocol
from ztunnel.state.snapshot import Update


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
