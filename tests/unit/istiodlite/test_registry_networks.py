"""Gateways to other networks, and who is behind them."""

from __future__ import annotations

import pytest

from istiodlite.registry import MeshConfig
from tests.unit.istiodlite.mesh import WEB_POD, WEB_UID, Mesh

EAST = """
kind: Gateway
metadata: {name: east, namespace: net, labels: {topology.istio.io/network: n-east}}
spec:
  gatewayClassName: istio-remote
  listeners: [{name: status, port: 15021, protocol: HTTP}, {name: cross, port: 15108, protocol: HBONE}]
status: {addresses: [{type: IPAddress, value: 192.0.2.1}]}
"""
MACHINE = """
kind: WorkloadEntry
metadata: {name: vm, namespace: shop}
spec: {address: 203.0.113.6, network: n-east}
"""
UID = "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"
GATEWAY = "NetworkGateway/n-east/192.0.2.1/15108"


def test_a_gateway_is_a_workload_with_the_account_of_its_instances() -> None:
    found = Mesh(EAST, config=MeshConfig(trust_domain="td")).workloads[GATEWAY]
    assert (found.name, found.namespace, found.network) == (GATEWAY, "net", "n-east")
    assert (found.service_account, found.trust_domain) == ("east-istio-remote", "td")
    assert [bytes(one) for one in found.addresses] == [bytes([192, 0, 2, 1])]
    named = EAST.replace(
        "network: n-east}", "network: n-east}, annotations: {gateway.istio.io/service-account: x}"
    )
    assert Mesh(named).workloads[GATEWAY].service_account == "x"


def test_whoever_is_on_that_network_names_it() -> None:
    mesh = Mesh(EAST, MACHINE, WEB_POD)
    gateway = mesh.workloads[UID].network_gateway
    assert (gateway.address.network, gateway.hbone_mtls_port) == ("n-east", 15108)
    assert gateway.address.address == bytes([192, 0, 2, 1])
    assert not mesh.workloads[WEB_UID].HasField("network_gateway")


def test_a_gateway_with_a_name_is_named() -> None:
    mesh = Mesh(
        EAST.replace("type: IPAddress, value: 192.0.2.1", "type: Hostname, value: east.example.com"), MACHINE
    )
    gateway = mesh.workloads[UID].network_gateway
    assert (gateway.hostname.namespace, gateway.hostname.hostname) == ("net", "east.example.com")
    assert mesh.workloads["NetworkGateway/n-east/east.example.com/15108"].hostname == "east.example.com"


@pytest.mark.parametrize(
    "gateway",
    [
        EAST.replace("istio-remote", "istio-east-west"),
        EAST.replace("protocol: HBONE", "protocol: TLS"),
        EAST.rpartition("status:")[0],
        EAST.replace("topology.istio.io/network: n-east", "a: b"),
        EAST.replace("n-east", "n-west"),
    ],
    ids=["class", "protocol", "no address", "no label", "another network"],
)
def test_what_does_not_lead_there_is_not_named(gateway: str) -> None:
    mesh = Mesh(gateway, MACHINE)
    assert not mesh.workloads[UID].HasField("network_gateway")
    assert GATEWAY not in mesh.workloads


def test_a_gateway_that_comes_and_goes_changes_those_behind_it() -> None:
    mesh = Mesh(MACHINE, WEB_POD)
    assert mesh.apply(EAST) == {UID, GATEWAY}
    older = EAST.replace("name: east,", "name: older,").replace("192.0.2.1", "192.0.2.9")
    mesh.apply(older)
    assert mesh.remove("Gateway", "net", "east") == {UID, f"-{GATEWAY}"}
    assert mesh.workloads[UID].network_gateway.address.address == bytes([192, 0, 2, 9])
    mesh.remove("Gateway", "net", "older")
    assert not mesh.workloads[UID].HasField("network_gateway")
