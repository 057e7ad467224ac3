"""Where connections out of a pod go."""

from ipaddress import ip_address
from typing import Any

import pytest

from hbone.connect import SocketAddress
from hbone.reasons import Reason
from hbone.spiffe import SpiffeId
from tests.unit.state.builders import (
    NODE,
    by_address,
    by_name,
    pod_uid,
    service,
    snapshot,
    update,
    workload,
)
from ztunnel.decide.model import (
    OutboundConnection,
    OutboundVerdict,
    Passthrough,
    Refuse,
    Route,
    Tunnel,
)
from ztunnel.decide.outbound import decide_outbound, still_routed
from ztunnel.state.changes import Key, Kind
from ztunnel.state.model import (
    ApplicationTunnel,
    ApplicationTunnelProtocol,
    HealthPolicy,
    IPFamilies,
    LoadBalancing,
    LoadBalancingMode,
    NetworkMode,
    Service,
    Visibility,
    WeightedWaypoint,
    Workload,
)
from ztunnel.state.policy import Policy
from ztunnel.state.snapshot import Snapshot, Update

CLIENT = workload("client", "10.0.0.1", account="client", node=NODE)
SVC = "ns/s.ns.svc"
VIP = "10.96.0.1"


def connection(to: str, **fields: Any) -> OutboundConnection:
    ip, _, port = to.rpartition(":")
    return OutboundConnection(
        source=fields.pop("source", CLIENT),
        network=fields.pop("network", ""),
        peer=SocketAddress.of("10.0.0.1", 41200),
        destination=SocketAddress.of(ip.strip("[]"), int(port)),
        **fields,
    )


def decide(
    to: str,
    *resources: Workload | Service | Policy,
    draw: float = 0.0,
    draw2: float = 0.0,
    **fields: Any,
) -> OutboundVerdict:
    return decide_outbound(connection(to, **fields), snapshot(CLIENT, *resources), draw, draw2)


def target(verdict: OutboundVerdict) -> str:
    """The verdict's action in one line."""
    match verdict.action:
        case Passthrough(destination):
            return f"tcp {destination}"
        case Tunnel(destination, _, authority):
            return f"hbone {destination} {authority}"
        case Refuse():
            return str(verdict.reason)
        case _:
            raise AssertionError(verdict.action)


def san(account: str, namespace: str = "ns") -> str:
    return str(SpiffeId("cluster.local", namespace, account))


class TestWorkloads:
    def test_an_address_nobody_has_is_left_alone_and_can_be_asked_for(self) -> None:
        verdict = decide("192.0.2.1:80")
        assert target(verdict) == "tcp 192.0.2.1:80"
        assert verdict.route is Route.PASSTHROUGH
        assert verdict.needs == ("/192.0.2.1",)
        assert verdict.ends.destination is None
        assert not verdict.ends.mutual_tls

    def test_a_workload_behind_hbone_is_tunnelled_to_as_itself(self) -> None:
        server = workload("server", "10.0.0.2", account="server")
        verdict = decide("10.0.0.2:8080", server)
        assert verdict.action == Tunnel(
            destination=SocketAddress.of("10.0.0.2", 15008),
            sans=(san("server"),),
            authority="10.0.0.2:8080",
            hop=server,
        )
        assert verdict.route is Route.DIRECT
        assert verdict.ends.source_identity == CLIENT.identity
        assert verdict.ends.mutual_tls
        assert verdict.needs == ()

    def test_one_on_this_node_is_no_exception(self) -> None:
        server = workload("server", "10.0.0.2", node=NODE)
        assert target(decide("10.0.0.2:80", server)) == "hbone 10.0.0.2:15008 10.0.0.2:80"

    def test_one_without_a_tunnel_is_reached_in_the_clear(self) -> None:
        verdict = decide("10.0.0.2:80", workload("server", "10.0.0.2", hbone=False))
        assert target(verdict) == "tcp 10.0.0.2:80"
        assert verdict.route is Route.PLAINTEXT
        assert verdict.ends.source_identity is None
        assert not verdict.ends.mutual_tls

    def test_ipv6_is_bracketed_in_the_authority(self) -> None:
        verdict = decide("[2001:db8::2]:80", workload("server", "2001:db8::2"))
        assert target(verdict) == "hbone [2001:db8::2]:15008 [2001:db8::2]:80"

    def test_an_address_of_another_network_is_not_this_network_s(self) -> None:
        verdict = decide("10.0.0.2:80", workload("server", "10.0.0.2", network="remote"))
        assert verdict.route is Route.PASSTHROUGH

    def test_of_several_addresses_the_one_asked_for_is_dialled(self) -> None:
        server = workload("server", "10.0.0.2", "10.0.0.3", "2001:db8::2")
        for ip in ("10.0.0.2", "10.0.0.3"):
            assert target(decide(f"{ip}:80", server)) == f"hbone {ip}:15008 {ip}:80"

    def test_a_pod_on_its_node_s_network_is_not_meant_by_the_node_s_address(self) -> None:
        server = workload(
            "server", "10.0.0.2", network_mode=NetworkMode.HOST_NETWORK, services={SVC: {}}, hbone=False
        )
        assert decide("10.0.0.2:80", server).route is Route.PASSTHROUGH
        verdict = decide(f"{VIP}:80", server, service("s", VIP))
        assert target(verdict) == "tcp 10.0.0.2:8080"


class TestOwnPorts:
    @pytest.mark.parametrize("port", [15001, 15006, 15008, 15080])
    @pytest.mark.parametrize("ip", ["127.0.0.1", "[::1]", "10.0.0.1"])
    def test_a_call_to_the_mesh_s_own_ports_in_the_pod_is_refused(self, ip: str, port: int) -> None:
        assert decide(f"{ip}:{port}").reason is Reason.ILLEGAL_PORT

    def test_the_same_port_elsewhere_is_nobody_s_business(self) -> None:
        assert target(decide("192.0.2.1:15008")) == "tcp 192.0.2.1:15008"

    def test_another_port_of_the_pod_is_fine(self) -> None:
        assert decide("127.0.0.1:80").allowed


class TestServices:
    def test_an_endpoint_is_chosen_and_the_port_mapped(self) -> None:
        server = workload("server", "10.0.0.2", account="server", services={SVC: {}})
        svc = service("s", VIP, subject_alt_names=(SpiffeId("td", "x", "y"),))
        verdict = decide(f"{VIP}:80", server, svc)
        assert target(verdict) == "hbone 10.0.0.2:15008 10.0.0.2:8080"
        assert isinstance(verdict.action, Tunnel)
        assert set(verdict.action.sans) == {san("server"), "spiffe://td/ns/x/sa/y"}
        assert verdict.ends.service == svc
        assert verdict.ends.destination == server

    @pytest.mark.parametrize(
        ("service_target", "endpoint_ports", "expected"),
        [
            (8080, {80: 9090}, "10.0.0.2:9090"),
            (8080, {81: 9090}, "10.0.0.2:8080"),
            (0, {80: 9090}, "10.0.0.2:9090"),
        ],
    )
    def test_the_endpoint_s_own_port_comes_before_the_service_s(
        self, service_target: int, endpoint_ports: dict[int, int], expected: str
    ) -> None:
        server = workload("server", "10.0.0.2", services={SVC: endpoint_ports})
        verdict = decide(f"{VIP}:80", server, service("s", VIP, ports={80: service_target}))
        assert target(verdict) == f"hbone 10.0.0.2:15008 {expected}"

    def test_an_endpoint_without_the_named_port_is_not_used(self) -> None:
        servers = [
            workload("a", "10.0.0.2", services={SVC: {}}),
            workload("b", "10.0.0.3", services={SVC: {80: 9090}}),
        ]
        for draw in (0.0, 0.99):
            verdict = decide(f"{VIP}:80", *servers, service("s", VIP, ports={80: 0}), draw=draw)
            assert target(verdict) == "hbone 10.0.0.3:15008 10.0.0.3:9090"

    def test_a_port_the_service_does_not_have_is_refused(self) -> None:
        server = workload("server", "10.0.0.2", services={SVC: {}})
        assert decide(f"{VIP}:81", server, service("s", VIP)).reason is Reason.UNKNOWN_PORT

    def test_a_service_without_endpoints_is_refused(self) -> None:
        assert decide(f"{VIP}:80", service("s", VIP)).reason is Reason.NO_HEALTHY_UPSTREAM

    def test_unhealthy_endpoints_are_used_only_where_the_service_says_so(self) -> None:
        server = workload("server", "10.0.0.2", services={SVC: {}}, healthy=False)
        assert decide(f"{VIP}:80", server, service("s", VIP)).reason is Reason.NO_HEALTHY_UPSTREAM
        every = service("s", VIP, load_balancing=LoadBalancing(health_policy=HealthPolicy.ALLOW_ALL))
        assert decide(f"{VIP}:80", server, every).allowed

    def test_passthrough_leaves_the_address_as_it_was_asked_for(self) -> None:
        svc = service("s", VIP, load_balancing=LoadBalancing(mode=LoadBalancingMode.PASSTHROUGH))
        verdict = decide(f"{VIP}:4711", svc)
        assert target(verdict) == f"tcp {VIP}:4711"
        assert verdict.ends.service is None

    def test_a_service_comes_before_a_workload_with_its_address(self) -> None:
        claimant = workload("claimant", VIP)
        server = workload("server", "10.0.0.2", services={SVC: {}})
        verdict = decide(f"{VIP}:80", claimant, server, service("s", VIP))
        assert target(verdict) == "hbone 10.0.0.2:15008 10.0.0.2:8080"

    def test_a_service_hidden_from_the_client_is_not_meant(self) -> None:
        svc = service("s", VIP, namespace="other", visibility=Visibility.NAMESPACE)
        assert decide(f"{VIP}:80", svc).route is Route.PASSTHROUGH

    def test_a_block_of_addresses_means_its_service(self) -> None:
        server = workload("server", "10.0.0.2", services={SVC: {}})
        verdict = decide("10.96.7.7:80", server, service("s", "10.96.0.0/16"))
        assert target(verdict) == "hbone 10.0.0.2:15008 10.0.0.2:8080"


class TestFamilies:
    DUAL = workload("server", "10.0.0.2", "2001:db8::2", services={SVC: {}})
    BOTH = ("10.96.0.1", "2001:db8:96::1")

    @pytest.mark.parametrize(
        ("families", "to", "expected"),
        [
            (IPFamilies.AUTOMATIC, "10.96.0.1:80", "10.0.0.2"),
            (IPFamilies.AUTOMATIC, "[2001:db8:96::1]:80", "[2001:db8::2]"),
            (IPFamilies.DUAL, "[2001:db8:96::1]:80", "[2001:db8::2]"),
            (IPFamilies.IPV4_ONLY, "[2001:db8:96::1]:80", "10.0.0.2"),
            (IPFamilies.IPV6_ONLY, "10.96.0.1:80", "[2001:db8::2]"),
        ],
    )
    def test_the_family_asked_for_is_preferred_within_those_of_the_service(
        self, families: IPFamilies, to: str, expected: str
    ) -> None:
        verdict = decide(to, self.DUAL, service("s", *self.BOTH, ip_families=families))
        assert target(verdict) == f"hbone {expected}:15008 {expected}:8080"

    def test_another_family_will_do(self) -> None:
        only = workload("server", "2001:db8::2", services={SVC: {}})
        verdict = decide(f"{VIP}:80", only, service("s", *self.BOTH))
        assert target(verdict) == "hbone [2001:db8::2]:15008 [2001:db8::2]:8080"

    def test_without_an_address_of_the_only_family_there_is_no_way(self) -> None:
        only = workload("server", "2001:db8::2", services={SVC: {}})
        verdict = decide(f"{VIP}:80", only, service("s", *self.BOTH, ip_families=IPFamilies.IPV4_ONLY))
        assert verdict.reason is Reason.NO_HEALTHY_UPSTREAM


class TestHostNames:
    SERVER = workload("db", hostname="db.example.com", services={SVC: {}}, hbone=False)

    def test_a_workload_without_an_address_has_to_be_resolved(self) -> None:
        verdict = decide(f"{VIP}:80", self.SERVER, service("s", VIP))
        assert verdict.reason is Reason.NAME_UNRESOLVED
        assert verdict.resolve == ("db.example.com",)

    def test_what_was_resolved_is_dialled_in_the_family_asked_for(self) -> None:
        resolved = {"db.example.com": (ip_address("2001:db8::9"), ip_address("192.0.2.9"))}
        verdict = decide(f"{VIP}:80", self.SERVER, service("s", VIP), resolved=resolved)
        assert target(verdict) == "tcp 192.0.2.9:8080"


WP_UID = pod_uid("ns", "wp")
WP_VIP = "10.96.9.9"
WP = workload("wp", "10.0.9.9", account="wp", services={"ns/wp.ns.svc": {}})
WP_SVC = service("wp", WP_VIP, ports={15008: 15008})


class TestServiceWaypoints:
    @pytest.mark.parametrize(
        "gateway", [by_name("wp.ns.svc"), by_address(WP_VIP), by_address("10.0.9.9")], ids=str
    )
    def test_a_service_s_waypoint_is_dialled_and_told_the_address_asked_for(self, gateway: Any) -> None:
        svc = service("s", VIP, waypoint=gateway)
        server = workload("server", "10.0.0.2", services={SVC: {}})
        verdict = decide(f"{VIP}:80", WP, WP_SVC, svc, server)
        assert target(verdict) == f"hbone 10.0.9.9:15008 {VIP}:80"
        assert isinstance(verdict.action, Tunnel)
        assert verdict.action.sans == (san("wp"),)
        assert verdict.route is Route.SERVICE_WAYPOINT
        assert verdict.ends.service == svc
        assert verdict.ends.destination == WP

    def test_the_waypoint_s_service_may_name_more_identities(self) -> None:
        wp_svc = service("wp", WP_VIP, ports={15008: 15008}, subject_alt_names=(SpiffeId("td", "a", "b"),))
        verdict = decide(f"{VIP}:80", WP, wp_svc, service("s", VIP, waypoint=by_name("wp.ns.svc")))
        assert isinstance(verdict.action, Tunnel)
        assert set(verdict.action.sans) == {san("wp"), "spiffe://td/ns/a/sa/b"}

    def test_the_waypoint_s_own_port_mapping_counts(self) -> None:
        wp = workload("wp", "10.0.9.9", services={"ns/wp.ns.svc": {15008: 15010}})
        verdict = decide(f"{VIP}:80", wp, WP_SVC, service("s", VIP, waypoint=by_name("wp.ns.svc")))
        assert target(verdict) == f"hbone 10.0.9.9:15010 {VIP}:80"

    def test_a_waypoint_with_an_application_tunnel_need_not_list_the_port(self) -> None:
        wp = workload(
            "wp",
            "10.0.9.9",
            services={"ns/wp.ns.svc": {}},
            application_tunnel=ApplicationTunnel(ApplicationTunnelProtocol.PROXY, 15088),
        )
        verdict = decide(
            f"{VIP}:80", wp, service("wp", WP_VIP), service("s", VIP, waypoint=by_name("wp.ns.svc"))
        )
        assert target(verdict) == f"hbone 10.0.9.9:15008 {VIP}:80"

    def test_a_waypoint_of_the_other_family_will_do(self) -> None:
        wp = workload("wp", "2001:db8::9", services={"ns/wp.ns.svc": {}})
        verdict = decide(f"{VIP}:80", wp, WP_SVC, service("s", VIP, waypoint=by_name("wp.ns.svc")))
        assert target(verdict) == f"hbone [2001:db8::9]:15008 {VIP}:80"

    def test_the_port_asked_for_is_the_waypoint_s_to_judge(self) -> None:
        verdict = decide(f"{VIP}:4711", WP, WP_SVC, service("s", VIP, waypoint=by_name("wp.ns.svc")))
        assert target(verdict) == f"hbone 10.0.9.9:15008 {VIP}:4711"

    def test_passthrough_services_go_to_their_waypoint_too(self) -> None:
        svc = service(
            "s",
            VIP,
            waypoint=by_name("wp.ns.svc"),
            load_balancing=LoadBalancing(mode=LoadBalancingMode.PASSTHROUGH),
        )
        assert decide(f"{VIP}:80", WP, WP_SVC, svc).route is Route.SERVICE_WAYPOINT

    @pytest.mark.parametrize(
        ("gateway", "name"),
        [(by_name("gone.ns.svc"), "ns/gone.ns.svc"), (by_address("10.9.9.9"), "/10.9.9.9")],
    )
    def test_an_unknown_waypoint_is_never_gone_around(self, gateway: Any, name: str) -> None:
        server = workload("server", "10.0.0.2", services={SVC: {}})
        verdict = decide(f"{VIP}:80", server, service("s", VIP, waypoint=gateway))
        assert verdict.reason is Reason.WAYPOINT_UNRESOLVED
        assert verdict.needs == (name,)

    def test_a_waypoint_without_pods_is_never_gone_around(self) -> None:
        server = workload("server", "10.0.0.2", services={SVC: {}})
        verdict = decide(f"{VIP}:80", server, WP_SVC, service("s", VIP, waypoint=by_name("wp.ns.svc")))
        assert verdict.reason is Reason.NO_HEALTHY_UPSTREAM

    def test_weighted_waypoints_share_the_connections(self) -> None:
        svc = service(
            "s",
            VIP,
            waypoint=by_address("10.0.9.1"),
            weighted_waypoints=(
                WeightedWaypoint(by_address("10.0.9.2"), 1),
                WeightedWaypoint(by_address("10.0.9.3"), 0),
                WeightedWaypoint(by_address("10.0.9.4"), 3),
            ),
        )
        pods = [workload(f"wp{i}", f"10.0.9.{i}") for i in range(1, 5)]
        hits = [target(decide(f"{VIP}:80", svc, *pods, draw2=i / 100)).split()[1] for i in range(100)]
        assert hits.count("10.0.9.2:15008") == 25
        assert hits.count("10.0.9.4:15008") == 75

    @pytest.mark.parametrize("weights", [(), (0, 0)])
    def test_without_any_weight_the_plain_waypoint_is_meant(self, weights: tuple[int, ...]) -> None:
        weighted = tuple(WeightedWaypoint(by_address("10.0.9.2"), weight) for weight in weights)
        svc = service("s", VIP, waypoint=by_address("10.0.9.1"), weighted_waypoints=weighted)
        verdict = decide(f"{VIP}:80", svc, workload("wp1", "10.0.9.1"), workload("wp2", "10.0.9.2"))
        assert target(verdict) == f"hbone 10.0.9.1:15008 {VIP}:80"

    def test_what_comes_from_the_waypoint_goes_to_the_endpoints(self) -> None:
        server = workload("server", "10.0.0.2", services={SVC: {}})
        svc = service("s", VIP, waypoint=by_name("wp.ns.svc"))
        assert decide(f"{VIP}:80", WP, WP_SVC, svc, server, source=WP).route is Route.DIRECT


class TestWorkloadWaypoints:
    SERVER = workload("server", "10.0.0.2", waypoint=by_name("wp.ns.svc"), services={SVC: {}})

    def test_traffic_to_the_workload_s_address_goes_to_its_waypoint(self) -> None:
        verdict = decide("10.0.0.2:8080", self.SERVER, WP, WP_SVC)
        assert target(verdict) == "hbone 10.0.9.9:15008 10.0.0.2:8080"
        assert verdict.route is Route.WORKLOAD_WAYPOINT
        assert verdict.ends.service is None

    def test_traffic_by_a_service_does_not(self) -> None:
        verdict = decide(f"{VIP}:80", self.SERVER, WP, WP_SVC, service("s", VIP))
        assert verdict.route is Route.DIRECT

    def test_traffic_from_the_waypoint_does_not_return_to_it(self) -> None:
        verdict = decide("10.0.0.2:8080", self.SERVER, WP, WP_SVC, source=WP)
        assert target(verdict) == "hbone 10.0.0.2:15008 10.0.0.2:8080"

    def test_the_client_s_own_waypoint_is_never_used(self) -> None:
        source = workload("client", "10.0.0.1", waypoint=by_name("wp.ns.svc"))
        server = workload("server", "10.0.0.2")
        assert decide("10.0.0.2:80", server, WP, WP_SVC, source=source).route is Route.DIRECT

    def test_a_plaintext_workload_is_still_reached_by_its_waypoint(self) -> None:
        server = workload("server", "10.0.0.2", waypoint=by_address("10.0.9.9"), hbone=False)
        assert decide("10.0.0.2:80", server, WP, WP_SVC).route is Route.WORKLOAD_WAYPOINT

    def test_a_workload_that_shares_its_address_with_a_service_has_no_waypoint_then(self) -> None:
        server = workload("server", VIP, waypoint=by_name("wp.ns.svc"), services={SVC: {}})
        svc = service("s", VIP, waypoint=by_name("wp.ns.svc"))
        assert decide(f"{VIP}:80", server, svc, WP, WP_SVC).route is Route.DIRECT


class TestOtherNetworks:
    REMOTE = workload(
        "remote", "10.0.0.2", network="east", network_gateway=by_address("192.0.2.1"), services={SVC: {}}
    )

    def test_endpoints_on_other_networks_only_cannot_be_reached_in_this_form(self) -> None:
        verdict = decide(f"{VIP}:80", self.REMOTE, service("s", VIP))
        assert verdict.reason is Reason.NETWORK_UNREACHABLE

    def test_endpoints_here_are_used_even_if_those_elsewhere_are_more(self) -> None:
        others = [
            workload(f"r{i}", f"10.0.1.{i}", network="east", services={SVC: {}}, capacity=100)
            for i in range(5)
        ]
        local = workload("local", "10.0.0.3", services={SVC: {}})
        for draw in (0.0, 0.5, 0.99):
            verdict = decide(f"{VIP}:80", *others, local, service("s", VIP), draw=draw)
            assert target(verdict) == "hbone 10.0.0.3:15008 10.0.0.3:8080"

    @pytest.mark.parametrize("gateway", [by_address("10.0.0.2", "east"), by_name("wp.ns.svc")], ids=str)
    def test_a_waypoint_on_another_network_cannot_be_reached_in_this_form(self, gateway: Any) -> None:
        wp = workload("wp", "10.0.0.2", network="east", services={"ns/wp.ns.svc": {}})
        verdict = decide(f"{VIP}:80", wp, WP_SVC, service("s", VIP, waypoint=gateway))
        assert verdict.reason is Reason.NETWORK_UNREACHABLE


class TestDepends:
    def test_names_what_could_put_the_connection_on_another_way(self) -> None:
        server = workload("server", "10.0.0.2", services={SVC: {}})
        assert decide(f"{VIP}:80", server, service("s", VIP)).depends == {
            Key(Kind.WORKLOAD, CLIENT.uid),
            Key(Kind.ADDRESS, f"/{VIP}"),
            Key(Kind.BLOCKS, ""),
            Key(Kind.SERVICE, SVC),
        }

    def test_equal_arguments_give_equal_verdicts(self) -> None:
        servers = [workload(f"s{i}", f"10.0.1.{i}", services={SVC: {}}) for i in range(9)]
        verdicts = {
            target(decide(f"{VIP}:80", *order, service("s", VIP), draw=0.7))
            for order in (servers, servers[::-1])
        }
        assert len(verdicts) == 1


class TestStillRouted:
    SERVER = workload("server", "10.0.0.2", services={SVC: {}})

    def _after(self, change: Update, *resources: Workload | Service) -> Reason:
        before = snapshot(CLIENT, *resources)
        asked = connection(f"{VIP}:80")
        verdict = decide_outbound(asked, before, 0.0)
        assert verdict.allowed
        after, changes = before.apply(change)
        assert changes.keys & verdict.depends or still_routed(verdict, asked, after) is Reason.OK
        return still_routed(verdict, asked, after)

    def test_a_new_waypoint_moves_live_connections(self) -> None:
        change = update(service("s", VIP, waypoint=by_name("wp.ns.svc")), WP, WP_SVC)
        assert self._after(change, self.SERVER, service("s", VIP)) is Reason.ROUTE_CHANGED

    def test_another_waypoint_does_too(self) -> None:
        change = update(service("s", VIP, waypoint=by_address("10.0.9.8")))
        behind = service("s", VIP, waypoint=by_name("wp.ns.svc"))
        assert self._after(change, behind, WP, WP_SVC) is Reason.ROUTE_CHANGED

    def test_more_pods_of_the_same_waypoint_do_not(self) -> None:
        change = update(workload("wp2", "10.0.9.8", services={"ns/wp.ns.svc": {}}))
        behind = service("s", VIP, waypoint=by_name("wp.ns.svc"))
        assert self._after(change, behind, WP, WP_SVC) is Reason.OK

    def test_the_end_of_a_waypoint_does_not(self) -> None:
        behind = service("s", VIP, waypoint=by_name("wp.ns.svc"))
        assert self._after(update(service("s", VIP)), behind, WP, WP_SVC) is Reason.OK

    def test_the_end_of_an_endpoint_does_not(self) -> None:
        change = Update(removed_addresses=(self.SERVER.uid,))
        assert self._after(change, self.SERVER, service("s", VIP)) is Reason.OK

    def test_a_canary_weight_of_zero_moves_what_the_canary_had(self) -> None:
        def weighted(one: int, two: int) -> Service:
            waypoints = (
                WeightedWaypoint(by_address("10.0.9.9"), one),
                WeightedWaypoint(by_address("10.0.9.8"), two),
            )
            return service("s", VIP, weighted_waypoints=waypoints)

        wp2 = workload("wp2", "10.0.9.8")
        assert self._after(update(weighted(0, 1)), weighted(1, 1), WP, WP_SVC, wp2) is Reason.ROUTE_CHANGED
        assert self._after(update(weighted(1, 9)), weighted(1, 1), WP, WP_SVC, wp2) is Reason.OK


def test_an_empty_snapshot_leaves_everything_alone() -> None:
    verdict = decide_outbound(connection("10.0.0.2:80"), Snapshot.empty(), 0.5)
    assert target(verdict) == "tcp 10.0.0.2:80"
