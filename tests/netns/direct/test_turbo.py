"""Acceleration of direct connections: order, back-pressure, ends, revocation, exact bytes; and what is not accelerated.

`AMBIENT_TEST_STREAMS=N`: so many connections of each kind in `test_every_kind_of_reader_gets_every_byte` (with `--timeout 0`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpf import bpf, direct, pairs, turbo, turbotest
from ebpf.capture import Capture
from ebpf.errors import CaptureError
from ebpf.pairs import Backend, PairKey, What
from tests.netns.capture import apps
from tests.netns.capture.apps import MPTCP, Dial
from tests.netns.capture.lab import Lab, sh, wait_for
from tests.netns.direct.bench import PORT, VIPS, Bench, end, versions

pytestmark = pytest.mark.root

IDLE_PORT = 7071
READER_PORTS = {"all": 7072, "least": 7073, "peek": 7074}
PIECE = 3000
STREAMS = int(os.environ.get("AMBIENT_TEST_STREAMS", "2"))
TOO_MUCH = 64 << 20


@pytest.fixture(scope="module")
def ready(made: Bench) -> Bench:
    made.capture.direct.turbo.enable()
    made.server.call(apps.listen_only, IDLE_PORT)
    for how, port in READER_PORTS.items():
        made.server.call(apps.serve_readers, port, how, PIECE)
    return made


@pytest.fixture
def fast(ready: Bench, bench: Bench) -> Iterator[Bench]:
    """Pairs that are accelerated; nothing is left over when their connections have ended."""
    found = ready.pairs(turbo=True)
    for version in (4, 6):
        for port in (IDLE_PORT, *READER_PORTS.values()):
            to = end(ready.own(version)[0], port)
            found[PairKey(ready.source.slot, to)] = Backend(ready.target.slot, to, turbo=True)
    ready.capture.direct.set_pairs(found)
    yield ready
    let_go(ready)
    maps = ready.capture._kernel.maps
    for name in ("turbo_ends", "turbo_sockets"):
        wait_for(lambda name=name: not list(bpf.map_keys(maps[name], pairs.TUPLE_SIZE)), f"{name} is empty")


def queues(bench: Bench, pod: int, which: str) -> str:
    """What waits in the pod's TCP sockets: `r` of skmem counts what was handed over, too."""
    return sh(f"ip netns exec {bench.lab.pods[pod].name} ss -Htinm {which}")


def let_go(bench: Bench) -> None:
    """What a test that failed has left open: say where its bytes are, and close it."""
    over = dict(bench.capture.direct.turbo.handed_over())
    state = "".join(queues(bench, pod, "state connected") for pod in (0, 1)) if over else ""
    if left := [*bench.client.call(apps.drop_all), *bench.server.call(apps.drop_all)]:
        print(f"left open: {left}; handed over: {over}\n{state}")


def hold(bench: Bench, name: str, dial: Dial) -> None:
    """Connect, and keep the connection. Both its sockets have joined: what is sent before goes by TCP, and all after it."""
    before = joined(bench)
    bench.client.call(apps.hold_silent, name, dial)
    wait_for(lambda: joined(bench) == before + 2, "both sockets have joined")


def hold_and_ask(bench: Bench, name: str, dial: Dial) -> None:
    """The same, and ask once."""
    hold(bench, name, dial)
    assert bench.client.call(apps.ask_held, name).tag == "app"


def joined(bench: Bench) -> int:
    return bench.capture.counters()["turbo"]


def handed_over(bench: Bench) -> list[int]:
    """Bytes of each side of the only connection, the larger first."""
    (sides,) = bench.capture.direct.turbo.handed_over().values()
    return sorted(sides.values(), reverse=True)


def sent(bench: Bench) -> tuple[int, int]:
    """What client and server of the only connection got across."""
    (ended,) = bench.events(What.ENDED)
    return ended.sent, ended.answered


@versions
@pytest.mark.parametrize("to", ["pod", "service"])
def test_messages_go_from_socket_to_socket_and_every_byte_is_told(fast: Bench, version: int, to: str) -> None:
    hold(fast, "live", Dial(fast.own(version) if to == "pod" else (VIPS[version], 80)))
    for _ in range(10):
        assert fast.client.call(apps.push_and_pull, "live", 100) == 100
    assert all(number > 500 for number in handed_over(fast))
    fast.client.call(apps.drop_held, "live")
    assert sent(fast) == (1000, 1000)


@versions
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_byte_comes_in_order(fast: Bench, version: int, seed: int) -> None:
    size = 10_000_000
    hold(fast, "bulk", Dial(fast.own(version)))
    assert fast.client.call(apps.pour, "bulk", seed, size) == size
    assert handed_over(fast)[0] > 0
    fast.client.call(apps.drop_held, "bulk")
    assert sent(fast) == (size, size)


@pytest.mark.parametrize("how", READER_PORTS)
def test_every_kind_of_reader_gets_every_byte(fast: Bench, how: str) -> None:
    size = 3_000_000
    for seed in range(STREAMS):
        version = (4, 6)[seed % 2]
        fast.client.call(apps.hold_silent, "streamed", Dial((fast.own(version)[0], READER_PORTS[how])))
        assert fast.client.call(apps.pour, "streamed", seed, size, True) == size
        fast.client.call(apps.drop_held, "streamed")
        assert sent(fast) == (size, size)


def test_reader_that_waits_for_more_than_has_come_gets_it(fast: Bench) -> None:
    hold(fast, "more", Dial((fast.own(4)[0], IDLE_PORT)))
    fast.server.call(apps.accept_held, "reader")
    size = fast.client.call(apps.stuff, "more", 0, TOO_MUCH)
    assert 0 < handed_over(fast)[0] < size
    reader = fast.server.start(apps.read_in, "reader", "all", PIECE, size + 2)
    # The kernel asks the verdict for the second of these only: it keeps the one for a message that found no room.
    for at, more in ((size, 1), (size + 1, PIECE)):
        wait_for(lambda: not fast.client.call(apps.unread_by_tcp, "more"), "TCP has carried all")
        wait_for(lambda: "(r0," in queues(fast, 1, f"state established sport = :{IDLE_PORT}"), "all is read")
        fast.client.call(apps.say, "more", at, more)
    ok, got = reader()
    assert ok, got
    assert size + 1 < got <= size + 1 + PIECE
    fast.client.call(apps.drop_held, "more")
    fast.server.call(apps.drop_held, "reader")


def test_writer_is_held_up_when_its_reader_stops_and_nothing_is_lost(fast: Bench) -> None:
    hold(fast, "stuffed", Dial((fast.own(4)[0], IDLE_PORT)))
    fast.server.call(apps.accept_held, "reader")
    total = 0
    for _ in range(3):
        size = fast.client.call(apps.stuff, "stuffed", total, TOO_MUCH)
        assert 0 < size < TOO_MUCH
        assert fast.server.call(apps.read_held, "reader", total, size) == size
        total += size
    assert 0 < handed_over(fast)[0] < total
    fast.client.call(apps.drop_held, "stuffed")
    fast.server.call(apps.drop_held, "reader")
    assert sent(fast) == (total, 0)


def test_bytes_of_a_server_that_never_closes_are_known_from_the_client(fast: Bench) -> None:
    hold(fast, "short", Dial(fast.own(4)))
    for _ in range(2):
        assert fast.client.call(apps.ask_held, "short").tag == "app"
    (live,) = fast.capture.direct.live()
    told = sum(fast.capture.direct.turbo.handed_over()[live.cookie].values())
    fast.client.call(apps.drop_held, "short")
    (ended,) = fast.events(What.ENDED)
    assert ended.sent == 2
    assert ended.answered == told - 2 > 0
    assert ended.received - ended.answered in (0, 1)  # a FIN, see docs/direct-path.md


@versions
def test_half_closed_connection_goes_on_in_the_other_direction(fast: Bench, version: int) -> None:
    size = 1_000_000
    fast.client.call(apps.hold_silent, "half", Dial(fast.own(version)))
    assert fast.client.call(apps.half_close, "half", size) == size
    assert sent(fast) == (size, size)


def test_reset_arrives(fast: Bench) -> None:
    before = len(fast.server.call(apps.how_served_ended))
    fast.client.call(apps.hold, "gone", Dial(fast.own(4)))
    fast.client.call(apps.reset_held, "gone")
    wait_for(lambda: len(fast.server.call(apps.how_served_ended)) > before, "the server was reset")
    assert fast.server.call(apps.how_served_ended)[-1] == "ECONNRESET"
    fast.events(What.ENDED)


@versions
def test_revocation_ends_an_accelerated_connection_at_both_ends(fast: Bench, version: int) -> None:
    for name in ("kept", "ended"):
        fast.client.call(apps.hold, name, Dial(fast.own(version)))
        assert fast.client.call(apps.ask_held, name).tag == "app"
    before = len(fast.server.call(apps.how_served_ended))
    _, ended = sorted(fast.capture.direct.live(), key=lambda live: live.began)
    assert direct.destroy(fast.lab.pods[0].fd, ended) is True
    assert fast.client.call(apps.end_held, "ended") == "ECONNABORTED"
    wait_for(lambda: len(fast.server.call(apps.how_served_ended)) > before, "the server was reset")
    assert fast.server.call(apps.how_served_ended)[-1] == "ECONNRESET"
    assert fast.client.call(apps.ask_held, "kept").tag == "app"
    fast.client.call(apps.drop_held, "kept")


def test_pod_that_left_keeps_its_accelerated_connections(fast: Bench) -> None:
    lab, capture = fast.lab, fast.capture
    third = capture.enrol(lab.pods[2].network())
    backend = Backend(third.slot, end(lab.pods[2].v4, PORT), turbo=True)
    capture.direct.set_pairs({PairKey(fast.source.slot, backend.address): backend})
    hold_and_ask(fast, "open", Dial((lab.pods[2].v4, PORT)))
    assert capture.withdraw(third) is True
    before = handed_over(fast)[0]
    assert fast.client.call(apps.ask_held, "open").tag == "app"
    assert handed_over(fast)[0] > before
    fast.client.call(apps.drop_held, "open")
    fast.events(What.ENDED)


def test_new_agent_goes_on_with_what_is_accelerated(lab: Lab, fast: Bench) -> None:
    hold_and_ask(fast, "long", Dial(fast.own(4)))
    before = handed_over(fast)[0]
    second = Capture.open(
        cgroup=lab.cgroup, pin_dir=lab.pin_dir, agent_pid=os.getpid(), cache_dir=lab.cache_dir
    )
    second.direct.enable()
    second.direct.turbo.enable()
    second.direct.audit()
    second.direct.audit()
    told = (
        len("app|")
        + sum(
            len(f"{ip} {port}")
            for ip, port in (fast.own(4), fast.client.call(apps.ask_held, "long").client_local)
        )
        + len("|")
    )
    assert handed_over(fast)[0] == before + told
    fast.client.call(apps.drop_held, "long")
    assert sent(fast) == (2, 2 * told)
    second.close()
    fast.capture.direct.audit()


def test_switched_off_nothing_new_is_accelerated_and_what_is_goes_on(fast: Bench) -> None:
    hold_and_ask(fast, "long", Dial(fast.own(4)))
    fast.capture._kernel.detach_turbo()
    try:
        before, joins = handed_over(fast)[0], joined(fast)
        assert fast.client.call(apps.ask_held, "long").tag == "app"
        assert handed_over(fast)[0] > before
        assert fast.ask(4).tag == "app"
        assert joined(fast) == joins
    finally:
        fast.capture.direct.turbo.attach(turbo.offsets())
    fast.client.call(apps.drop_held, "long")


def test_what_did_not_ask_is_not_accelerated(fast: Bench) -> None:
    fast.capture.direct.set_pairs(fast.pairs(turbo=False))
    before = joined(fast)
    assert fast.ask(4).tag == "app"
    assert joined(fast) == before


def test_multipath_tcp_is_not_accelerated(fast: Bench) -> None:
    before = joined(fast)
    assert fast.ask(4, protocol=MPTCP).tag == "app"
    assert joined(fast) - before in (0, 1)  # the server's side may be plain TCP
    fast.events(What.ENDED)


@pytest.mark.parametrize("member", ["write_seq", "copied_seq", "bytes_received", "rmem_alloc"])
def test_self_test_refuses_a_kernel_that_it_misreads(fast: Bench, tmp_path: Path, member: str) -> None:
    found = turbo.offsets()
    found[member] += 8
    capture = fast.capture._kernel
    with pytest.raises(CaptureError, match="self_test_failed: acceleration: "):
        turbotest.run(capture.collection, found, fast.lab.cgroup, tmp_path)


def test_what_closed_unseen_is_swept_away(fast: Bench) -> None:
    fast.client.call(apps.hold, "unseen", Dial(fast.own(4)))
    (live,) = fast.capture.direct.live()
    fast.capture.direct.disable()
    fast.client.call(apps.drop_held, "unseen")
    fast.capture.direct.forget(live)

    def swept() -> bool:
        """The server may close later than the client: not all goes at once."""
        fast.capture.direct.turbo.sweep()
        return not _ends(fast)

    wait_for(swept, "nothing is left")
    fast.capture.direct.enable()
    fast.capture.direct.turbo.enable()


def _ends(bench: Bench) -> list[bytes]:
    return list(bpf.map_keys(bench.capture._kernel.maps["turbo_ends"], pairs.TUPLE_SIZE))
