"""What the registry answers: named, versioned, serialised resources."""

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from sys import intern

from istiodlite.api import authorization_pb2, workload_pb2
from istiodlite.objects import ObjectKey

ADDRESS_TYPE = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION_TYPE = "type.googleapis.com/istio.security.Authorization"


def short_type(type_url: str) -> str:
    """Address, Authorization: for people and labels of metrics."""
    return type_url.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Resource:
    """One xDS resource.

    `version` is a hash of `body` (the serialised message), so it is the same after a restart and in every
    replica. `aliases` are further names a client may ask for. `node` and `services` (names of service
    resources) are filled for workloads and say who has to be told about it.
    """

    type_url: str
    name: str
    version: str
    body: bytes
    aliases: tuple[str, ...] = ()
    node: str = ""
    services: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """A status condition of an input object, with Istio's types and reasons."""

    key: ObjectKey
    type: str
    status: bool
    reason: str
    message: str


def content_version(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=8).hexdigest()


def packed(address: str) -> bytes:
    """An address text as 4 or 16 bytes. A large mesh has a hundred thousand, so the common ones are not parsed."""
    parts = address.split(".")
    if len(parts) == 4 and address.replace(".", "").isdecimal():
        return bytes(map(int, parts))
    return ipaddress.ip_address(address).packed


def service_names(workload: workload_pb2.Workload) -> tuple[str, ...]:
    """The services that a workload is an endpoint of; one text for all that are."""
    return tuple(map(intern, sorted(workload.services)))


def workload_resource(workload: workload_pb2.Workload) -> Resource:
    """Of a workload that is nobody's replica."""
    addresses = [str(ipaddress.ip_address(address)) for address in workload.addresses]
    return address_resource(workload_pb2.Address(workload=workload), addresses, service_names(workload))


def address_resource(
    address: workload_pb2.Address, addresses: Iterable[str], services: tuple[str, ...]
) -> Resource:
    """Of a workload with its addresses as canonical texts. The name is the uid; found by `network/ip` too unless it
    shares its node's address."""
    workload = address.workload
    body = address.SerializeToString(deterministic=True)
    aliases: tuple[str, ...] = ()
    if workload.network_mode != workload_pb2.HOST_NETWORK:
        network = workload.network
        aliases = tuple([f"{network}/{one}" for one in addresses])
    return Resource(ADDRESS_TYPE, workload.uid, content_version(body), body, aliases, workload.node, services)


def service_resource(service: workload_pb2.Service) -> Resource:
    """The name is `namespace/hostname`; found by `network/vip` or `network/ip/length` too."""
    body = workload_pb2.Address(service=service).SerializeToString(deterministic=True)
    return Resource(
        type_url=ADDRESS_TYPE,
        name=f"{service.namespace}/{service.hostname}",
        version=content_version(body),
        body=body,
        aliases=tuple(_vip_names(service.addresses)),
    )


def _vip_names(addresses: Iterable[workload_pb2.NetworkAddress]) -> Iterable[str]:
    for address in addresses:
        name = f"{address.network}/{ipaddress.ip_address(address.address)}"
        yield f"{name}/{address.length}" if address.HasField("length") else name


def authorization_resource(policy: authorization_pb2.Authorization) -> Resource:
    """The name is `namespace/name`."""
    body = policy.SerializeToString(deterministic=True)
    return Resource(
        type_url=AUTHORIZATION_TYPE,
        name=f"{policy.namespace}/{policy.name}",
        version=content_version(body),
        body=body,
    )
