"""Values of a small mesh, and doubles that are checked against the real faces."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from ebpf.capture import EnrolledPod, PodNetwork
from hbone.spiffe import SpiffeId
from ztunnel.state.model import NetworkAddress, Port, Service, TunnelProtocol, VirtualAddress, Workload


class Recorder:
    """Stands in for a class and writes down every call, after checking it against the class's signature.

    A call that the real face would not accept fails here too. `answers` gives return values by method.
    """

    def __init__(self, face: type, **answers: Any) -> None:
        self._face, self._answers = face, answers
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = inspect.getattr_static(self._face, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            bound = inspect.signature(method).bind(self, *args, **kwargs)
            bound.apply_defaults()
            arguments = {key: value for key, value in bound.arguments.items() if key != "self"}
            answer = self._answers.get(name)
            if isinstance(answer, BaseException):
                raise answer
            self.calls.append((name, arguments))
            return answer(**arguments) if callable(answer) else answer

        return call

    def named(self, name: str) -> list[dict[str, Any]]:
        """The arguments of every call of one method."""
        return [arguments for called, arguments in self.calls if called == name]


class _Socket:
    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number

    def close(self) -> None:
        self._number = -1


@dataclass
class FakeCapture:
    """Capture without a kernel: enrolled pods by namespace descriptor. `fail` makes the next enrolments fail."""

    fail: Exception | None = None
    slots: int = 0
    live: dict[int, EnrolledPod] = field(default_factory=dict)
    pruned: list[list[EnrolledPod]] = field(default_factory=list)
    variant: str = "B"
    dial_mark: int = 0
    relays: bool = False

    def enrol(self, pod: PodNetwork) -> EnrolledPod:
        if self.fail is not None:
            raise self.fail
        self.slots += 1
        sockets: list[Any] = [_Socket(self.slots * 10 + kind) for kind in range(3)]
        outbound, inbound, hbone = sockets
        enrolled = EnrolledPod(self.slots, self.slots, outbound, inbound, hbone, pod)
        self.live[enrolled.slot] = enrolled
        return enrolled

    def withdraw(self, pod: EnrolledPod) -> bool:
        del self.live[pod.slot]
        return not self.relays

    def release(self, pod: EnrolledPod) -> bool:
        return not self.relays

    def let_go(self, pod: EnrolledPod) -> None:
        del self.live[pod.slot]

    def prune(self, keep: Collection[EnrolledPod]) -> list[int]:
        self.pruned.append(list(keep))
        return []


def workload(name: str, ip: str, **changes: Any) -> Workload:
    """A pod in namespace shop behind HBONE, with a service account of its own name."""
    fields: dict[str, Any] = {
        "uid": f"Kubernetes//Pod/shop/{name}",
        "name": name,
        "namespace": "shop",
        "identity": SpiffeId("cluster.local", "shop", name),
        "addresses": (ip_address(ip),),
        "network": "net1",
        "tunnel_protocol": TunnelProtocol.HBONE,
        "node": "n1",
        "workload_name": name,
        "canonical_name": name,
        "canonical_revision": "v1",
    }
    return Workload(**(fields | changes))


def service(name: str, ip: str, *ports: Port) -> Service:
    """A service in namespace shop."""
    address = ip_address(ip)
    return Service(
        name=name,
        namespace="shop",
        hostname=f"{name}.shop.svc.cluster.local",
        addresses=(VirtualAddress("net1", ip_network(address)),),
        ports=ports,
    )


def key(network: str, ip: str) -> str:
    """The on-demand name of an address."""
    return str(NetworkAddress(network, ip_address(ip)))
