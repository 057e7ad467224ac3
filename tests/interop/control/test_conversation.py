"""The start-up conversation of an agent, live changes, reconnects and refusals, over real TLS and gRPC."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from istiodlite.api import discovery_pb2, workload_pb2
from istiodlite.machines import HEALTH_TYPE
from tests.interop.control.agent import ADDRESS, AUTHORIZATION, DEADLINE, DELTA, Stream
from tests.interop.control.conftest import ControlPlane, agent_pod, pod, policy, service
from tests.support.serving import wait_until

WEB = "Kubernetes//Pod/shop/web"


def _exhaust(stream: Stream) -> None:
    while True:
        stream.take()


def test_the_first_response_of_each_type_comes_even_if_it_is_empty(control: ControlPlane) -> None:
    with control.agent().stream() as stream:
        stream.start()
        first = {stream.receive().type_url, stream.receive().type_url}
        assert first == {ADDRESS, AUTHORIZATION}
        assert set(stream.services) == {"shop/web.shop.svc.cluster.local"}
        assert WEB in stream.workloads
        assert stream.policies == {}


def test_a_pod_is_served_with_its_service_ports_and_protocol(control: ControlPlane) -> None:
    with control.agent().stream() as stream:
        stream.start()
        stream.until(lambda s: WEB in s.workloads)
        web = stream.workloads[WEB]
        assert web.tunnel_protocol == workload_pb2.HBONE
        ports = web.services["shop/web.shop.svc.cluster.local"].ports
        assert [(port.service_port, port.target_port) for port in ports] == [(80, 8080)]


def test_a_live_change_reaches_the_agent_within_the_debounce_time(control: ControlPlane) -> None:
    with control.agent().stream() as stream:
        stream.start()
        stream.until(lambda s: WEB in s.workloads)
        began = time.monotonic()
        control.put(pod("shop", "new", "10.1.0.9"))
        stream.until(lambda s: "Kubernetes//Pod/shop/new" in s.workloads)
        took = time.monotonic() - began
        assert 0.1 <= took < 2.0, "100 ms of quiet are waited for, and little more"
        control.delete(pod("shop", "new", "10.1.0.9"))
        stream.until(lambda s: "Kubernetes//Pod/shop/new" not in s.workloads)


def test_a_new_policy_comes_with_the_workloads_that_list_it(control: ControlPlane) -> None:
    with control.agent().stream() as stream:
        stream.start()
        stream.until(lambda s: WEB in s.workloads)
        selector = {"matchLabels": {"app": "web"}}
        control.put(policy("shop", "only-db", selector=selector, rules=[{}]))
        stream.until(lambda s: "shop/only-db" in s.policies)
        stream.until(lambda s: "shop/only-db" in s.workloads[WEB].authorization_policies)


def test_a_burst_of_changes_comes_as_one_response(control: ControlPlane) -> None:
    with control.agent().stream() as stream:
        stream.start()
        stream.until(lambda s: WEB in s.workloads)
        batches = control.metric("istiodlite_batches_total")
        control.put(*(pod("shop", f"p{i}", f"10.2.0.{i}") for i in range(1, 101)))
        stream.until(lambda s: sum(name.startswith("Kubernetes//Pod/shop/p") for name in s.workloads) == 100)
        assert control.metric("istiodlite_batches_total") - batches <= 2


def test_changes_that_never_pause_are_pushed_after_the_longest_time(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, "--debounce-quiet", "2", "--debounce-longest", "2.5")
    plane.put(agent_pod("n1"))
    plane.start()
    stopped = threading.Event()

    def restless() -> None:
        count = 0
        while not stopped.wait(0.2):
            count += 1
            plane.put(pod("shop", "restless", f"10.5.{count // 250}.{count % 250}"))

    changing = threading.Thread(target=restless)
    with plane.agent().stream() as stream:
        stream.start()
        stream.until(lambda s: len(s.workloads) == 1)
        changing.start()
        try:
            stream.until(lambda s: "Kubernetes//Pod/shop/restless" in s.workloads)
        finally:
            stopped.set()
            changing.join()
    assert plane.stop() == 0


def test_a_reconnect_with_known_versions_sends_only_the_difference(control: ControlPlane) -> None:
    with control.agent().stream() as stream:
        stream.start()
        stream.receive()
        stream.receive()
        versions = stream.versions
    control.put(pod("shop", "late", "10.1.0.77"))
    control.delete(pod("shop", "db", ""))
    wait_until(lambda: "10.1.0.77" in control.get("/debug/resources")[1], "the new pod")
    with control.agent().stream() as stream:
        stream.start(versions)
        address, policies = stream.receive(), stream.receive()
        if address.type_url != ADDRESS:
            address, policies = policies, address
        assert [one.name for one in address.resources] == ["Kubernetes//Pod/shop/late"]
        assert list(address.removed_resources) == ["Kubernetes//Pod/shop/db"]
        assert len(policies.resources) == 0


def test_a_restart_keeps_root_and_versions(control: ControlPlane) -> None:
    agent = control.agent()
    with agent.stream() as stream:
        stream.start()
        stream.receive()
        stream.receive()
        versions = stream.versions
    assert control.stop() == 0
    control.start()
    with agent.stream() as stream:
        stream.start(versions)
        for response in (stream.receive(), stream.receive()):
            assert len(response.resources) == 0
            assert len(response.removed_resources) == 0


def test_a_refused_response_shows_in_status_log_and_metric(control: ControlPlane) -> None:
    with control.agent().stream() as stream:
        stream.subscribe(ADDRESS)
        stream.refuse(stream.take(), "Kubernetes//Pod/shop/web: unknown enum value")
        client = wait_until(
            lambda: next((c for c in control.json("/debug/clients") if c["types"]["Address"]["nacks"]), None),
            "the refusal in /debug/clients",
        )
        assert client["types"]["Address"]["lastNack"].endswith("unknown enum value")
        assert client["nodeName"] == "n1"
        assert control.metric('pilot_total_xds_rejects_total{type="Address"}') == 1
        assert "NACK" in control.log
        assert stream.is_quiet(0.4), "the same response is not sent again"
        control.put(pod("shop", "next", "10.1.0.10"))
        stream.until(lambda s: "Kubernetes//Pod/shop/next" in s.workloads)


def test_acknowledgements_show_in_status(control: ControlPlane) -> None:
    with control.agent().stream() as stream:
        stream.start()
        stream.receive()
        stream.receive()

        def acknowledged() -> bool:
            types = control.json("/debug/clients")[0]["types"].values()
            return all(one["acks"] == 1 and one["unacknowledged"] == 0 for one in types)

        wait_until(acknowledged, "both types acknowledged")


def test_on_demand_starts_with_the_own_node_and_learns_by_asking(control: ControlPlane) -> None:
    with control.agent(node="n2").stream() as stream:
        stream.subscribe(ADDRESS, resource_names_subscribe=["*"], resource_names_unsubscribe=["*"])
        stream.receive()
        assert set(stream.workloads) == {
            "Kubernetes//Pod/shop/db",
            "Kubernetes//Pod/istio-system/ztunnel-n2",
        }
        stream.subscribe(ADDRESS, resource_names_subscribe=["/10.96.0.10"])
        response = stream.receive()
        assert {one.name for one in response.resources} == {"shop/web.shop.svc.cluster.local", WEB}
        stream.subscribe(ADDRESS, resource_names_subscribe=["/10.9.9.9"])
        assert list(stream.receive().removed_resources) == ["/10.9.9.9"]
        control.put(pod("shop", "unasked", "10.1.0.12"), pod("shop", "asked", "10.9.9.9"))
        stream.until(lambda s: "Kubernetes//Pod/shop/asked" in s.workloads)
        assert "Kubernetes//Pod/shop/unasked" not in stream.workloads


def test_an_agent_that_does_not_read_misses_nothing_and_gets_the_latest(control: ControlPlane) -> None:
    with control.agent().stream() as stream:
        stream.start()
        stream.until(lambda s: WEB in s.workloads)
        for round_ in range(8):
            control.put(service("shop", "web", f"10.96.1.{round_}"))
            vip = f'"10.96.1.{round_}"'
            wait_until(lambda vip=vip: vip in control.get("/debug/resources")[1], vip)
        stream.until(
            lambda s: (
                s.services["shop/web.shop.svc.cluster.local"].addresses[0].address == bytes([10, 96, 1, 7])
            )
        )


def test_a_client_that_does_not_read_holds_up_nobody_and_then_gets_the_latest_at_once(
    control: ControlPlane,
) -> None:
    base = control.agent()
    with base.channel() as slow_channel, base.stream() as quick:
        slow = Stream(base, slow_channel, reading=False)
        slow.start()
        quick.start()
        quick.until(lambda s: WEB in s.workloads)
        # Each round is more than what sockets and flow control buffer on the way.
        for round_ in range(6):
            control.put(*(_bulky(f"bulk{i}", str(round_)) for i in range(4)))
            quick.until(lambda s, v=f"v{round_}": _revisions(s) == {v})
        stuck = next(
            one for one in control.json("/debug/clients") if one["stream"] != _number(quick, control)
        )
        assert stuck["responses"] < 6, "not a response a change"
        slow.read()
        slow.until(lambda s: _revisions(s) == {"v5"})
        slow.close()


def _bulky(name: str, version: str) -> dict[str, Any]:
    document = pod("bulk", name, "10.3.0.1")
    document["metadata"]["labels"] = {"version": f"v{version}"}
    document["spec"]["containers"] = [{"name": "c"}]
    document["status"]["podIPs"] = [{"ip": f"fd00::{i:x}"} for i in range(1, 1200)]
    return document


def _revisions(stream: Stream) -> set[str]:
    bulk = [one for one in stream.workloads.values() if one.namespace == "bulk"]
    return {one.canonical_revision for one in bulk} if len(bulk) == 4 else set()


def _number(stream: Stream, control: ControlPlane) -> int:
    """The stream that acknowledged most is the one that reads."""
    clients = control.json("/debug/clients")
    return int(max(clients, key=lambda one: sum(t["acks"] for t in one["types"].values()))["stream"])


def test_sixteen_agents_get_the_same(control: ControlPlane) -> None:
    base = control.agent()
    with base.channel() as channel:
        streams = [Stream(base, channel) for _ in range(16)]
        for stream in streams:
            stream.start()
        for stream in streams:
            stream.until(lambda s: WEB in s.workloads)
        control.put(pod("shop", "shared", "10.1.0.42"))
        for stream in streams:
            stream.until(lambda s: "Kubernetes//Pod/shop/shared" in s.workloads)
        assert control.metric("pilot_xds") == 16
        for stream in streams:
            stream.close()


def test_a_stop_ends_open_streams_quickly(control: ControlPlane) -> None:
    with control.agent().stream() as stream:
        stream.start()
        stream.until(lambda s: WEB in s.workloads)
        began = time.monotonic()
        assert control.stop() == 0
        assert time.monotonic() - began < 30
        with pytest.raises(grpc.RpcError) as ended:
            _exhaust(stream)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("token", ["", "not.a.token"])
def test_a_stream_without_a_valid_token_is_refused(control: ControlPlane, token: str) -> None:
    agent = control.agent()
    agent.token = token
    with agent.stream() as stream:
        stream.start()
        with pytest.raises(grpc.RpcError) as refused:
            stream.take()
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_node_of_another_namespace_than_its_token_is_refused(control: ControlPlane) -> None:
    with control.agent(namespace="shop").stream() as stream:
        stream.start()
        with pytest.raises(grpc.RpcError) as refused:
            stream.take()
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_client_with_another_root_does_not_connect(control: ControlPlane) -> None:
    agent = control.agent()
    other = ControlPlane(control.objects.parent)
    other.data = control.objects.parent / "other"
    agent.root = other.root()
    with agent.stream() as stream:
        stream.start()
        with pytest.raises(grpc.RpcError) as refused:
            stream.take()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_serving_certificate_has_the_service_name(control: ControlPlane) -> None:
    with control.agent(name_override="istiod.istio-system.svc").stream() as stream:
        stream.start()
        stream.receive()


def test_a_herd_of_streams_at_once_is_served(control: ControlPlane) -> None:
    base = control.agent()
    with base.channel() as channel:
        streams = [Stream(base, channel) for _ in range(200)]
        for stream in streams:
            stream.start()
        for stream in streams:
            stream.until(lambda s: WEB in s.workloads)
            stream.close()


def test_a_state_of_the_world_stream_is_told_all_of_it_and_again_when_it_changes(
    control: ControlPlane,
) -> None:
    agent, requests = control.agent(), queue.Queue[discovery_pb2.DiscoveryRequest | None]()
    with agent.channel() as channel:
        method = channel.stream_stream(
            DELTA.replace("DeltaAggregated", "StreamAggregated"),
            request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
        )
        requests.put(discovery_pb2.DiscoveryRequest(node=agent.node_message(), type_url=ADDRESS))
        call = method(iter(requests.get, None), metadata=agent.metadata(), timeout=DEADLINE)
        first = next(call)
        assert WEB in {_uid(one) for one in first.resources}
        requests.put(
            discovery_pb2.DiscoveryRequest(
                type_url=ADDRESS, response_nonce=first.nonce, version_info=first.version_info
            )
        )
        control.delete(pod("shop", "web", ""))
        second = next(call)
        assert {_uid(one) for one in first.resources} - {_uid(one) for one in second.resources} == {WEB}
        requests.put(None)


def _uid(one: Any) -> str:
    return workload_pb2.Address.FromString(one.value).workload.uid


def test_agents_that_connect_and_say_nothing_do_not_keep_others_waiting(control: ControlPlane) -> None:
    with contextlib.ExitStack() as silent:
        for _ in range(12):
            silent.enter_context(control.agent().stream())
        wait_until(lambda: len(control.json("/debug/clients")) == 12, "twelve silent streams")
        with control.agent().stream() as stream:
            stream.start()
            stream.until(lambda s: WEB in s.workloads)


def test_a_machine_that_asks_to_register_is_told_that_a_folder_cannot_take_it(control: ControlPlane) -> None:
    with control.agent(said={"AUTO_REGISTER_GROUP": "vms"}).stream() as stream:
        stream.start()
        with pytest.raises(grpc.RpcError) as error:
            stream.take()
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "write a WorkloadEntry" in error.value.details()


def test_a_health_report_is_no_subscription(control: ControlPlane) -> None:
    with control.agent().stream() as stream:
        stream.start()
        assert {stream.receive().type_url for _ in range(2)} == {ADDRESS, AUTHORIZATION}
        stream.subscribe(HEALTH_TYPE)
        control.put(policy("shop", "late", rules=[{}]))
        assert stream.receive().type_url == AUTHORIZATION, "not answered: what comes next is the change"
