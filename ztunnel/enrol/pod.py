"""One running pod, and its name in the log."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

from ebpf.capture import EnrolledPod
from hbone.spiffe import SpiffeId
from ztunnel.enrol.settings import CaptureSettings

IpAddress: TypeAlias = IPv4Address | IPv6Address


@dataclass(slots=True, eq=False)
class Pod:
    """One running pod. `tag` is its number in the engine's events, `netns` its namespace's number there."""

    uid: str
    name: str
    namespace: str
    service_account: str
    netns_key: tuple[int, int]
    enrolled: EnrolledPod
    tag: int
    netns: int
    identity: SpiffeId
    identity_number: int
    settings: CaptureSettings
    listeners: list[int] = field(default_factory=list)

    @property
    def addresses(self) -> tuple[IpAddress, ...]:
        """The pod's own addresses, as read from its namespace."""
        return self.enrolled.network.addresses

    @property
    def full_name(self) -> str:
        """namespace/name."""
        return f"{self.namespace}/{self.name}"

    def shown(self) -> dict[str, str]:
        """Name, addresses, and what differs from capturing everything, for the log."""
        return {
            "pod": self.full_name,
            "addresses": ",".join(str(address) for address in self.addresses),
            **_shown(self.settings),
        }


def netns_key(fd: int) -> tuple[int, int]:
    """Which namespace a descriptor is of, among those that live."""
    stat = os.fstat(fd)
    return (stat.st_dev, stat.st_ino)


def _shown(settings: CaptureSettings) -> dict[str, str]:
    return {
        each.name: ",".join(map(str, sorted(value))) if isinstance(value, frozenset) else str(value).lower()
        for each in dataclass_fields(settings)
        if (value := getattr(settings, each.name)) != each.default
    }
