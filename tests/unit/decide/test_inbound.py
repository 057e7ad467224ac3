"""Connections for a pod of this node: what they ask for, whether they may, who the ends are."""

from typing import Any

import pytest

from hbone.connect import Baggage, SocketAddress
from hbone.reasons import Reason
from hbone.spiffe import SpiffeId
from tests.unit.state.builders import (
    NODE,
    by_address,
    by_name,
    match,
    policy,
    service,
    snapshot,
    update,
    workload,
)
from ztunnel.decide.inbound import decide_inbound
from ztunnel.decide.model import Deliver, InboundConnection, InboundVerdict, Refuse, Route, Via
from ztunnel.state.changes import Key, Kind
from ztunnel.state.model import (
    ApplicationTunnel,
    ApplicationTunnelProtocol,
    Service,
    WeightedWaypoint,
    Workload,
)
from ztunnel.state.policy import Policy

CLIENT_ID = SpiffeId("cluster.local", "ns", "client")
CLIENT = workload("client", "10.0.0.1", account="client")
SVC = "ns/s.ns.svc"
VIP = "10.96.0.1"
SERVER = workload("server", "10.0.0.2", account="server", node=NODE, services={SVC: {}})
SERVICE = service("s", VIP)


def hbone(authority: str | None, local: Workload = SERVER, **fields: Any) -> InboundConnection:
    return InboundConnection(
        local=local,
        via=Via.HBONE,
        peer=fields.pop("peer", SocketAddress.of("10.0.0.1", 41200)),
        destination=SocketAddress(local.addresses[0], 15008),
        identity=fields.pop("identity", CLIENT_ID),
        authority=authority,
        **fields,
    )


def plaintext(port: int = 8080, peer: str = "10.0.0.1") -> InboundConnection:
    return InboundConnection(
        local=SERVER,
        via=Via.PLAINTEXT,
        peer=SocketAddress.of(peer, 41200),
        destination=SocketAddress.of("10.0.0.2", port),
    )


def decide(connection: InboundConnection, *resources: Workload | Service | Policy) -> InboundVerdict:
    return decide_inbound(connection, snapshot(connection.local, *resources))


def delivered(verdict: InboundVerdict) -> str:
    assert isinstance(verdict.action, Deliver), verdict
    assert verdict.route is Route.LOCAL
    return str(verdict.action.destination)


def refused(verdict: InboundVerdict) -> tuple[Reason, int]:
    assert isinstance(verdict.action, Refuse), verdict
    assert verdict.route is Route.NONE
    return verdict.reason, verdict.action.status


class TestDirect:
    def test_the_pod_s_own_address_is_delivered_to_with_the_client_s_address(self) -> None:
        verdict = decide(hbone("10.0.0.2:8080"))
        assert delivered(verdict) == "10.0.0.2:8080"
        assert isinstance(verdict.action, Deliver)
        assert str(verdict.action.source_ip) == "10.0.0.1"

    def test_a_pod_that_reaches_itself_is_not_given_its_own_address_as_source(self) -> None:
        verdict = decide(hbone("10.0.0.2:8080", peer=SocketAddress.of("10.0.0.2", 5)))
        assert isinstance(verdict.action, Deliver)
        assert verdict.action.source_ip is None

    @pytest.mark.parametrize("port", [15001, 15006, 15008, 15080])
    def test_the_mesh_s_own_ports_are_refused(self, port: int) -> None:
        assert refused(decide(hbone(f"10.0.0.2:{port}"))) == (Reason.ILLEGAL_PORT, 503)

    @pytest.mark.parametrize("authority", [None, "", "10.0.0.2", "10.0.0.2:0", "[::1", "x@10.0.0.2:80"])
    def test_a_malformed_authority_is_a_bad_request(self, authority: str | None) -> None:
        assert refused(decide(hbone(authority))) == (Reason.BAD_REQUEST, 400)

    def test_an_address_of_nobody_is_a_mismatch_that_can_be_asked_for(self) -> None:
        verdict = decide(hbone("10.9.9.9:80"))
        assert refused(verdict) == (Reason.IP_MISMATCH, 400)
        assert verdict.needs == ("/10.9.9.9",)

    @pytest.mark.parametrize("authority", ["10.0.0.3:8080", f"{VIP}:80"])
    def test_another_pod_s_or_a_service_s_address_is_a_mismatch(self, authority: str) -> None:
        other = workload("other", "10.0.0.3")
        assert refused(decide(hbone(authority), other, SERVICE)) == (Reason.IP_MISMATCH, 400)

    def test_a_second_address_of_the_pod_that_was_not_dialled_is_a_mismatch(self) -> None:
        local = workload("server", "10.0.0.2", "2001:db8::2", node=NODE)
        assert refused(decide(hbone("[2001:db8::2]:80", local))) == (Reason.IP_MISMATCH, 400)


class TestHostNames:
    def test_a_service_of_the_pod_is_delivered_to_at_its_target_port(self) -> None:
        verdict = decide(hbone("s.ns.svc:80"), SERVICE)
        assert delivered(verdict) == "10.0.0.2:8080"
        assert verdict.ends.service == SERVICE

    def test_a_named_port_is_the_endpoint_s_to_map(self) -> None:
        local = workload("server", "10.0.0.2", services={SVC: {80: 9090}})
        assert delivered(decide(hbone("s.ns.svc:80", local), service("s", ports={80: 0}))) == "10.0.0.2:9090"

    def test_a_named_port_nobody_maps_is_refused(self) -> None:
        verdict = decide(hbone("s.ns.svc:80"), service("s", ports={80: 0}))
        assert refused(verdict) == (Reason.UNKNOWN_PORT, 503)

    def test_a_port_the_service_does_not_have_is_refused(self) -> None:
        assert refused(decide(hbone("s.ns.svc:81"), SERVICE)) == (Reason.UNKNOWN_PORT, 503)

    def test_an_unknown_service_is_refused(self) -> None:
        assert refused(decide(hbone("x.ns.svc:80"))) == (Reason.UNKNOWN_SERVICE, 503)

    def test_a_service_the_pod_is_not_in_is_a_mismatch(self) -> None:
        other = service("other", "10.96.0.2")
        assert refused(decide(hbone("other.ns.svc:80"), other)) == (Reason.IP_MISMATCH, 400)

    def test_a_target_port_of_the_mesh_s_own_is_refused(self) -> None:
        verdict = decide(hbone("s.ns.svc:80"), service("s", ports={80: 15008}))
        assert refused(verdict) == (Reason.ILLEGAL_PORT, 503)

    def test_the_pod_s_namespace_is_preferred_among_equal_names(self) -> None:
        mine, other = service("s", hostname="h", ports={80: 1}), service("s", namespace="a", hostname="h")
        local = workload("server", "10.0.0.2", services={"ns/h": {}})
        assert delivered(decide(hbone("h:80", local), mine, other)) == "10.0.0.2:1"


WAYPOINT = workload("wp", "10.0.9.9", node=NODE, services={"ns/wp.ns.svc": {}})
TUNNELLED = workload(
    "wp",
    "10.0.9.9",
    node=NODE,
    services={"ns/wp.ns.svc": {}},
    application_tunnel=ApplicationTunnel(ApplicationTunnelProtocol.NONE, 15088),
)
WAYPOINT_SERVICE = service("wp", "10.96.9.9", ports={15008: 15008})
GATEWAYS = [by_name("wp.ns.svc"), by_address("10.96.9.9"), by_address("10.0.9.9")]


class TestWaypoints:
    @pytest.mark.parametrize("gateway", GATEWAYS, ids=str)
    def test_stand_in_for_services_that_name_them(self, gateway: Any) -> None:
        svc = service("s", VIP, waypoint=gateway)
        verdict = decide(hbone(f"{VIP}:80", WAYPOINT), WAYPOINT_SERVICE, svc)
        assert delivered(verdict) == "10.0.9.9:80"
        assert verdict.ends.service == svc
        assert Key(Kind.ADDRESS, f"/{VIP}") in verdict.depends

    @pytest.mark.parametrize("gateway", GATEWAYS, ids=str)
    def test_stand_in_for_workloads_that_name_them(self, gateway: Any) -> None:
        server = workload("server", "10.0.0.2", waypoint=gateway)
        verdict = decide(hbone("10.0.0.2:8080", WAYPOINT), WAYPOINT_SERVICE, server)
        assert delivered(verdict) == "10.0.9.9:8080"

    def test_stand_in_where_they_are_one_of_several_weighted(self) -> None:
        weights = (WeightedWaypoint(by_address("10.0.9.8"), 9), WeightedWaypoint(by_address("10.0.9.9"), 1))
        svc = service("s", VIP, weighted_waypoints=weights)
        assert delivered(decide(hbone(f"{VIP}:80", WAYPOINT), WAYPOINT_SERVICE, svc)) == "10.0.9.9:80"

    def test_stand_in_for_services_by_name(self) -> None:
        svc = service("s", VIP, waypoint=by_name("wp.ns.svc"))
        verdict = decide(hbone("s.ns.svc:80", WAYPOINT), WAYPOINT_SERVICE, svc)
        assert delivered(verdict) == "10.0.9.9:8080"

    def test_a_service_s_waypoint_does_not_stand_in_for_its_workloads(self) -> None:
        svc = service("s", VIP, waypoint=by_name("wp.ns.svc"))
        verdict = decide(hbone("10.0.0.2:8080", WAYPOINT), WAYPOINT_SERVICE, svc, SERVER)
        assert refused(verdict) == (Reason.IP_MISMATCH, 400)

    def test_a_workload_s_waypoint_does_not_stand_in_for_its_services(self) -> None:
        server = workload("server", "10.0.0.2", waypoint=by_name("wp.ns.svc"), services={SVC: {}})
        verdict = decide(hbone(f"{VIP}:80", WAYPOINT), WAYPOINT_SERVICE, SERVICE, server)
        assert refused(verdict) == (Reason.IP_MISMATCH, 400)

    def test_a_waypoint_on_another_network_does_not_stand_in(self) -> None:
        svc = service("s", VIP, waypoint=by_address("10.0.9.9", "east"))
        assert refused(decide(hbone(f"{VIP}:80", WAYPOINT), svc)) == (Reason.IP_MISMATCH, 400)

    @pytest.mark.parametrize("authority", [f"{VIP}:80", "10.0.0.2:80", "10.0.9.9:80", "192.0.2.1:80"])
    def test_an_application_tunnel_takes_any_address_at_its_own_port(self, authority: str) -> None:
        verdict = decide(hbone(authority, TUNNELLED), SERVICE, SERVER)
        assert delivered(verdict) == "10.0.9.9:15088"

    def test_policies_see_the_port_before_the_application_tunnel_s(self) -> None:
        only_80 = policy("p", [[[match(destination_ports=[80])]]])
        assert decide(hbone(f"{VIP}:80", TUNNELLED), SERVICE, only_80).allowed
        assert not decide(hbone(f"{VIP}:81", TUNNELLED), SERVICE, only_80).allowed

    def test_proxy_protocol_is_not_spoken_and_therefore_refused(self) -> None:
        local = workload(
            "wp",
            "10.0.9.9",
            application_tunnel=ApplicationTunnel(ApplicationTunnelProtocol.PROXY, 15088),
        )
        assert refused(decide(hbone("10.0.9.9:80", local))) == (Reason.APP_TUNNEL_UNSUPPORTED, 503)


class TestPolicy:
    def test_the_identity_tls_proved_is_what_counts(self) -> None:
        only_client = policy("p", [[[match(principals=[CLIENT_ID.principal])]]])
        assert decide(hbone("10.0.0.2:8080"), only_client).allowed
        other = SpiffeId("cluster.local", "ns", "other")
        verdict = decide(hbone("10.0.0.2:8080", identity=other), only_client, CLIENT)
        assert refused(verdict) == (Reason.POLICY_NO_MATCH, 401)

    def test_claims_in_headers_change_nothing(self) -> None:
        only_client = policy("p", [[[match(source_ips=["10.0.0.1/32"], namespaces=["ns"])]]])
        claims = {
            "forwarded_host": "s.ns.svc",
            "baggage": Baggage(namespace="ns", workload_name="client"),
            "from_network": "east",
        }
        stranger = hbone(
            "10.0.0.2:8080",
            identity=SpiffeId("cluster.local", "evil", "evil"),
            peer=SocketAddress.of("10.0.0.66", 1),
            **claims,
        )
        assert refused(decide(stranger, only_client)) == (Reason.POLICY_NO_MATCH, 401)

    def test_a_mismatch_is_found_before_policy_is_asked(self) -> None:
        deny = policy("p", [[]], action="DENY")
        verdict = decide(hbone("10.9.9.9:80"), deny)
        assert verdict.reason is Reason.IP_MISMATCH
        assert verdict.trace == ()

    def test_the_verdict_carries_the_trace_and_what_it_rests_on(self) -> None:
        deny = policy("p", [[[match(destination_ports=[8080])]]], action="DENY")
        verdict = decide(hbone("10.0.0.2:8080"), deny)
        assert refused(verdict) == (Reason.POLICY_DENIED, 401)
        assert [step.policy for step in verdict.trace] == ["ns/p"]
        assert verdict.depends >= {Key(Kind.WORKLOAD, SERVER.uid), Key(Kind.POLICIES, "ns")}

    def test_a_listed_policy_that_has_not_come_refuses_until_it_comes(self) -> None:
        local = workload("server", "10.0.0.2", authorization_policies=("ns/p",))
        before = snapshot(local)
        verdict = decide_inbound(hbone("10.0.0.2:80", local), before)
        assert refused(verdict) == (Reason.POLICY_PENDING, 401)
        after, changes = before.apply(update(policy("p", [[]], scope="WORKLOAD_SELECTOR")))
        assert changes.keys & verdict.depends
        assert decide_inbound(hbone("10.0.0.2:80", local), after).allowed


class TestPlaintext:
    def test_is_delivered_with_the_client_s_address(self) -> None:
        verdict = decide(plaintext())
        assert verdict.action == Deliver(SocketAddress.of("10.0.0.2", 8080), CLIENT.addresses[0])
        assert not verdict.ends.mutual_tls
        assert verdict.ends.source_identity is None

    @pytest.mark.parametrize("port", [15001, 15006, 15008, 15080])
    def test_to_the_mesh_s_own_ports_is_refused(self, port: int) -> None:
        assert refused(decide(plaintext(port))) == (Reason.ILLEGAL_PORT, 503)

    def test_has_no_identity_even_from_a_pod_that_is_known(self) -> None:
        only_client = policy("p", [[[match(namespaces=["ns"])]]])
        assert refused(decide(plaintext(), only_client, CLIENT)) == (Reason.POLICY_NO_MATCH, 401)

    def test_strict_mutual_tls_refuses_it(self) -> None:
        strict = policy("strict", [[[match(not_principals=["*"])]]], action="DENY")
        assert refused(decide(plaintext(), strict)) == (Reason.POLICY_DENIED, 401)
        assert decide(hbone("10.0.0.2:8080"), strict).allowed

    def test_keeps_its_port_where_an_application_tunnel_has_one_for_hbone(self) -> None:
        connection = InboundConnection(
            local=TUNNELLED,
            via=Via.PLAINTEXT,
            peer=SocketAddress.of("10.0.0.1", 1),
            destination=SocketAddress.of("10.0.9.9", 80),
        )
        assert delivered(decide(connection)) == "10.0.9.9:80"


class TestEnds:
    def test_the_source_is_found_by_its_address(self) -> None:
        verdict = decide(hbone("10.0.0.2:8080"), CLIENT)
        assert verdict.ends.source == CLIENT
        assert verdict.ends.source_identity == CLIENT_ID
        assert verdict.ends.destination == SERVER
        assert verdict.ends.mutual_tls

    def test_an_address_that_changed_hands_names_nobody(self) -> None:
        newcomer = workload("newcomer", "10.0.0.1", account="newcomer")
        assert decide(hbone("10.0.0.2:8080"), newcomer).ends.source is None

    @pytest.mark.parametrize(("network", "found"), [(None, True), ("", True), ("east", False)])
    def test_a_gateway_of_another_network_is_not_the_source(self, network: str | None, found: bool) -> None:
        baggage = Baggage(workload_name="far")
        ends = decide(hbone("10.0.0.2:8080", from_network=network, baggage=baggage), CLIENT).ends
        assert (ends.source is not None) is found
        assert ends.source_baggage == baggage

    def test_the_own_network_s_name_is_compared_without_case(self) -> None:
        local = workload("server", "10.0.0.2", network="East")
        client = workload("client", "10.0.0.1", account="client", network="East")
        assert decide(hbone("10.0.0.2:80", local, from_network="eAST"), client).ends.source == client

    def test_the_service_is_the_one_the_client_meant_if_the_pod_is_in_it(self) -> None:
        local = workload("server", "10.0.0.2", services={SVC: {}, "ns/t.ns.svc": {}})
        services = (SERVICE, service("t", VIP))

        def named(host: str | None) -> str:
            found = decide(hbone("10.0.0.2:8080", local, forwarded_host=host), *services).ends.service
            assert found is not None
            return found.name

        assert named("t.ns.svc") == "t"
        assert named("s.ns.svc") == "s"
        assert named("not-mine.ns.svc") == "s"
        assert named(None) == "s"

    def test_without_a_name_it_is_the_first_that_has_the_port(self) -> None:
        local = workload("server", "10.0.0.2", services={SVC: {}, "ns/t.ns.svc": {80: 9090}})
        services = (SERVICE, service("t", ports={80: 0}))
        ends = decide(hbone("10.0.0.2:9090", local), *services).ends
        assert ends.service is not None
        assert ends.service.name == "t"
        assert decide(hbone("10.0.0.2:1", local), *services).ends.service is None
