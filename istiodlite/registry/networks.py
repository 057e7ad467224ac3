"""Other networks and the gateways that lead there: Gateways of class `istio-remote` with label topology.istio.io/network.

As istiod without its multi-cluster settings: each address of such a Gateway is a workload of its own, and a workload of
that network names the gateway. Agents that cannot tunnel through it refuse with `network_unreachable`.
"""

import ipaddress
from collections.abc import Iterator

from istiodlite.api import workload_pb2
from istiodlite.objects import Gateway, GatewayAddress
from istiodlite.registry.config import NETWORK, REMOTE_CLASS
from istiodlite.registry.resource import Resource, packed, workload_resource
from istiodlite.registry.world import View

# Annotation of a Gateway: the service account its instances run as.
_ACCOUNT = "gateway.istio.io/service-account"


def _port(gateway: Gateway) -> int:
    """Of its first HBONE listener; 0: none."""
    return next((one.port for one in gateway.listeners if one.protocol == "HBONE"), 0)


def gateway_workloads(view: View, gateway: Gateway) -> Iterator[Resource]:
    """One for each address of a gateway to another network; none for any other Gateway."""
    network, port = gateway.meta.labels.get(NETWORK, ""), _port(gateway)
    if gateway.class_name != REMOTE_CLASS or not network or not port:
        return
    account = gateway.meta.annotations.get(_ACCOUNT) or f"{gateway.meta.name}-{REMOTE_CLASS}"
    for address in gateway.addresses:
        uid = f"NetworkGateway/{network}/{address.value}/{port}"
        workload = workload_pb2.Workload(
            uid=uid,
            name=uid,
            namespace=gateway.meta.namespace,
            service_account=account,
            network=network,
            trust_domain=view.config.wire_trust_domain,
        )
        if _is_ip(address):
            workload.addresses.append(packed(address.value))
        else:
            workload.hostname = address.value
        yield workload_resource(workload)


def network_gateway(view: View, network: str) -> workload_pb2.GatewayAddress | None:
    """What leads to a network: the first address of its oldest gateway."""
    usable = [one for one in view.network_gateways(network) if one.addresses and _port(one)]
    if not network or not usable:
        return None
    gateway = min(usable, key=lambda one: one.meta.age_order)
    address = gateway.addresses[0]
    if _is_ip(address):
        where = workload_pb2.NetworkAddress(network=network, address=packed(address.value))
        return workload_pb2.GatewayAddress(address=where, hbone_mtls_port=_port(gateway))
    hostname = workload_pb2.NamespacedHostname(namespace=gateway.meta.namespace, hostname=address.value)
    return workload_pb2.GatewayAddress(hostname=hostname, hbone_mtls_port=_port(gateway))


def _is_ip(address: GatewayAddress) -> bool:
    try:
        ipaddress.ip_address(address.value)
    except ValueError:
        return False
    return True
