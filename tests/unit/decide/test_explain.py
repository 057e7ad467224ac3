"""Verdicts in words."""

from hbone.connect import SocketAddress
from tests.unit.state.builders import by_name, match, policy, service, snapshot, workload
from ztunnel.decide.explain import explain
from ztunnel.decide.inbound import decide_inbound
from ztunnel.decide.model import InboundConnection, OutboundConnection, Via
from ztunnel.decide.outbound import decide_outbound

CLIENT = workload("client", "10.0.0.1", account="client")
SERVER = workload("server", "10.0.0.2", account="server", services={"ns/s.ns.svc": {}})


def outbound(to: str, *resources: object) -> list[str]:
    ip, port = to.split(":")
    connection = OutboundConnection(
        CLIENT, "", SocketAddress.of("10.0.0.1", 4100), SocketAddress.of(ip, int(port))
    )
    return explain(decide_outbound(connection, snapshot(CLIENT, *resources), 0.0), connection)  # type: ignore[arg-type]


def inbound(*resources: object, authority: str = "10.0.0.2:8080") -> list[str]:
    connection = InboundConnection(
        local=SERVER,
        via=Via.HBONE,
        peer=SocketAddress.of("10.0.0.1", 4100),
        destination=SocketAddress.of("10.0.0.2", 15008),
        identity=CLIENT.identity,
        authority=authority,
    )
    return explain(decide_inbound(connection, snapshot(CLIENT, SERVER, *resources)), connection)  # type: ignore[arg-type]


def test_a_tunnel_is_told_with_its_end_its_request_and_whom_it_expects() -> None:
    assert outbound("10.96.0.1:80", SERVER, service("s", "10.96.0.1")) == [
        "from     10.0.0.1:4100  ns/client",
        "to       10.96.0.1:80  service s.ns.svc, workload ns/server",
        "route    HBONE to the destination's node agent: 10.0.0.2:15008, CONNECT 10.0.0.2:8080,"
        " expecting spiffe://cluster.local/ns/ns/sa/server",
        "verdict  allowed: nothing at this end stands against it",
    ]


def test_a_waypoint_is_named() -> None:
    wp = workload("wp", "10.0.9.9", account="wp", services={"ns/wp.ns.svc": {}})
    lines = outbound(
        "10.96.0.1:80",
        wp,
        service("wp", ports={15008: 15008}),
        service("s", "10.96.0.1", waypoint=by_name("wp.ns.svc")),
    )
    assert lines[1] == "to       10.96.0.1:80  service s.ns.svc, by ns/wp"
    assert lines[2].startswith(
        "route    HBONE to the service's waypoint: 10.0.9.9:15008, CONNECT 10.96.0.1:80"
    )
    assert lines[3] == "because  waypoint ns/wp.ns.svc:15008"


def test_a_stranger_s_address_is_left_alone() -> None:
    assert outbound("192.0.2.1:80")[1:] == [
        "to       192.0.2.1:80  not in the mesh",
        "route    left alone (plain TCP): 192.0.2.1:80",
        "because  nobody in the mesh has this address",
        "verdict  allowed: nothing at this end stands against it",
    ]


def test_a_refusal_ends_with_its_reason() -> None:
    assert outbound("10.96.0.1:80", service("s", "10.96.0.1"))[2:] == [
        "route    none",
        "because  s.ns.svc has no usable endpoint",
        "verdict  refused: the service has no usable endpoint [no_healthy_upstream]",
    ]


def test_policies_are_told_in_order_with_the_part_that_decided() -> None:
    lines = inbound(
        policy("only-web", [[[match(namespaces=["web"])]]]),
        policy("clients", [[[match(principals=["*sa/client"])], [match(destination_ports=[8080])]]]),
        policy("no-ssh", [[[match(destination_ports=[22])]]], action="DENY"),
    )
    assert lines == [
        "from     10.0.0.1:4100  ns/client, proved spiffe://cluster.local/ns/ns/sa/client",
        "to       10.0.0.2:15008  workload ns/server",
        "route    to the application in this pod: 10.0.0.2:8080, from 10.0.0.1",
        "because  policy ns/clients",
        "policy   DENY ns/no-ssh did not match at rules[0].clauses[0] (does not hold: destination_ports)",
        "policy   ALLOW ns/clients matched at rules[0].clauses[0].matches[0]+clauses[1].matches[0]"
        " (all hold: principals, destination_ports)",
        "verdict  allowed: ALLOW policy ns/clients matched",
    ]


def test_no_policy_is_told_too() -> None:
    assert inbound()[-2:] == [
        "policy   none applies",
        "verdict  allowed: no ALLOW policy applies, and no DENY matched",
    ]


def test_a_denial_names_the_policy_and_the_status() -> None:
    lines = inbound(policy("deny", [[]], action="DENY"))
    assert lines[2:] == [
        "route    none (a CONNECT is answered 401)",
        "because  policy ns/deny",
        "policy   DENY ns/deny matched at rules[0] (the rule has no conditions)",
        "verdict  refused: a DENY policy matched [policy_denied]",
    ]


def test_a_request_that_makes_no_sense_is_told_without_policies() -> None:
    assert inbound(authority="nonsense")[2:] == [
        "route    none (a CONNECT is answered 400)",
        "because  authority 'nonsense' has no port of 1 to 65535",
        "verdict  refused: the request is not a well-formed CONNECT [bad_request]",
    ]
