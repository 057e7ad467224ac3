"""Which variant is taken, and what is particular to C: its rules, its coming and going, its limits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ebpf import bpf, compiler, loader, looping, netns, rules, variants
from ebpf.bytecode import Collection
from ebpf.capture import Capture, EnrolledPod
from ebpf.errors import CaptureError, CaptureReason
from ebpf.netlink import Netlink
from ebpf.variants import Choice, Variant, Why
from tests.netns.capture import apps
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import App, Lab, Pod, network_state, wait_for

pytestmark = pytest.mark.root

versions = pytest.mark.parametrize("version", [4, 6])
RETURN_1 = bytes.fromhex("b7000000010000009500000000000000")


def broken(*names: str) -> Collection:
    """The shipped byte code with programs that do nothing."""
    shipped = compiler.shipped()
    idle = {name: replace(shipped.programs[name], code=RETURN_1, maps=(), holes={}) for name in names}
    return replace(shipped, programs={**shipped.programs, **idle})


@pytest.mark.parametrize(
    ("names", "choice", "taken", "why"),
    [
        ((), Choice.AUTO, Variant.B, Why.PREFERRED),
        ((), Choice.B, Variant.B, Why.FORCED),
        ((), Choice.C, Variant.C, Why.FORCED),
        (("connect4",), Choice.AUTO, Variant.C, Why.FALLBACK),
        (("connect6",), Choice.AUTO, Variant.C, Why.FALLBACK),
    ],
)
def test_the_first_variant_that_passes_its_self_test_is_taken(
    lab: Lab, names: tuple[str, ...], choice: Choice, taken: Variant, why: Why
) -> None:
    chosen = variants.choose(choice, broken(*names), lab.cgroup, lab.pin_dir)
    assert (chosen.variant, chosen.why) == (taken, why)
    assert chosen.reason.endswith(f"{taken}: connections were captured in a private namespace")
    assert ("B does not work: self_test_failed: outbound IPv" in chosen.reason) == (why is Why.FALLBACK)
    assert "\n" not in chosen.reason
    assert lab.pins() == []


@pytest.mark.parametrize(
    ("names", "choice", "told"),
    [
        (("steer",), Choice.AUTO, ("B does not work", "C does not work")),
        (("connect4",), Choice.B, ("outbound IPv4",)),
        (("steer",), Choice.C, ("outbound IPv4",)),
    ],
)
def test_if_none_works_that_is_refused_with_what_was_seen_and_nothing_is_changed(
    lab: Lab, names: tuple[str, ...], choice: Choice, told: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "obtain", lambda _: broken(*names))
    with pytest.raises(CaptureError) as refused:
        Capture.open(cgroup=lab.cgroup, pin_dir=lab.pin_dir, agent_pid=os.getpid(), choice=choice)
    assert refused.value.reason is CaptureReason.SELF_TEST_FAILED
    assert all(text in refused.value.detail for text in told), refused.value.detail
    assert refused.value.advice
    assert "\n" not in str(refused.value)
    assert lab.pins() == []


def test_without_cgroup2_there_is_c(lab: Lab) -> None:
    chosen = variants.choose(Choice.AUTO, compiler.shipped(), None, lab.pin_dir)
    assert (chosen.variant, chosen.why) == (Variant.C, Why.FALLBACK)
    assert "no cgroup2 hierarchy is mounted" in chosen.reason
    with pytest.raises(CaptureError, match="mount -t cgroup2"):
        variants.choose(Choice.B, compiler.shipped(), None, lab.pin_dir)


def test_what_both_variants_lack_is_told_once(lab: Lab) -> None:
    with pytest.raises(CaptureError) as refused:
        variants.choose(Choice.AUTO, compiler.shipped(), lab.cgroup, Path("/tmp"))
    assert refused.value.reason is CaptureReason.BPFFS_MISSING
    assert "does not work" not in str(refused.value)


@pytest.fixture
def loops_all(lab: Lab) -> Iterator[Capture]:
    """Capture by variant C for one test."""
    made = opened(lab, Variant.C)
    yield made
    made.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


def opened(lab: Lab, variant: Variant) -> Capture:
    cgroup = lab.cgroup if variant is Variant.B else None
    return Capture.attach(compiler.shipped(), cgroup, lab.pin_dir, variant)


def serve(lab: Lab, capture: Capture, pod: Pod) -> EnrolledPod:
    enrolled = capture.enrol(pod.network())
    lab.serve_agent(enrolled)
    return enrolled


def captured_by(lab: Lab, app: App, version: int = 4) -> str:
    tag = str(app.call(apps.exchange, Dial((lab.pods[1].own(version), 8080))).tag)
    return "the agent" if tag == "outbound" else "nobody"


def test_c_attaches_nothing_to_a_cgroup(lab: Lab, loops_all: Capture) -> None:
    serve(lab, loops_all, lab.pods[0])
    try:
        names = {path.name for path in loader.layout_dir(lab.pin_dir).iterdir()}
        assert not names & {"link_connect4", "link_connect6"}
        assert captured_by(lab, lab.app(lab.pods[0])) == "the agent"
        with pytest.raises(CaptureError, match="direct path needs the connect hook"):
            loops_all.direct.enable()
    finally:
        lab.stop_agent()


def test_withdrawal_leaves_the_network_as_it_was(lab: Lab, loops_all: Capture) -> None:
    pod = lab.pods[0]
    before = network_state(pod)
    enrolled = serve(lab, loops_all, pod)
    assert network_state(pod) != before
    loops_all.enrol(pod.network(exempt_inbound_ports=frozenset({80}), exempt_outbound_ports=frozenset({443})))
    lab.stop_agent()
    assert loops_all.withdraw(enrolled)
    assert network_state(pod) == before


@versions
def test_relayed_connections_go_on_while_a_pod_leaves_and_new_ones_are_plain(
    lab: Lab, loops_all: Capture, version: int
) -> None:
    pod, before = lab.pods[0], network_state(lab.pods[0])
    app, neighbour = lab.app(pod), lab.app(lab.pods[1])
    enrolled = serve(lab, loops_all, pod)
    app.call(apps.hold, "out", Dial((lab.pods[1].own(version), 8080)))
    assert loops_all.withdraw(enrolled) is False
    lab.stop_agent()
    for _ in range(3):
        assert app.call(apps.ask_held, "out").tag == "outbound"
        assert captured_by(lab, app, version) == "nobody"
        assert neighbour.call(apps.exchange, Dial((pod.own(version), 8080))).tag == f"app-{pod.name}"
    assert loops_all.release(enrolled) is False
    app.call(apps.drop_held, "out")
    wait_for(lambda: loops_all.release(enrolled), "the withdrawal is finished")
    assert network_state(pod) == before


@versions
def test_connections_that_were_open_before_enrolment_are_cut(
    lab: Lab, loops_all: Capture, version: int
) -> None:
    """B leaves them alone. C tells packets by nothing but that they are TCP and sent from the pod."""
    app = lab.app(lab.pods[0])
    app.call(apps.hold, "early", Dial((lab.pods[1].own(version), 8080)))
    serve(lab, loops_all, lab.pods[0])
    try:
        with pytest.raises(AssertionError, match=r"Connection reset|timed out"):
            app.call(apps.ask_held, "early")
        assert captured_by(lab, app, version) == "the agent"
    finally:
        lab.stop_agent()
        app.call(apps.drop_held, "early")


@pytest.mark.parametrize(("first", "second"), [(Variant.B, Variant.C), (Variant.C, Variant.B)])
def test_agent_of_the_other_variant_takes_pods_over_without_a_gap_and_leaves_nothing(
    lab: Lab, first: Variant, second: Variant
) -> None:
    pod, before = lab.pods[0], network_state(lab.pods[0])
    app = lab.app(pod)
    former = opened(lab, first)
    serve(lab, former, pod)
    app.call(apps.hold, "kept", Dial((lab.pods[1].v4, 8080)))
    latter = opened(lab, second)
    try:
        assert captured_by(lab, app) == "the agent"
        enrolled = serve(lab, latter, pod)
        assert captured_by(lab, app) == "the agent"
        assert latter.prune([enrolled]) == []
        for version in (4, 6):
            assert captured_by(lab, app, version) == "the agent"
        assert app.call(apps.ask_held, "kept").tag == "outbound"
        links = {path.name for path in loader.layout_dir(lab.pin_dir).iterdir()}
        assert ("link_connect4" in links) == (second is Variant.B)
        rules = network_state(pod)
        assert ("104:" in rules) == (second is Variant.C), rules
        app.call(apps.drop_held, "kept")
        lab.stop_agent()
        wait_for(lambda: latter.withdraw(enrolled), "the withdrawal is finished")
        assert network_state(pod) == before
    finally:
        former.close()
        latter.close()
        Capture.cleanup(lab.cgroup, lab.pin_dir)
    assert bpf.pinned(loader.layout_dir(lab.pin_dir) / "link_connect4") is None


def test_rules_are_those_of_the_plan_and_stay_when_made_again(lab: Lab) -> None:
    pod = lab.pods[2]
    network = pod.network()
    wanted = looping.plan(network.addresses, network.node_addresses, {80, 81}, {443})
    before = network_state(pod)
    with netns.inside(pod.fd), Netlink() as link:
        looping.apply(link, wanted)
        first = looping.ours(rules.listed(link))
        looping.apply(link, wanted)
        assert looping.ours(rules.listed(link)) == first
        assert len(first) == len(wanted)
        looping.apply(link, wanted[1:])
        assert len(looping.ours(rules.listed(link))) == len(wanted) - 1
        looping.revert(link, rules.listed(link))
    assert network_state(pod) == before


def test_a_family_without_an_address_is_closed_and_the_agents_own_way_is_not_looped() -> None:
    text = [str(rule) for rule in looping.plan([_v4("10.0.0.1")], [_v4("10.0.0.9")], {80}, {443})]
    assert "ip rule pref 104 iif lo ipproto tcp lookup 15001" in text
    assert "ip rule pref 85 fwmark 0x8000/0x8000 goto 110" in text
    assert "ip rule pref 86 ipproto tcp to 10.0.0.9/32 goto 110" in text
    assert "ip -6 rule pref 86 ipproto tcp sport 80 goto 110" in text
    assert "ip -6 rule pref 105 iif lo ipproto tcp unreachable" in text
    assert not any("-6 rule pref 104" in line for line in text)


def _v4(text: str) -> looping.Address:
    return looping.IPv4Address(text)
