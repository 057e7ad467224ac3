"""Ports that a pod leaves out: which, in which direction, and what a change does to open connections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ebpf.capture import Capture, EnrolledPod
from ebpf.errors import CaptureError, CaptureReason
from ebpf.variants import Variant
from tests.netns.capture import apps
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import App, Lab, both_variants

pytestmark = [pytest.mark.root, both_variants]

versions = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(autouse=True)
def _as_it_was(lab: Lab, capture: Capture, enrolled: EnrolledPod) -> Iterator[None]:
    yield
    capture.enrol(lab.pods[0].network())


def change(lab: Lab, capture: Capture, **ports: Any) -> None:
    capture.enrol(lab.pods[0].network(**ports))


@versions
def test_only_listed_inbound_ports_are_captured(
    lab: Lab, variant: Variant, capture: Capture, neighbour: App, version: int
) -> None:
    """C cannot leave the others: it goes on capturing."""
    own, app = lab.pods[0].own(version), f"app-{lab.pods[0].name}"
    change(lab, capture, only_inbound_ports=frozenset({9001}))
    if variant is Variant.C:
        assert neighbour.call(apps.exchange, Dial((own, 8080))).tag == "inbound"
        return
    assert neighbour.call(apps.exchange, Dial((own, 8080))).tag == app
    assert neighbour.call(apps.exchange, Dial((own, 9001))).tag == "inbound"
    assert neighbour.call(apps.exchange, Dial((own, 15008))).tag == "hbone"
    assert neighbour.call(apps.outcome, Dial((own, 9999))) == "ECONNREFUSED"
    change(lab, capture, only_inbound_ports=frozenset({8080}))
    assert neighbour.call(apps.exchange, Dial((own, 8080))).tag == "inbound"
    assert neighbour.call(apps.exchange, Dial((own, 9001))).tag == "specific"
    change(lab, capture, only_inbound_ports=frozenset())
    assert neighbour.call(apps.exchange, Dial((own, 8080))).tag == app
    change(lab, capture)
    assert neighbour.call(apps.exchange, Dial((own, 8080))).tag == "inbound"


@versions
def test_listed_inbound_ports_say_nothing_about_outbound(
    lab: Lab, capture: Capture, app: App, version: int
) -> None:
    change(lab, capture, only_inbound_ports=frozenset({9001}))
    assert app.call(apps.exchange, Dial((lab.pods[1].own(version), 8080))).tag == "outbound"


@versions
def test_ports_of_one_pod_are_not_those_of_another(
    lab: Lab, capture: Capture, app: App, neighbour: App, version: int
) -> None:
    third = capture.enrol(lab.pods[2].network())
    lab.servers.serve(third.inbound, "third")
    try:
        change(lab, capture, exempt_inbound_ports=frozenset({8080}), exempt_outbound_ports=frozenset({8080}))
        assert neighbour.call(apps.exchange, Dial((lab.pods[2].own(version), 8080))).tag == "third"
        assert neighbour.call(apps.exchange, Dial((lab.pods[0].own(version), 8080))).tag != "inbound"
        assert app.call(apps.exchange, Dial((lab.pods[1].own(version), 8080))).tag != "outbound"
    finally:
        lab.servers.forget("third")
        capture.withdraw(third)


@versions
def test_change_of_ports_leaves_open_connections_alone(
    lab: Lab, variant: Variant, capture: Capture, app: App, neighbour: App, version: int
) -> None:
    """In C that holds for captured ones. Those that were not have no way of their own once their port is captured."""
    inward, outward = Dial((lab.pods[0].own(version), 8080)), Dial((lab.pods[1].own(version), 8080))
    both = frozenset({8080})
    neighbour.call(apps.hold, "in", inward)
    app.call(apps.hold, "out", outward)
    change(lab, capture, exempt_inbound_ports=both, exempt_outbound_ports=both)
    neighbour.call(apps.hold, "in plain", inward)
    app.call(apps.hold, "out plain", outward)
    for ports in (frozenset[int](), both, frozenset[int]()):
        change(lab, capture, exempt_inbound_ports=ports, exempt_outbound_ports=ports)
        assert neighbour.call(apps.ask_held, "in").tag == "inbound"
        assert app.call(apps.ask_held, "out").tag == "outbound"
        if variant is Variant.B:
            assert neighbour.call(apps.ask_held, "in plain").tag == f"app-{lab.pods[0].name}"
            assert app.call(apps.ask_held, "out plain").tag == f"app-{lab.pods[1].name}"
    assert neighbour.call(apps.exchange, inward).tag == "inbound"
    assert app.call(apps.exchange, outward).tag == "outbound"
    for process, name in ((neighbour, "in"), (neighbour, "in plain"), (app, "out"), (app, "out plain")):
        process.call(apps.drop_held, name)


def test_what_is_no_port_is_refused_and_changes_nothing(lab: Lab, capture: Capture, neighbour: App) -> None:
    for ports in ({"only_inbound_ports": frozenset({0})}, {"exempt_inbound_ports": frozenset({65536})}):
        with pytest.raises(CaptureError) as refused:
            change(lab, capture, **ports)
        assert refused.value.reason is CaptureReason.UNSUPPORTED
    assert neighbour.call(apps.exchange, Dial((lab.pods[0].v4, 8080))).tag == "inbound"
