"""The short cut past the host: what takes it, what does not, and that nothing of it stays behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from ebpf import direct, netns
from ebpf.errors import CaptureError
from ebpf.redirect import State
from tests.netns.capture import apps
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import wait_for
from tests.netns.direct.bench import PORT, Bench, versions
from tests.netns.direct.host import Host, add

pytestmark = pytest.mark.root


def redirected(bench: Bench) -> int:
    return bench.capture.counters()["redirected"]


def reaches(bench: Bench, version: int) -> Callable[[], bool]:
    """Whether a new connection goes past the host; they do from a moment after the pods were added."""

    def attempt() -> bool:
        before = redirected(bench)
        assert bench.ask(version).tag == "app"
        return redirected(bench) == before + 1

    return attempt


@pytest.fixture
def short(host: Host, bench: Bench) -> Iterator[Bench]:
    """With the short cut between the two pods, IPv4 and IPv6."""
    redirect = bench.capture.direct.redirect
    with netns.inside(host.fd):
        redirect.enable()
        add(redirect, bench.lab, bench.source.slot, bench.target.slot)
    assert redirect.slots == {bench.source.slot, bench.target.slot}
    for version in (4, 6):
        wait_for(reaches(bench, version), "a connection goes past the host")
    yield bench
    host.open_the_way()
    redirect.disable()
    wait_for(lambda: not bench.capture.direct.live(), "no connection is left")


@versions
def test_packets_of_direct_connections_pass_the_host_by(short: Bench, host: Host, version: int) -> None:
    host.close_the_way()
    before, size = host.seen, 3_000_000
    assert short.ask(version).tag == "app"
    short.client.call(apps.hold_silent, "bulk", Dial(short.own(version)))
    assert short.client.call(apps.pour, "bulk", 1, size) == size
    assert host.seen == before
    short.client.call(apps.drop_held, "bulk")


@versions
def test_without_it_the_same_connection_needs_the_host(short: Bench, host: Host, version: int) -> None:
    short.capture.direct.redirect.disable()
    before = host.seen
    assert short.ask(version).tag == "app"
    assert host.seen > before
    host.close_the_way()
    assert short.client.call(apps.outcome, Dial(short.own(version)), 0.5) == "timeout"


@versions
def test_a_connection_stays_on_the_way_it_began_on(short: Bench, host: Host, version: int) -> None:
    redirect = short.capture.direct.redirect
    redirect.disable()
    short.client.call(apps.hold, "earlier", Dial(short.own(version)))
    with netns.inside(host.fd):
        redirect.enable()
        add(redirect, short.lab, short.source.slot, short.target.slot)
    wait_for(reaches(short, version), "a new connection goes past the host")
    before = host.seen
    assert short.client.call(apps.ask_held, "earlier").tag == "app"
    assert host.seen > before
    short.client.call(apps.drop_held, "earlier")


@versions
def test_other_traffic_is_seen_by_the_host_as_ever(short: Bench, host: Host, version: int) -> None:
    before, taken = host.seen, redirected(short)
    assert short.stranger.call(apps.exchange, Dial(short.own(version))).tag == "inbound"
    assert host.seen > before
    assert short.ask(version, 8080).tag == "outbound"
    host.close_the_way()
    assert short.stranger.call(apps.outcome, Dial(short.own(version)), 0.5) == "timeout"
    assert redirected(short) == taken


@versions
def test_whoever_sends_under_another_pods_address_takes_the_hosts_way(
    short: Bench, host: Host, version: int
) -> None:
    client = short.lab.pods[0].own(version)
    short.client.call(apps.hold, "real", Dial(short.own(version), source=(client, 40102)))
    before, taken = host.seen, redirected(short)
    assert short.stranger.call(apps.spoof, short.own(version), (client, 40102)) != "app"
    assert host.seen > before
    assert redirected(short) == taken
    assert short.client.call(apps.ask_held, "real").tag == "app"
    short.client.call(apps.drop_held, "real")


@versions
def test_revocation_cuts_and_new_connections_go_to_the_proxy(short: Bench, host: Host, version: int) -> None:
    host.close_the_way()
    short.client.call(apps.hold, "cut", Dial(short.own(version)))
    served = len(short.server.call(apps.how_served_ended))
    (live,) = (each for each in short.capture.direct.live() if each.ends.server.port == PORT)
    short.capture.direct.set_pairs({}, short.capture.direct.pairs)
    assert direct.destroy(short.lab.pods[0].fd, live) is True
    assert short.client.call(apps.end_held, "cut") == "ECONNABORTED"
    wait_for(lambda: len(short.server.call(apps.how_served_ended)) > served, "the server was reset")
    assert short.server.call(apps.how_served_ended)[-1] == "ECONNRESET"
    assert short.ask(version).tag == "outbound"


@versions
def test_a_pod_that_leaves_has_the_hosts_way_again_at_once(short: Bench, host: Host, version: int) -> None:
    short.client.call(apps.hold, "open", Dial(short.own(version)))
    before = host.seen
    assert short.client.call(apps.ask_held, "open").tag == "app"
    assert host.seen == before
    short.capture.direct.redirect.remove(short.target.slot)
    assert short.client.call(apps.ask_held, "open").tag == "app"
    assert host.seen > before
    assert short.capture._kernel.redirects().keys() == {short.source.slot}
    short.client.call(apps.drop_held, "open")


def test_a_slot_that_means_another_pod_by_now_gets_nothing(short: Bench, host: Host) -> None:
    redirect = short.capture.direct.redirect
    redirect.remove(short.target.slot)
    with netns.inside(host.fd):
        redirect.add(short.target.slot, short.lab.pods[2].fd, netns.addresses(short.lab.pods[2].fd))
    assert redirect.slots == {short.source.slot}


def test_a_pod_whose_veth_ends_elsewhere_is_left_out_and_shown(short: Bench) -> None:
    redirect = short.capture.direct.redirect
    redirect.remove(short.target.slot)
    add(redirect, short.lab, 9, short.target.slot)  # as seen from this process's own network, not the node's
    assert redirect.slots == {short.source.slot}
    assert redirect.left_out == {short.target.slot: "the other end of its veth is not in the agent's network"}
    assert short.ask(4).tag == "app"


def test_self_test_refuses_a_program_that_does_nothing_and_connections_stay_direct(
    short: Bench, host: Host
) -> None:
    capture = short.capture._kernel
    idle = bytes.fromhex("b7000000ffffffff9500000000000000")  # return -1
    program = replace(capture.collection.programs["redirect"], code=idle, maps=(), holes={})
    programs = {**capture.collection.programs, "redirect": program}
    broken = replace(capture.collection, programs=programs)
    redirect = short.capture.direct.redirect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture, "collection", broken)
        with pytest.raises(CaptureError, match="self_test_failed: redirect_peer: IPv4: packets do not"):
            redirect.enable()
    assert redirect.state is State.REFUSED
    assert "packets do not arrive" in redirect.problem
    assert not capture.redirects()
    before = host.seen
    assert short.ask(4).tag == "app"
    assert host.seen > before
