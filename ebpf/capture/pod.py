"""A pod as it comes to capture, and as capture gives it back."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ebpf.dns import DNS_PORT, DnsSockets
from ebpf.errors import CaptureError, CaptureReason
from ebpf.listeners import Listeners


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """What is to be captured.

    `netns_fd`: open descriptor of the pod's network namespace; stays the caller's (capture keeps a copy).
    `addresses`: the pod's own; at least one. `node_addresses`: plaintext inbound traffic from these is left
    to the application (kubelet probes). `exempt_inbound_ports`: local ports left alone (never 15008).
    `exempt_outbound_ports`: destination ports left alone. `only_inbound_ports`: if not None, plaintext inbound
    traffic is captured on these ports only. `bypass_inbound`: of the inbound traffic only HBONE is captured.
    `dns`: questions to name servers (UDP and TCP port 53) are captured, too.
    """

    netns_fd: int
    addresses: tuple[IPv4Address | IPv6Address, ...]
    node_addresses: tuple[IPv4Address | IPv6Address, ...] = ()
    exempt_inbound_ports: frozenset[int] = frozenset()
    exempt_outbound_ports: frozenset[int] = frozenset()
    only_inbound_ports: frozenset[int] | None = None
    bypass_inbound: bool = False
    dns: bool = False

    @property
    def captures_dns(self) -> bool:
        """Whether they are: not where port 53 is to be left alone."""
        return self.dns and DNS_PORT not in self.exempt_outbound_ports

    def check(self) -> None:
        """CaptureError if it cannot be captured so."""
        only = self.only_inbound_ports or frozenset()
        for port in self.exempt_inbound_ports | self.exempt_outbound_ports | only:
            if not 0 < port < 65536:
                raise CaptureError(
                    CaptureReason.UNSUPPORTED, f"exempt port {port}", "give ports from 1 to 65535"
                )
        if not self.addresses:
            raise CaptureError(
                CaptureReason.NO_ADDRESS,
                "the pod has no address of global scope",
                "enrol it when it has one",
            )


@dataclass(frozen=True, slots=True, eq=False)
class EnrolledPod:
    """A captured pod: its number in the kernel's maps, its namespace's cookie, its three listeners, and `dns`
    if its questions to name servers are captured.

    The sockets (non-blocking, dual stack) belong to `Capture`: `withdraw` and `close` close them.
    `network.netns_fd` is a copy that belongs to `Capture`, too.
    """

    slot: int
    cookie: int
    outbound: socket.socket
    inbound: socket.socket
    hbone: socket.socket
    network: PodNetwork
    dns: DnsSockets | None = None

    @property
    def listeners(self) -> Listeners:
        """The three sockets together."""
        return Listeners(self.outbound, self.inbound, self.hbone)

    def descriptors(self) -> list[int]:
        """For the fd store: those that clients wait at."""
        dns = self.dns.descriptors() if self.dns is not None and self.dns.are_open() else []
        return [*self.listeners.descriptors(), *dns]

    def close(self) -> None:
        """Close this process's descriptors of the sockets."""
        self.listeners.close()
        if self.dns is not None:
            self.dns.close()
