"""The direct path in the kernel: what goes direct, what does not, what is told of it, how it is ended."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from ebpf import bpf, direct, loader, maps
from ebpf.capture import Capture
from ebpf.pairs import RECORD, Backend, PairKey, Split, What, decode_event
from tests.netns.capture import apps
from tests.netns.capture.apps import MPTCP, Dial
from tests.netns.capture.lab import Lab, sh, wait_for
from tests.netns.direct.bench import PORT, VIPS, Bench, end, versions

pytestmark = pytest.mark.root

ORDERS = ("client server", "server client", "at once")

# What goes direct


@versions
def test_allowed_pair_talks_without_the_proxy(bench: Bench, version: int) -> None:
    answer = bench.ask(version)
    assert answer.tag == "app"
    assert answer.client_peer == bench.own(version)
    assert answer.server_peer == answer.client_local
    assert answer.client_local[0] == bench.lab.pods[0].own(version)


@versions
def test_service_address_goes_to_the_backend_and_is_what_the_client_sees(bench: Bench, version: int) -> None:
    answer = bench.client.call(apps.exchange, Dial((VIPS[version], 80)))
    assert (answer.tag, answer.server_local) == ("app", bench.own(version))
    assert answer.client_peer == (VIPS[version], 80)
    assert answer.server_peer == answer.client_local


def test_v4_mapped_sockets_go_direct(bench: Bench) -> None:
    assert bench.client.call(apps.exchange, Dial(bench.own(4), mapped=True)).tag == "app"
    answer = bench.client.call(apps.exchange, Dial((VIPS[4], 80), mapped=True))
    assert (answer.tag, answer.client_peer) == ("app", (VIPS[4], 80))


@versions
@pytest.mark.parametrize("how", ["nonblocking", "fastopen-sendto", "fastopen-connect"])
def test_whatever_the_call_it_goes_direct(bench: Bench, version: int, how: str) -> None:
    assert bench.ask(version, how=how).tag == "app"


@versions
def test_closed_port_is_refused_as_without_a_mesh(bench: Bench, version: int) -> None:
    dial = Dial((bench.own(version)[0], 9))
    assert bench.client.call(apps.outcome, dial) == "ECONNREFUSED"
    (ended,) = bench.events(What.ENDED)
    assert (ended.established, ended.sent, ended.connection.accepted) == (False, 0, False)


@versions
def test_service_of_several_backends_is_spread_as_their_weights_say(bench: Bench, version: int) -> None:
    """Of 400 draws with 3 in 4 for one backend, fewer than 240 or more than 360 come once in 10^11 times."""
    key = PairKey(bench.source.slot, end(VIPS[version], 80))
    ip = bench.own(version)[0]
    other = 7080 + version
    bench.server.call(apps.serve, other, "other")
    choices = tuple((Backend(bench.target.slot, end(ip, port)), n) for port, n in ((PORT, 3), (other, 1)))
    bench.capture.direct.set_pairs({key: Split(choices)})
    dial = Dial((VIPS[version], 80))
    answers = bench.client.call(apps.who_answers, dial, 400)
    assert answers.keys() == {"app", "other"}
    assert 240 <= answers["app"] <= 360
    told = Counter(event.connection.ends.server.port for event in bench.events(*[What.ENDED] * 400))
    assert told == {PORT: answers["app"], other: answers["other"]}
    assert bench.capture.direct.audit() == 0
    bench.capture.direct.set_pairs({key: choices[1][0]})
    assert bench.client.call(apps.who_answers, dial, 20) == {"other": 20}
    bench.capture.direct.set_pairs({key: Split(choices)})
    bench.capture.direct.set_pairs({}, [key])
    assert bench.client.call(apps.exchange, dial).tag == "outbound"
    assert bench.capture.direct.pairs.keys() == bench.pairs().keys() - {key}
    assert bench.capture.direct.audit() == 0


@versions
def test_backend_that_is_no_choice_any_more_before_the_syn_leaves_is_not_reached(
    bench: Bench, version: int
) -> None:
    key, ip = PairKey(bench.source.slot, end(VIPS[version], 80)), bench.own(version)[0]
    app, closed = (Backend(bench.target.slot, end(ip, port)) for port in (PORT, 9))
    bench.client.call(apps.hold_deferred, "goes", Dial((VIPS[version], 80)))
    bench.capture.direct.set_pairs({key: Split(((closed, 1), (closed, 2)))})
    assert bench.client.call(apps.ask_held, "goes").tag == "outbound"
    bench.client.call(apps.drop_held, "goes")
    bench.capture.direct.set_pairs({key: Split(((app, 1), (app, 5)))})
    assert bench.client.call(apps.who_answers, Dial((VIPS[version], 80)), 10) == {"app": 10}


# What does not


@versions
def test_what_is_no_pair_goes_to_the_proxy(bench: Bench, version: int) -> None:
    assert bench.ask(version, 8081).tag == "outbound"
    assert bench.client.call(apps.exchange, Dial((VIPS[version], 81))).tag == "outbound"
    assert bench.events() == []


@versions
def test_pair_that_was_removed_goes_to_the_proxy(bench: Bench, version: int) -> None:
    assert bench.ask(version).tag == "app"
    bench.capture.direct.set_pairs({}, bench.pairs())
    assert bench.ask(version).tag == "outbound"
    assert bench.client.call(apps.exchange, Dial((VIPS[version], 80))).tag == "outbound"


@versions
def test_pair_that_goes_before_the_syn_leaves_sends_it_to_the_proxy(bench: Bench, version: int) -> None:
    before = bench.capture.counters()
    bench.client.call(apps.hold_deferred, "stays", Dial((VIPS[version], 80)))
    assert bench.client.call(apps.ask_held, "stays").tag == "app"
    bench.client.call(apps.hold_deferred, "goes", Dial(bench.own(version)))
    bench.client.call(apps.hold_deferred, "away", Dial((VIPS[version], 80)))
    bench.capture.direct.set_pairs({}, bench.pairs())
    for name in ("goes", "away"):
        assert bench.client.call(apps.ask_held, name).tag == "outbound"
    assert bench.capture.counters()["fallen_back"] == before["fallen_back"] + 2
    assert [live.asked for live in bench.capture.direct.live()] == [end(VIPS[version], 80)]
    bench.events(What.FELL_BACK, What.FELL_BACK)
    for name in ("stays", "goes", "away"):
        bench.client.call(apps.drop_held, name)


@versions
def test_pairs_do_not_count_when_the_agent_stops_renewing(bench: Bench, version: int) -> None:
    bench.client.call(apps.hold_deferred, "late", Dial((VIPS[version], 80)))
    before = bench.capture.counters()["fallen_back"]
    bench.capture.direct.renew(0.2)
    deadline = time.monotonic() + 0.3
    wait_for(lambda: time.monotonic() > deadline, "the lease is over")
    assert bench.ask(version).tag == "outbound"
    assert bench.capture.counters()["fallen_back"] == before, "connect() did not look at the lease"
    assert bench.client.call(apps.ask_held, "late").tag == "outbound", "it was let go after its connect()"
    bench.client.call(apps.drop_held, "late")


@versions
def test_address_that_means_another_pod_by_now_leads_to_that_pods_proxy(bench: Bench, version: int) -> None:
    """The agent still believes that the address belongs to a pod in another slot."""
    key, to = PairKey(bench.source.slot, end(VIPS[version], 80)), end(*bench.own(version))
    bench.capture.direct.set_pairs({key: Backend(bench.source.slot, to)})
    assert bench.client.call(apps.exchange, Dial((VIPS[version], 80))).tag == "inbound"


@versions
def test_pod_that_is_not_enrolled_reaches_the_proxy_not_the_application(bench: Bench, version: int) -> None:
    assert bench.stranger.call(apps.exchange, Dial(bench.own(version))).tag == "inbound"


@versions
def test_spoofed_source_does_not_reach_the_application(bench: Bench, version: int) -> None:
    """Neither from elsewhere, nor on the tuple of an open connection, nor by the pod that has the permission."""
    client = bench.lab.pods[0].own(version)
    assert bench.stranger.call(apps.spoof, bench.own(version), (client, 20001)) != "app"
    bench.client.call(apps.hold, "real", Dial(bench.own(version), source=(client, 20002)))
    assert bench.stranger.call(apps.spoof, bench.own(version), (client, 20002)) != "app"
    assert bench.client.call(apps.ask_held, "real").tag == "app"
    bench.client.call(apps.drop_held, "real")
    before = bench.capture.counters()["fallen_back"]
    foreign = bench.lab.pods[2].own(version)
    assert bench.client.call(apps.spoof, bench.own(version), (foreign, 20003)) != "app"
    assert bench.capture.counters()["fallen_back"] == before + 1


def test_socket_bound_to_a_device_goes_to_the_proxy(bench: Bench) -> None:
    assert bench.ask(4, device="eth0").tag == "outbound"


@versions
def test_mptcp_connection_goes_direct_and_is_told_of(bench: Bench, version: int) -> None:
    answer = bench.ask(version, protocol=MPTCP)
    assert answer.tag == "app"
    (ended,) = bench.events(What.ENDED)
    told = f"app|{' '.join(map(str, answer.server_local))}|{' '.join(map(str, answer.server_peer))}"
    assert (ended.sent, ended.answered, ended.served) == (1, len(told), True)


@versions
def test_socket_used_again_asks_again(bench: Bench, version: int) -> None:
    own = bench.own(version)[0]
    _, answer = bench.client.call(apps.connect_twice, Dial((own, PORT)), Dial((own, 8081)))
    assert (answer.tag, answer.client_peer) == ("outbound", (own, 8081))
    _, answer = bench.client.call(apps.connect_twice, Dial((own, 8081)), Dial((VIPS[version], 80)))
    assert (answer.tag, answer.client_peer) == ("app", (VIPS[version], 80))


def test_pod_that_left_is_part_of_no_pair_and_its_open_connections_go_on(bench: Bench) -> None:
    lab, capture = bench.lab, bench.capture
    third = capture.enrol(lab.pods[2].network())
    backend = Backend(third.slot, end(lab.pods[2].v4, PORT))
    capture.direct.set_pairs({PairKey(bench.source.slot, backend.address): backend})
    dial = Dial((lab.pods[2].v4, PORT))
    bench.client.call(apps.hold, "open", dial)
    assert bench.capture.withdraw(third) is True
    assert all(third.slot not in (key.slot, to.slot) for key, to in capture.direct.pairs.items())
    assert bench.client.call(apps.ask_held, "open").tag == "app"
    assert bench.client.call(apps.exchange, dial).tag == "outbound"
    capture.direct.set_pairs({PairKey(bench.source.slot, backend.address): backend})
    assert bench.client.call(apps.exchange, dial).tag == "outbound"
    bench.client.call(apps.drop_held, "open")


def test_without_enabling_nothing_is_attached(lab: Lab, bench: Bench) -> None:
    links = loader.layout_dir(lab.pin_dir)
    assert {f"link_{name}" for name in loader.DIRECT_PROGRAMS} <= {path.name for path in links.iterdir()}
    bench.capture.direct.disable()
    try:
        names = {path.name for path in links.iterdir() if not path.name.startswith("map_")}
        assert names == {"link_connect4", "link_connect6", "pod_0", "pod_1"}
        assert bench.ask(4).tag == "outbound"
    finally:
        bench.capture.direct.enable()


# What is told


@versions
@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
def test_bytes_are_exact(bench: Bench, version: int, half: bool) -> None:
    size = 1_000_000
    bench.client.call(apps.hold_silent, "bulk", Dial(bench.own(version)))
    if half:
        assert bench.client.call(apps.half_close, "bulk", size) == size
    else:
        assert bench.client.call(apps.push_and_pull, "bulk", size) == size
        bench.client.call(apps.drop_held, "bulk")
    (ended,) = bench.events(What.ENDED)
    assert (ended.sent, ended.answered) == (size, size)
    assert (ended.established, ended.served, ended.connection.accepted) == (True, True, True)
    assert ended.ended > ended.connection.began
    assert ended.connection.ends.server == end(*bench.own(version))
    assert bench.capture.direct.live() == []


@pytest.fixture
def halt(bench: Bench) -> Iterator[Callable[[bool], None]]:
    """Nothing is forwarded by the node while it is called with True."""
    nft = f"ip netns exec {bench.lab.node} nft"
    sh(f"{nft} add table inet ambientlite_halt")
    chain = "chain inet ambientlite_halt every"
    sh(f"{nft} 'add {chain} {{ type filter hook forward priority filter; }}'")

    def set_to(on: bool) -> None:
        sh(f"{nft} add rule inet ambientlite_halt every drop" if on else f"{nft} flush {chain}")

    yield set_to
    sh(f"{nft} delete table inet ambientlite_halt")


@versions
@pytest.mark.parametrize("order", ORDERS)
def test_bytes_are_exact_whoever_closes_first(
    bench: Bench, halt: Callable[[bool], None], version: int, order: str
) -> None:
    """At once: the two FINs cross."""
    to = (bench.own(version)[0], 7100 + 10 * version + ORDERS.index(order))
    bench.capture.direct.set_pairs(
        {PairKey(bench.source.slot, end(*to)): Backend(bench.target.slot, end(*to))}
    )
    bench.server.call(apps.listen_only, to[1])
    bench.client.call(apps.hold_silent, "bulk", Dial(to))
    bench.server.call(apps.accept_held, "bulk")
    up = bench.client.call(apps.stuff, "bulk", 0, 300_000)
    assert bench.server.call(apps.read_held, "bulk", 0, up) == up
    down = bench.server.call(apps.stuff, "bulk", 0, 200_000)
    assert bench.client.call(apps.read_held, "bulk", 0, down) == down
    if order == "at once":
        halt(True)
    ends = {"client": bench.client, "server": bench.server}
    for name in ("client server" if order == "at once" else order).split():
        ends[name].call(apps.drop_held, "bulk")
    if order == "at once":
        halt(False)
    (ended,) = bench.events(What.ENDED)
    assert (ended.sent, ended.answered) == (up, down)
    assert (ended.established, ended.served) == (True, True)


@versions
def test_connection_whose_server_does_not_close_is_told_of_after_a_while(
    bench: Bench, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = (bench.own(version)[0], 7200 + version)
    bench.capture.direct.set_pairs(
        {PairKey(bench.source.slot, end(*to)): Backend(bench.target.slot, end(*to))}
    )
    bench.server.call(apps.listen_only, to[1])
    bench.client.call(apps.hold_silent, "left", Dial(to))
    bench.server.call(apps.accept_held, "left")
    up = bench.client.call(apps.stuff, "left", 0, 10_000)
    assert bench.server.call(apps.read_held, "left", 0, up) == up
    down = bench.server.call(apps.stuff, "left", 0, 20_000)
    assert bench.client.call(apps.read_held, "left", 0, down) == down
    bench.client.call(apps.drop_held, "left")
    assert bench.capture.direct.look(()).records == []
    monkeypatch.setattr(direct, "SERVER_WAIT", 0.0)
    found: list[bytes] = []
    wait_for(lambda: found.extend(bench.capture.direct.look(()).records) or found, "it is told of")
    (told,) = (decode_event(each) for raw in found for each in RECORD.iter_unpack(raw))
    assert (told.sent, told.received, told.served) == (up, down, False)
    bench.server.call(apps.drop_held, "left")
    assert bench.taken() == []


@versions
def test_live_connections_and_their_bytes_are_known(bench: Bench, version: int) -> None:
    bench.client.call(apps.hold_silent, "live", Dial((VIPS[version], 80)))
    assert bench.client.call(apps.push_and_pull, "live", 5000) == 5000
    (live,) = bench.capture.direct.live()
    assert live.asked == end(VIPS[version], 80)
    assert (live.from_slot, live.to_slot) == (bench.source.slot, bench.target.slot)
    counts = direct.byte_counts(bench.lab.pods[0].fd)
    assert counts[live.cookie] == (5000, 5000)
    bench.client.call(apps.drop_held, "live")


# How it is ended


@versions
def test_revocation_ends_just_the_connection_at_both_ends(bench: Bench, version: int) -> None:
    for name in ("kept", "ended"):
        bench.client.call(apps.hold, name, Dial(bench.own(version)))
    before = len(bench.server.call(apps.how_served_ended))
    kept, ended = sorted(bench.capture.direct.live(), key=lambda live: live.began)
    assert direct.destroy(bench.lab.pods[0].fd, ended) is True
    assert bench.client.call(apps.end_held, "ended") == "ECONNABORTED"
    wait_for(lambda: len(bench.server.call(apps.how_served_ended)) > before, "the server was reset")
    assert bench.server.call(apps.how_served_ended)[-1] == "ECONNRESET"
    assert direct.destroy(bench.lab.pods[0].fd, ended) is False
    assert bench.client.call(apps.ask_held, "kept").tag == "app"
    assert [live.cookie for live in bench.capture.direct.live()] == [kept.cookie]
    bench.client.call(apps.drop_held, "kept")


@versions
def test_nothing_of_a_connection_is_left_in_the_maps_when_it_has_ended(bench: Bench, version: int) -> None:
    fd = bench.capture._kernel.maps["direct_conns"]
    key_size = maps.LAYOUT["direct_conns"].key_size
    bench.client.call(apps.hold, "one", Dial(bench.own(version)))
    assert len(list(bpf.map_keys(fd, key_size))) == 1
    bench.client.call(apps.drop_held, "one")
    bench.client.call(apps.exchange, Dial(bench.own(version)))
    wait_for(lambda: not list(bpf.map_keys(fd, key_size)), "no connection is remembered")


def test_record_for_which_there_is_no_room_waits_until_it_is_fetched(bench: Bench) -> None:
    direct_path = bench.capture.direct
    ring = direct_path._ring
    assert ring is not None
    position = ring._consumed[0]
    ring._consumed[0] = (ring._produced[0] - maps.LAYOUT["direct_events"].max_entries) % (1 << 64)  # full
    try:
        assert bench.client.call(apps.exchange, Dial(bench.own(4))).tag == "app"
        found: list[bytes] = []
        wait_for(lambda: found.extend(direct_path.look(()).records) or found, "the record is fetched")
    finally:
        ring._consumed[0] = position
    ((record,),) = (list(RECORD.iter_unpack(each)) for each in found)
    event = decode_event(record)
    assert (event.what, event.sent, event.served) == (What.ENDED, 1, True)
    assert direct_path.look(()) == ([], [])
    assert bench.taken() == []


def test_new_agent_starts_without_pairs(lab: Lab, bench: Bench) -> None:
    second = Capture.open(
        cgroup=lab.cgroup, pin_dir=lab.pin_dir, agent_pid=os.getpid(), cache_dir=lab.cache_dir
    )
    assert bench.ask(4).tag == "outbound"
    assert bench.capture.direct.audit() == len(bench.pairs())
    bench.capture.direct.renew(60)
    assert bench.ask(4).tag == "app"
    second.close()
