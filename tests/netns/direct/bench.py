"""Two enrolled pods, between which connections go direct."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from ebpf.capture import Capture, EnrolledPod
from ebpf.pairs import RECORD, Backend, DirectEvent, Endpoint, PairKey, Target, What, decode_event
from tests.netns.capture import apps
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import App, Lab, wait_for

versions = pytest.mark.parametrize("version", [4, 6])
VIPS = {4: "10.96.0.9", 6: "fd00:96::9"}
PORT = 7070


@dataclass
class Bench:
    """Two enrolled pods, a third that is not; applications on PORT in each; the first may talk to the second."""

    lab: Lab
    capture: Capture
    source: EnrolledPod
    target: EnrolledPod
    client: App
    server: App
    stranger: App

    def own(self, version: int) -> tuple[str, int]:
        return self.lab.pods[1].own(version), PORT

    def pairs(self, *, turbo: bool = False) -> dict[PairKey, Target]:
        found: dict[PairKey, Target] = {}
        for version in (4, 6):
            backend = Backend(self.target.slot, end(*self.own(version)))
            for asked in (self.own(version), (VIPS[version], 80), (self.own(version)[0], 9)):
                port = 9 if asked[1] == 9 else PORT
                found[PairKey(self.source.slot, end(*asked))] = Backend(
                    backend.slot, Endpoint(backend.address.ip, port), turbo
                )
        return found

    def events(self, *wanted: What) -> list[DirectEvent]:
        """Wait until just these have happened."""
        found: list[DirectEvent] = []

        def look() -> bool:
            found.extend(self.taken())
            return len(found) >= len(wanted)

        wait_for(look, f"events {wanted}, seen {[event.what.name for event in found]}")
        assert sorted(event.what for event in found) == sorted(wanted)
        return found

    def taken(self) -> list[DirectEvent]:
        """What has been told since the last time."""
        return [decode_event(each) for each in RECORD.iter_unpack(self.capture.direct.take())]

    def ask(self, version: int, port: int = PORT, **how: object) -> apps.Answer:
        return self.client.call(apps.exchange, Dial((self.own(version)[0], port), **how))  # type: ignore[arg-type]


def end(ip: str, port: int) -> Endpoint:
    return Endpoint(ip_address(ip), port)
