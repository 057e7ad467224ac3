"""From protobuf to own values, refusing whatever would have to be guessed."""

from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import UInt32Value
from hypothesis import given, settings
from hypothesis import strategies as st

from hbone.spiffe import SpiffeId
from istiodlite.api import authorization_pb2, workload_pb2
from tests.unit.state.builders import authorization, match, wire_service, wire_workload
from ztunnel.state.convert import (
    ConversionError,
    address_from_bytes,
    policy,
    policy_from_bytes,
    service,
    unusable,
    workload,
)
from ztunnel.state.model import (
    ApplicationTunnel,
    ApplicationTunnelProtocol,
    GatewayAddress,
    HealthPolicy,
    IPFamilies,
    LoadBalancing,
    LoadBalancingMode,
    Locality,
    Membership,
    NamespacedHostname,
    NetworkAddress,
    NetworkMode,
    Port,
    Scope,
    TunnelProtocol,
    VirtualAddress,
    Visibility,
    WeightedWaypoint,
    WorkloadType,
)
from ztunnel.state.policy import Action, PolicyScope

V4 = ip_address("10.0.0.1")
V6 = ip_address("2001:db8::1")
HOSTNAME_GATEWAY = workload_pb2.GatewayAddress(
    hostname=workload_pb2.NamespacedHostname(namespace="ns", hostname="wp.ns.svc"), hbone_mtls_port=15009
)
ADDRESS_GATEWAY = workload_pb2.GatewayAddress(
    address=workload_pb2.NetworkAddress(network="n", address=V4.packed)
)


class TestWorkload:
    def test_every_field_has_its_place(self) -> None:
        converted = workload(
            wire_workload(
                addresses=[V4.packed, V6.packed],
                hostname="a.example",
                network="n",
                tunnel_protocol="HBONE",
                trust_domain="td",
                service_account="sa",
                waypoint=HOSTNAME_GATEWAY,
                network_gateway=ADDRESS_GATEWAY,
                node="node",
                canonical_name="cn",
                canonical_revision="v2",
                workload_type="JOB",
                workload_name="wn",
                native_tunnel=True,
                application_tunnel=workload_pb2.ApplicationTunnel(protocol="PROXY", port=15088),
                services={
                    "ns/s.ns.svc": workload_pb2.PortList(
                        ports=[workload_pb2.Port(service_port=80, target_port=8080)]
                    )
                },
                authorization_policies=["ns/p"],
                status="UNHEALTHY",
                cluster_id="c",
                locality=workload_pb2.Locality(region="r", zone="z", subzone="sz"),
                network_mode="HOST_NETWORK",
                capacity=UInt32Value(value=0),
            )
        )
        assert converted.addresses == (V4, V6)
        assert converted.hostname == "a.example"
        assert converted.network == "n"
        assert converted.tunnel_protocol is TunnelProtocol.HBONE
        assert converted.identity == SpiffeId("td", "ns", "sa")
        assert (converted.trust_domain, converted.service_account) == ("td", "sa")
        assert converted.waypoint == GatewayAddress(NamespacedHostname("ns", "wp.ns.svc"), 15009)
        assert converted.network_gateway == GatewayAddress(NetworkAddress("n", V4), 15008)
        assert (converted.node, converted.canonical_name, converted.canonical_revision) == (
            "node",
            "cn",
            "v2",
        )
        assert converted.workload_type is WorkloadType.JOB
        assert converted.workload_name == "wn"
        assert converted.native_tunnel
        assert converted.application_tunnel == ApplicationTunnel(ApplicationTunnelProtocol.PROXY, 15088)
        assert converted.services == (Membership("ns/s.ns.svc", (Port(80, 8080),)),)
        assert converted.authorization_policies == ("ns/p",)
        assert not converted.healthy
        assert converted.cluster_id == "c"
        assert converted.locality == Locality("r", "z", "sz")
        assert converted.network_mode is NetworkMode.HOST_NETWORK
        assert converted.capacity == 0

    def test_absent_fields_have_istio_defaults(self) -> None:
        converted = workload(wire_workload())
        assert converted.identity == SpiffeId("cluster.local", "ns", "default")
        assert converted.tunnel_protocol is TunnelProtocol.NONE
        assert converted.cluster_id == "Kubernetes"
        assert converted.capacity == 1
        assert converted.healthy
        assert converted.waypoint is converted.network_gateway is converted.application_tunnel is None

    def test_a_gateway_without_a_namespace_has_an_identity_that_no_certificate_can_have(self) -> None:
        identity = workload(wire_workload(namespace="")).identity
        with pytest.raises(ValueError):
            SpiffeId.parse(str(identity))

    def test_a_mapped_address_becomes_the_ipv4_address(self) -> None:
        mapped = ip_address("::ffff:10.0.0.1").packed
        assert workload(wire_workload(addresses=[mapped])).addresses == (V4,)

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"uid": ""}, "no uid"),
            *(({"addresses": [bytes(n)]}, f"{n} bytes") for n in (0, 1, 3, 5, 8, 15, 17)),
            ({"addresses": [V4.packed, b"x"]}, "1 bytes"),
            ({"tunnel_protocol": "LEGACY_ISTIO_MTLS"}, "tunnel_protocol"),
            ({"tunnel_protocol": 9}, "tunnel_protocol"),
            ({"workload_type": 9}, "workload_type"),
            ({"network_mode": 9}, "network_mode"),
            ({"status": 9}, "status"),
            ({"application_tunnel": workload_pb2.ApplicationTunnel(protocol=9)}, "application_tunnel"),
            ({"application_tunnel": workload_pb2.ApplicationTunnel(port=65536)}, "65536"),
            ({"waypoint": workload_pb2.GatewayAddress()}, "waypoint has no destination"),
            ({"network_gateway": workload_pb2.GatewayAddress()}, "network_gateway has no destination"),
            (
                {
                    "waypoint": workload_pb2.GatewayAddress(
                        address=workload_pb2.NetworkAddress(address=b"abc")
                    )
                },
                "3 bytes",
            ),
            ({"trust_domain": "a/b"}, "trust domain"),
            ({"service_account": "a/b"}, "identity"),
            ({"namespace": "a/../b"}, "identity"),
            (
                {
                    "services": {
                        "ns/s": workload_pb2.PortList(
                            ports=[workload_pb2.Port(service_port=80, target_port=70000)]
                        )
                    }
                },
                "70000",
            ),
        ],
    )
    def test_what_is_not_understood_rejects_the_workload(self, fields: dict[str, Any], reason: str) -> None:
        message = wire_workload(**fields)
        with pytest.raises(ConversionError, match=reason) as caught:
            workload(message)
        assert caught.value.name in (message.uid, "(workload without uid)")
        assert str(caught.value) == f"{caught.value.name}: {caught.value.reason}"


class TestService:
    def test_every_field_has_its_place(self) -> None:
        converted = service(
            wire_service(
                addresses=[
                    workload_pb2.NetworkAddress(network="n", address=V4.packed),
                    workload_pb2.NetworkAddress(network="n", address=V4.packed, length=8),
                    workload_pb2.NetworkAddress(network="n", address=V6.packed, length=128),
                ],
                ports=[workload_pb2.Port(service_port=80, target_port=0)],
                subject_alt_names=["spiffe://td/ns/a/sa/b", "www.example.com", "spiffe://td/odd"],
                waypoint=ADDRESS_GATEWAY,
                weighted_waypoints=[workload_pb2.WeightedWaypoint(destination=HOSTNAME_GATEWAY, weight=10)],
                load_balancing=workload_pb2.LoadBalancing(
                    routing_preference=["NETWORK", "REGION"], mode="FAILOVER", health_policy="ALLOW_ALL"
                ),
                ip_families="DUAL",
                canonical=True,
                ingress_use_waypoint=True,
                visibility="NAMESPACE",
            )
        )
        assert converted.key == "ns/s.ns.svc"
        assert converted.addresses == (
            VirtualAddress("n", ip_network("10.0.0.1/32")),
            VirtualAddress("n", ip_network("10.0.0.0/8")),
            VirtualAddress("n", ip_network("2001:db8::1/128")),
        )
        assert [address.is_host for address in converted.addresses] == [True, False, True]
        assert converted.ports == (Port(80, 0),)
        assert converted.subject_alt_names == (SpiffeId("td", "a", "b"),)
        assert converted.waypoint == GatewayAddress(NetworkAddress("n", V4), 15008)
        assert converted.weighted_waypoints == (
            WeightedWaypoint(GatewayAddress(NamespacedHostname("ns", "wp.ns.svc"), 15009), 10),
        )
        assert converted.load_balancing == LoadBalancing(
            (Scope.NETWORK, Scope.REGION), LoadBalancingMode.FAILOVER, HealthPolicy.ALLOW_ALL
        )
        assert converted.ip_families is IPFamilies.DUAL
        assert converted.canonical
        assert converted.ingress_use_waypoint
        assert converted.visibility is Visibility.NAMESPACE

    def test_a_visibility_of_the_future_is_public(self) -> None:
        assert service(wire_service(visibility=7)).visibility is Visibility.PUBLIC

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"hostname": ""}, "no hostname"),
            ({"addresses": [workload_pb2.NetworkAddress(address=b"abc")]}, "3 bytes"),
            ({"addresses": [workload_pb2.NetworkAddress(address=V4.packed, length=33)]}, "prefix of 33"),
            ({"addresses": [workload_pb2.NetworkAddress(address=V6.packed, length=129)]}, "prefix of 129"),
            ({"ip_families": 9}, "ip_families"),
            ({"load_balancing": workload_pb2.LoadBalancing(mode=9)}, "mode"),
            ({"load_balancing": workload_pb2.LoadBalancing(health_policy=9)}, "health_policy"),
            ({"load_balancing": workload_pb2.LoadBalancing(routing_preference=[9])}, "routing_preference"),
            ({"weighted_waypoints": [workload_pb2.WeightedWaypoint(weight=1)]}, "without destination"),
            ({"ports": [workload_pb2.Port(service_port=65616)]}, "65616"),
        ],
    )
    def test_what_is_not_understood_rejects_the_service(self, fields: dict[str, Any], reason: str) -> None:
        with pytest.raises(ConversionError, match=reason):
            service(wire_service(**fields))


class TestPolicy:
    def test_every_field_has_its_place(self) -> None:
        message = authorization(
            "p",
            [
                [
                    [
                        match(
                            namespaces=["a", "b*"],
                            not_namespaces=["*c"],
                            principals=["*"],
                            not_principals=["td/ns/a/sa/b"],
                            source_ips=["10.0.0.9/8"],
                            not_source_ips=["::1/128"],
                            destination_ips=["10.0.0.1/32"],
                            not_destination_ips=["0.0.0.0/0"],
                            destination_ports=[80, 81],
                            not_destination_ports=[82],
                            service_accounts=[("a", "b")],
                            not_service_accounts=[("c", "d")],
                        )
                    ]
                ]
            ],
            scope="WORKLOAD_SELECTOR",
            action="DENY",
            dry_run=True,
        )
        converted = policy(message)
        assert (converted.key, converted.scope, converted.action, converted.dry_run) == (
            "ns/p",
            PolicyScope.WORKLOAD_SELECTOR,
            Action.DENY,
            True,
        )
        (found,) = converted.rules[0].clauses[0].matches
        assert found.namespaces.exact == {"a"}
        assert found.namespaces.prefixes == ("b",)
        assert found.not_namespaces.suffixes == ("c",)
        assert found.principals.presence
        assert found.not_principals.exact == {"td/ns/a/sa/b"}
        assert found.source_ips == (ip_network("10.0.0.0/8"),)
        assert found.not_source_ips == (ip_network("::1/128"),)
        assert found.destination_ips == (ip_network("10.0.0.1/32"),)
        assert found.not_destination_ips == (ip_network("0.0.0.0/0"),)
        assert found.destination_ports == {80, 81}
        assert found.not_destination_ports == {82}
        assert found.service_accounts == {("a", "b")}
        assert found.not_service_accounts == {("c", "d")}
        assert len(found.conditions) == 12

    @pytest.mark.parametrize("field", ["namespaces", "not_namespaces", "principals", "not_principals"])
    @pytest.mark.parametrize(
        "bad",
        [
            authorization_pb2.StringMatch(),
            authorization_pb2.StringMatch(exact=""),
            authorization_pb2.StringMatch(prefix=""),
            authorization_pb2.StringMatch(suffix=""),
        ],
    )
    def test_an_empty_string_match_rejects_the_policy(
        self, field: str, bad: authorization_pb2.StringMatch
    ) -> None:
        good = match(**{field: ["x"]})
        getattr(good, field).append(bad)
        with pytest.raises(ConversionError, match=rf"^ns/p: {field} "):
            policy(authorization("p", [[[good]]]))

    @pytest.mark.parametrize(
        "field", ["source_ips", "not_source_ips", "destination_ips", "not_destination_ips"]
    )
    @pytest.mark.parametrize(("size", "length"), [(0, 0), (3, 8), (5, 8), (4, 33), (16, 129), (17, 1)])
    def test_a_bad_block_rejects_the_policy(self, field: str, size: int, length: int) -> None:
        bad = match(**{field: ["10.0.0.0/8"]})
        getattr(bad, field).append(authorization_pb2.Address(address=bytes(size), length=length))
        with pytest.raises(ConversionError, match=f"{size} bytes"):
            policy(authorization("p", [[[bad]]]))

    @pytest.mark.parametrize("port", [0, 65536, 65616, 2**32 - 1])
    def test_a_number_that_is_no_port_rejects_the_policy(self, port: int) -> None:
        with pytest.raises(ConversionError, match="not a port"):
            policy(authorization("p", [[[match(destination_ports=[port])]]]))

    @pytest.mark.parametrize("field", ["scope", "action"])
    def test_an_unknown_enum_value_rejects_the_policy(self, field: str) -> None:
        message = authorization("p")
        setattr(message, field, 9)
        with pytest.raises(ConversionError, match=field):
            policy(message)

    def test_names_are_needed_to_say_whom_a_policy_is_for(self) -> None:
        with pytest.raises(ConversionError, match="no name"):
            policy(authorization(""))
        with pytest.raises(ConversionError, match="no namespace"):
            policy(authorization("p", namespace=""))
        with pytest.raises(ConversionError, match="service account"):
            policy(authorization("p", [[[match(service_accounts=[("ns", "")])]]]))

    def test_a_stand_in_for_an_unreadable_policy_keeps_its_scope(self) -> None:
        message = authorization("p", scope="GLOBAL", namespace="istio-system")
        message.action = 9  # type: ignore[assignment]
        stand_in = unusable("istio-system/p", message.SerializeToString(), "why")
        assert (stand_in.key, stand_in.scope, stand_in.unusable) == (
            "istio-system/p",
            PolicyScope.GLOBAL,
            "why",
        )
        assert unusable("ns/p", b"\xff", "why").scope is PolicyScope.NAMESPACE


class TestBytes:
    def test_an_address_is_a_workload_or_a_service(self) -> None:
        one = workload_pb2.Address(workload=wire_workload()).SerializeToString()
        two = workload_pb2.Address(service=wire_service()).SerializeToString()
        assert address_from_bytes("c//Pod/ns/a", one) == workload(wire_workload())
        assert address_from_bytes("ns/s.ns.svc", two) == service(wire_service())

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "neither"),
            (b"\xff\xff", "not an Address"),
            (workload_pb2.Address(workload=wire_workload(uid="other")).SerializeToString(), "'other'"),
        ],
    )
    def test_anything_else_is_rejected_under_the_resource_name(self, data: bytes, reason: str) -> None:
        with pytest.raises(ConversionError, match=reason) as caught:
            address_from_bytes("c//Pod/ns/a", data)
        assert caught.value.name == "c//Pod/ns/a"

    @settings(deadline=None)
    @given(st.data())
    def test_no_bytes_raise_anything_but_a_conversion_error(self, data: st.DataObject) -> None:
        """Whole messages with a few bytes changed or cut: most still decode, and mean something odd."""
        raw = bytearray(data.draw(st.sampled_from(_SEEDS)))
        for _ in range(data.draw(st.integers(0, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
        for read in (address_from_bytes, policy_from_bytes):
            with suppress(ConversionError):
                read("ns/x", cut)
        assert unusable("ns/x", cut, "why").key == "ns/x"


_SEEDS = [
    workload_pb2.Address(
        workload=wire_workload(
            addresses=[V4.packed, V6.packed],
            waypoint=HOSTNAME_GATEWAY,
            services={"ns/s": workload_pb2.PortList(ports=[workload_pb2.Port(service_port=80)])},
        )
    ).SerializeToString(),
    workload_pb2.Address(
        service=wire_service(
            addresses=[workload_pb2.NetworkAddress(address=V4.packed, length=8)],
            waypoint=ADDRESS_GATEWAY,
            load_balancing=workload_pb2.LoadBalancing(mode="STRICT", routing_preference=["NODE"]),
        )
    ).SerializeToString(),
    authorization(
        "x", [[[match(principals=["a*"], source_ips=["10.0.0.0/8"], destination_ports=[80])]]]
    ).SerializeToString(),
]
