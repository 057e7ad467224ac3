"""`explain`: the same answer as enforcement gives, in words, for every way of naming a destination."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from hbone.connect import SocketAddress
from hbone.reasons import Reason
from hbone.spiffe import SpiffeId
from tests.unit.ztunnel.doubles import service, workload
from ztunnel.state.model import Membership, Port, TunnelProtocol
from ztunnel.state.policy import Action, Clause, Match, Policy, PolicyScope, Rule, StringMatcher
from ztunnel.state.snapshot import Snapshot, Update
from ztunnel.whatif import DIRECT, Explanation, QuestionError, Way, explain_connection

CLIENT = workload("client", "10.0.0.1")
GUEST = workload("guest", "10.0.0.4")
WEB = workload(
    "web",
    "10.0.0.2",
    node="n2",
    services=(Membership("shop/web.shop.svc.cluster.local", (Port(80, 8080),)),),
)
STRANGER = workload(
    "stranger",
    "10.0.0.9",
    uid="Kubernetes//Pod/outside/stranger",
    namespace="outside",
    identity=SpiffeId("cluster.local", "outside", "default"),
    tunnel_protocol=TunnelProtocol.NONE,
)
ALLOW = Policy(
    "shop",
    "web-callers",
    PolicyScope.NAMESPACE,
    Action.ALLOW,
    (
        Rule(
            (
                Clause(
                    (Match(principals=StringMatcher(exact=frozenset({"cluster.local/ns/shop/sa/client"}))),)
                ),
            )
        ),
    ),
)


def ask(source: str, target: str, *policies: Policy) -> Explanation:
    known = Update(
        workloads=(CLIENT, GUEST, WEB, STRANGER),
        services=(service("web", "10.1.0.1", Port(80, 8080)),),
        policies=policies,
    )
    snapshot, _ = Snapshot.empty("n1").apply(known)
    return explain_connection(
        snapshot, source=source, target=target, network="net1", cluster_domain="cluster.local"
    )


@pytest.mark.parametrize(
    "target",
    [
        "web:80",
        "web.shop:80",
        "web.shop.svc:80",
        "web.shop.svc.cluster.local:80",
        "WEB.shop.svc.cluster.local.:80",
        "10.1.0.1:80",
        "10.0.0.2:8080",
        "[::ffff:10.0.0.2]:8080",
    ],
)
def test_every_way_of_naming_a_destination_leads_to_the_same_verdict(target: str) -> None:
    assert ask("shop/client", target, ALLOW).allowed
    refused = ask("shop/guest", target, ALLOW)
    assert (refused.allowed, refused.reason) == (False, Reason.POLICY_NO_MATCH)
    assert any("shop/web-callers" in line for line in refused.lines)


def test_what_goes_direct_is_said_so_and_nothing_else() -> None:
    snapshot, _ = Snapshot.empty("n1").apply(Update(workloads=(CLIENT, GUEST, WEB, STRANGER)))

    def lines(source: str) -> tuple[str, ...]:
        direct = ("shop/client", SocketAddress(ip_address("10.0.0.2"), 8080))
        return explain_connection(
            snapshot,
            source=source,
            target="web:8080",
            network="net1",
            cluster_domain="cluster.local",
            way=lambda *asked: Way.DIRECT if asked == direct else Way.PROXY,
        ).lines

    assert DIRECT in lines("shop/client")
    assert DIRECT not in lines("shop/guest")


def test_an_excluded_port_is_asked_for_in_clear_and_proves_nothing() -> None:
    snapshot, _ = Snapshot.empty("n1").apply(Update(workloads=(CLIENT, WEB), policies=(ALLOW,)))
    how = {
        "source": "shop/client",
        "target": "web:8080",
        "network": "net1",
        "cluster_domain": "cluster.local",
    }
    assert explain_connection(snapshot, **how).allowed
    answer = explain_connection(snapshot, **how, way=lambda _pod, _asked: Way.SPARED)
    assert answer.reason is Reason.POLICY_NO_MATCH
    assert "port 8080 is excluded from shop/client's capture: it goes out in the clear" in answer.lines


def test_a_pod_is_found_by_its_name_when_no_service_has_it() -> None:
    answer = ask("shop/client", "guest:80")
    assert answer.lines[0] == "guest is pod shop/guest at 10.0.0.4"
    assert answer.allowed


def test_a_client_outside_the_mesh_proves_nothing() -> None:
    answer = ask("outside/stranger", "web.shop:80", ALLOW)
    assert (answer.allowed, answer.reason) == (False, Reason.POLICY_NO_MATCH)
    assert any("not in the mesh" in line for line in answer.lines)
    assert ask("outside/stranger", "web.shop:80").allowed


def test_a_destination_outside_the_mesh_is_nobodys_to_authorize() -> None:
    answer = ask("shop/client", "192.0.2.1:443", ALLOW)
    assert answer.allowed
    assert "nobody authorizes" in answer.lines[-1]


def test_a_route_that_fails_is_the_answer() -> None:
    answer = ask("shop/client", "web:81")
    assert not answer.allowed
    assert answer.reason in (Reason.UNKNOWN_PORT, Reason.NO_HEALTHY_UPSTREAM)


@pytest.mark.parametrize(
    ("source", "target", "text"),
    [
        ("client", "web:80", "not NAMESPACE/POD"),
        ("shop/nobody", "web:80", "no pod shop/nobody"),
        ("shop/client", "web", "not HOST:PORT"),
        ("shop/client", "web:0", "not HOST:PORT"),
        ("shop/client", "web:８０", "not HOST:PORT"),
        ("shop/client", "web:99999", "not HOST:PORT"),
        ("shop/client", "nothing:80", "no service or pod nothing"),
    ],
)
def test_a_question_that_cannot_be_asked_is_one_line(source: str, target: str, text: str) -> None:
    with pytest.raises(QuestionError, match=text):
        ask(source, target)
